"""The one policy for cut boxes: worked examples, properties, and the same on tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck.data.policy import TINYBENCHMARK, CutPolicy, cut_boxes

WINDOW = (100, 50, 110, 60)
# A 4x4 box at the left border of the window: 4, 3, 2 of its columns inside, then a sliver of 0.25, then none.
BOXES = np.array(
    [[100, 50, 104, 54], [99, 50, 103, 54], [98, 50, 102, 54], [96.25, 50, 100.25, 54], [96, 50, 100, 54.0]]
)


def test_keep_ignore_drop_by_hand() -> None:
    nothing = np.zeros(5, dtype=bool)
    clipped, remains, ignored = cut_boxes(BOXES, nothing, WINDOW, CutPolicy(keep=0.75, ignore=0.1))
    assert_array_equal(remains, [True, True, True, False, False])
    assert_array_equal(ignored[remains], [False, False, True])
    assert_array_equal(clipped[:3], [[0, 0, 4, 4], [0, 0, 3, 4], [0, 0, 2, 4]])


def test_ignore_regions_stay_while_visible() -> None:
    every = np.ones(5, dtype=bool)
    _, remains, ignored = cut_boxes(BOXES, every, WINDOW, CutPolicy())
    assert_array_equal(remains, [True, True, True, True, False])
    assert ignored.all()


def test_tinybenchmark_measures_size_and_drops() -> None:
    # sqrt(0.5) = 0.707 is kept, sqrt(0.4375) = 0.661 is dropped, ignore region or not.
    boxes = np.array([[98, 50, 102, 54], [97.75, 50, 101.75, 54.0]])
    for ignore in (np.zeros(2, bool), np.ones(2, bool)):
        _, remains, ignored = cut_boxes(boxes, ignore, WINDOW, TINYBENCHMARK)
        assert_array_equal(remains, [True, False])
        assert ignored[0] == ignore[0]


@pytest.mark.parametrize("shares", [(0.2, 0.5), (1.2, 0.1), (0.5, -0.1)])
def test_impossible_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="a cut policy needs"):
        CutPolicy(*shares)


side = st.integers(1, 8)
place = st.integers(-10, 40)
boxes_strategy = st.lists(st.tuples(place, place, side, side, st.booleans()), min_size=1, max_size=12)


@given(boxes_strategy, st.integers(0, 20), st.integers(0, 20), side, side, st.floats(0, 1), st.floats(0, 1))
def test_properties(rows: list, x: int, y: int, w: int, h: int, one: float, other: float) -> None:
    boxes = np.array([[a, b, a + c, b + d] for a, b, c, d, _ in rows], dtype=np.float64)
    ignore = np.array([row[4] for row in rows])
    policy = CutPolicy(keep=max(one, other), ignore=min(one, other))
    window = (x, y, x + w, y + h)
    clipped, remains, ignored = cut_boxes(boxes, ignore, window, policy)
    inside = clipped[remains]
    assert (inside[:, :2] >= 0).all()
    assert (inside[:, 2:] <= (w, h)).all()
    assert (inside[:, 2:] > inside[:, :2]).all()
    assert (ignored | ~ignore).all()  # what is an ignore region stays one
    # Counting pixels one by one, the slow way, gives the same fate.
    for row, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        pixels = [(i, j) for i in range(x1, x2) for j in range(y1, y2)]
        seen = sum(x <= i < x + w and y <= j < y + h for i, j in pixels) / len(pixels)
        assert bool(remains[row]) == (seen > 0 and (bool(ignore[row]) or seen >= policy.ignore))
        assert bool(ignored[row]) == (bool(ignore[row]) or seen < policy.keep)


@given(boxes_strategy)
def test_tensors_and_arrays_agree(rows: list) -> None:
    boxes = np.array([[a, b, a + c, b + d] for a, b, c, d, _ in rows], dtype=np.float64)
    ignore = np.array([row[4] for row in rows])
    ours = cut_boxes(boxes, ignore, (3, 4, 15, 17), CutPolicy())
    theirs = cut_boxes(torch.from_numpy(boxes), torch.from_numpy(ignore), (3, 4, 15, 17), CutPolicy())
    for mine, other in zip(ours, theirs, strict=True):
        assert_array_equal(mine, other.numpy())
