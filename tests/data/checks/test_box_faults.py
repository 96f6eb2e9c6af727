"""Boxes that stand twice or hug a border, classes that are nearly one, and files that mean corners differently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.boxes import (
    SAME_IOU,
    SAME_PX,
    border_boxes,
    class_twins,
    empty_classes,
    find_box_faults,
    repeated_boxes,
)
from flyspeck.data.checks.parts import Part
from flyspeck.data.checks.shifts import find_shifts


def table(
    boxes: list[tuple[int, float, float, float, float, int]],
    *,
    size: tuple[int, int] = (80, 100),
    classes: tuple[str, ...] = ("p", "q"),
    images: int = 2,
) -> Annotations:
    """Of (image, x1, y1, x2, y2, label) by image; label -1 is an ignore region."""
    rows = np.array(boxes, dtype=np.float64).reshape(-1, 6)
    labels = rows[:, 5].astype(np.int64)
    return Annotations(
        image_ids=np.arange(images),
        file_names=tuple(f"{n}.png" for n in range(images)),
        sizes=np.tile(np.array([size]), (images, 1)),
        image_index=rows[:, 0].astype(np.int64),
        boxes=rows[:, 1:5],
        labels=labels,
        area=bx.area(rows[:, 1:5]),
        ignore=labels < 0,
        crowd=np.zeros(len(rows), dtype=bool),
        box_ids=np.arange(1, len(rows) + 1),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
    )


def test_repeats_by_hand() -> None:
    rows = [
        (0, 10, 10, 14, 14, 0),
        (0, 10, 10, 14, 14, 0),  # exactly the first
        (0, 10.5, 10, 14.5, 14, 0),  # half a pixel off the first two: IoU 3.5 / 4.5 = 0.78
        (0, 11, 10, 15, 14, 1),  # half a pixel off the third, of another class
        (0, 40, 40, 60, 60, 0),
        (0, 41, 40, 60, 60, 0),  # IoU 0.95
        (0, 40, 40, 60, 60, -1),  # an ignore region is compared with none of them
        (1, 10, 10, 14, 14, 0),  # another image
    ]
    pairs = repeated_boxes(table(rows))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 2),
        (2, 3),
        (4, 5),
    ]
    assert_array_equal(pairs.exact, [True, False, False, False, False])
    assert_array_equal(pairs.other_class, [False, False, False, True, False])
    faults = find_box_faults(table(rows))
    assert (faults.repeated, faults.nearly_repeated, faults.two_classes) == (1, 2, 1)
    assert faults.first["repeated"] == ("0.png: box 2 (10, 10, 14, 14)",)
    assert faults.first["two_classes"][0].endswith("p and q")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.floats(0, 12),
            st.floats(0, 12),
            st.floats(0.5, 8),
            st.floats(0.5, 8),
            st.integers(-1, 1),
        ),
        max_size=24,
    )
)
def test_repeats_are_those_of_a_loop(rows: list[tuple[int, float, float, float, float, int]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    found = table([(i, x, y, x + w, y + h, c) for i, x, y, w, h, c in rows])
    expected = set()
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            if rows[a][0] == rows[b][0] and (rows[a][5] < 0) == (rows[b][5] < 0):
                apart = np.abs(found.boxes[a] - found.boxes[b]).max()
                if apart <= SAME_PX or bx.iou(found.boxes[[a]], found.boxes[[b]])[0, 0] >= SAME_IOU:
                    expected.add((a, b))
    pairs = repeated_boxes(found)
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected


def test_borders_by_hand() -> None:
    inside = [(0, 20.0 + 10 * n, 20.0, 28.0 + 10 * n, 28.0, 0) for n in range(5)]
    rows = [
        *inside,
        (0, 0, 40, 8, 48, 0),  # touches the left border, whole
        (0, 97, 40, 100, 48, 0),  # 3 of the usual 8 px
        (0, 40, 79, 48, 80, 0),  # 1 px at the lower border
        (1, 0, 0, 2, 2, -1),  # an ignore region
    ]
    touching, slivers, expected = border_boxes(table(rows))
    assert_array_equal(touching, [5, 6, 7])
    assert_array_equal(slivers, [6, 7])
    # An object of w x h px among 100 x 80 is clear of the borders, and of 1 px beside, with (1 - (w + 2)/100) (1 - (h + 2)/80).
    clear = [(8, 8)] * 6 + [(3, 8), (8, 1)]
    assert expected == pytest.approx(sum(1 - (1 - (w + 2) / 100) * (1 - (h + 2) / 80) for w, h in clear))


def test_names_that_are_nearly_one() -> None:
    names = ("Car", "car", " car", "traffic light", "traffic_light", "van", "e-bike", "ebike")
    assert class_twins(names) == (("Car", "car", " car"), ("traffic light", "traffic_light"))


def test_a_class_of_ignore_regions_only_is_not_empty() -> None:
    some = table([(0, 1, 1, 5, 5, 0), (0, 9, 9, 12, 12, -1)], classes=("p", "q", "r"))
    assert empty_classes(some) == ("q", "r")
    assert empty_classes(replace(some, extra={"category": np.array([0, 1])})) == ("r",)


def grid(seed: int, images: int = 3) -> Annotations:
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        for place in range(20):
            x, y = 5 + 18 * (place % 5) + rng.integers(0, 4), 5 + 18 * (place // 5) + rng.integers(0, 4)
            w, h = rng.integers(2, 8, 2)
            rows.append((image, x, y, x + w, y + h, 0))
    return table(rows, images=images)


@pytest.mark.parametrize(
    "step", [(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), (-0.5, -0.5, -0.5, -0.5), (-1.0, -1.0, 0.0, 0.0)]
)
def test_a_shift_is_found_and_named(step: tuple[float, float, float, float]) -> None:
    one = grid(0)
    other = replace(one, boxes=one.boxes + np.array(step), file_names=tuple(f"images/{n}" for n in one.file_names))
    # Some boxes were corrected by hand since, some are gone.
    other = other.select_boxes(np.arange(other.num_boxes) % 7 != 0)
    other.boxes[::9] += 1.3
    (found,) = find_shifts([Part("a.json", "a.json", one, "coco"), Part("b", "b", other, "yolo")])
    assert found.step == step
    assert 0.8 < found.share < 0.95
    assert (found.images, found.first, found.second) == (3, "a.json", "b")
    assert "px in x1, y1, x2, y2" in found.text()


def test_other_boxes_are_no_shift() -> None:
    one = grid(0)
    rng = np.random.default_rng(0)
    drawn = replace(one, boxes=one.boxes + rng.normal(0, 0.5, one.boxes.shape))
    wider = replace(one, boxes=one.boxes + np.array([-2.0, -2, 2, 2]))
    fewer = one.select_boxes(np.arange(6))
    for other in (one, drawn, wider, replace(fewer, boxes=fewer.boxes + 1), grid(5)):
        assert find_shifts([Part("a", "a", one, "coco"), Part("b", "b", other, "coco")]) == ()
