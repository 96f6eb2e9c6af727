from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flyspeck.errors import UserError
from flyspeck.infer import tiles


def test_grid_order_and_short_images() -> None:
    assert_array_equal(tiles.grid((50, 30), (64, 64), 16), [[0, 0, 30, 50]])
    assert_array_equal(
        tiles.grid((50, 70), (40, 40), (30, 10)),
        [[0, 0, 40, 40], [30, 0, 70, 40], [0, 10, 40, 50], [30, 10, 70, 50]],
    )


@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 120), st.data())
def test_any_box_that_fits_into_the_overlap_is_whole_in_a_tile(h: int, w: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    frames = tiles.grid((h, w), (tile, tile), overlap)
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    x2, y2 = min(w, x + max(overlap, 1)), min(h, y + max(overlap, 1))
    whole = (frames[:, 0] <= x) & (frames[:, 1] <= y) & (x2 <= frames[:, 2]) & (y2 <= frames[:, 3])
    assert whole.any()
    assert len({tuple(f) for f in frames.tolist()}) == len(frames)


@pytest.mark.parametrize(("tile", "overlap"), [((0, 5), 0), ((8, 8), 8), ((8, 16), 8), ((8, 8), -1)])
def test_impossible_grids_are_refused(tile: tuple[int, int], overlap: int) -> None:
    with pytest.raises(UserError, match="tiles of"):
        tiles.grid((100, 100), tile, overlap)


def test_cut_is_only_at_inner_borders() -> None:
    frame = np.array([32, 0, 64, 32])  # in an image of 32 x 100: left and right borders are inner, top and bottom outer
    boxes = np.array([[32, 0, 40, 8], [40, 0, 48, 32], [56, 4, 63.5, 9], [40, 4, 62, 9], [33.5, 4, 40, 9]], np.float32)
    assert_array_equal(tiles.is_cut(boxes, frame, (32, 100)), [True, False, True, False, False])
    assert_array_equal(tiles.is_cut(boxes, frame, (32, 64)), [True, False, False, False, False])


@pytest.mark.parametrize("side", range(1, 9))
def test_tiny_boxes_of_every_size_at_a_border(side: int) -> None:
    frame = np.array([0, 0, 32, 32])
    at = np.array([[32 - side, 5, 32, 5 + side]], np.float32)
    assert tiles.is_cut(at, frame, (32, 64)).all()
    assert not tiles.is_cut(at - np.array([2, 0, 2, 0], np.float32), frame, (32, 64)).any()
