"""Which places are picked: by hand, and properties of every window."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from flyspeck.data.annotations import Annotations
from flyspeck.explain.cases import covered_shares, pick_cases, whole_case


def table(images: list[list[tuple[float, float, float, float]]], **extra) -> Annotations:
    boxes = np.array([b for p in images for b in p], np.float64).reshape(-1, 4)
    n = len(boxes)
    return Annotations(
        image_ids=np.arange(len(images)),
        file_names=tuple(f"{i}.png" for i in range(len(images))),
        sizes=np.full((len(images), 2), 200),
        image_index=np.repeat(np.arange(len(images)), [len(p) for p in images]),
        boxes=boxes,
        labels=np.zeros(n, np.int64),
        area=np.zeros(n),
        ignore=np.zeros(n, bool),
        crowd=np.zeros(n, bool),
        box_ids=np.arange(n),
        classes=("a",),
        category_ids=(1,),
        extra=extra,
    )


def square(x: float, y: float, side: float = 4) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def test_covered_shares_by_hand():
    # The second lies half under the first; the third is the second again, an error that covers nothing; the fourth, of
    # 2x2 px, lies wholly in the first.
    boxes = np.array([(0, 0, 8, 8), (4, 0, 12, 8), (4, 0, 12, 8), (1, 1, 3, 3)], np.float64)
    assert_allclose(covered_shares(boxes), [0.5, 0.5, 0.5, 1.0])
    # What the source says counts where it hides more; what it does not know (NaN, -1) counts nothing.
    assert_allclose(covered_shares(boxes, np.array([0.2, 0.9, np.nan, -1])), [0.8, 0.5, 0.5, 1.0])
    assert covered_shares(np.zeros((0, 4))).shape == (0,)


def test_dense_and_occluded_in_turn():
    crowd = [square(10 + 6 * (i % 5), 10 + 6 * (i // 5)) for i in range(15)]
    pair = [square(100, 100, 8), square(103, 100, 8)]
    sparse = [square(20, 20), square(180, 180)]
    annotations = table([sparse, pair, crowd, []])
    cases = pick_cases(annotations, annotations.sizes, 4)
    assert [(c.kind, c.row) for c in cases] == [("dense", 2), ("occluded", 1), ("sparse", 0)]
    assert cases[2].reason == "1 object within 56 px"
    assert pick_cases(annotations, annotations.sizes, 2) == cases[:2]
    assert cases[0].reason == "15 objects within 56 px"  # 14 sides of 4 px
    assert cases[1].reason == "2 objects covered by another, at most 62 %"  # 5 of 8 px: 62.5, to even
    assert cases[1].window == (56, 54, 156, 154)  # half of 200 px about the middle (105.5, 104)


def test_ignore_regions_are_no_objects():
    annotations = table([[square(10, 10), square(12, 10), square(14, 10)]])
    annotations.ignore[:] = True
    assert pick_cases(annotations, annotations.sizes, 2) == []


def test_visible_ratio_makes_a_case():
    annotations = table([[square(10, 10), square(80, 80)]], vis_ratio=np.array([0.35, 1.0]))
    (case,) = pick_cases(annotations, annotations.sizes, 2)
    assert (case.kind, case.reason) == ("occluded", "1 object covered by another, at most 65 %")


def test_a_image_without_objects_shows_its_middle():
    assert whole_case(3, np.zeros((0, 4)), (100, 300)).window == (125, 25, 175, 75)
    assert whole_case(3, np.zeros((0, 4)), (40, 60)).window == (10, 0, 50, 40)  # never more than there is


@given(
    st.lists(st.tuples(st.floats(0, 199), st.floats(0, 199), st.floats(1, 8)), min_size=2, max_size=12),
    st.integers(1, 3),
)
def test_windows_lie_in_the_image_and_show_objects(objects, count):
    boxes = [square(x, y, side) for x, y, side in objects]
    annotations = table([boxes])
    for case in pick_cases(annotations, annotations.sizes, count):
        x1, y1, x2, y2 = case.window
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 200
        reached = (annotations.boxes[:, :2] < (x2, y2)).all(1) & (annotations.boxes[:, 2:] > (x1, y1)).all(1)
        assert reached.sum() >= (2 if case.kind == "dense" else 1)
