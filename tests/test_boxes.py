"""The box algebra: worked examples, NumPy against torch, properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from flyspeck import boxes as b

corner = arrays(np.float64, (5, 2), elements=st.integers(0, 40).map(lambda n: n / 2))
side = arrays(np.float64, (5, 2), elements=st.integers(1, 60).map(lambda n: n / 2))


def test_worked_overlaps() -> None:
    one, two = np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 6, 4], [10, 10, 12, 12], [1, 1, 3, 3]])
    assert_allclose(b.intersection(one, two), [[8, 0, 4]])
    assert_allclose(b.iou(one, two), [[8 / 24, 0, 4 / 16]])
    assert_allclose(b.iod(two, one), [[0.5], [0], [1]])  # over the area of the first argument
    # Hull of (0,0,4,4) and (10,10,12,12) is 144, union 20.
    assert_allclose(b.paired_giou(one, two[1:2]), [0 - (144 - 20) / 144])
    # Centres (2,2) and (11,11): squared distance 162; diagonal of the hull 12*12*2 = 288.
    assert_allclose(b.paired_diou(one, two[1:2]), [-162 / 288])


def test_a_one_pixel_shift_of_an_eight_pixel_box() -> None:
    # Shifted diagonally by 1 px: 49 / (64 + 64 - 49) = .62, by 2 px: 36/92 = .39.
    box = np.array([[0.0, 0, 8, 8]])
    assert_allclose(b.paired_iou(box, box + 1), [49 / 79])
    assert_allclose(b.paired_iou(box, box + 2), [36 / 92])


def test_boxes_without_area() -> None:
    flat, inside_out = np.array([[3.0, 3, 3, 9]]), np.array([[5.0, 5, 2, 2]])
    assert b.area(flat)[0] == 0
    assert b.area(inside_out)[0] == 0
    assert b.iou(flat, flat)[0, 0] == 0
    assert b.iod(flat, flat)[0, 0] == 0


@given(corner, side, corner, side)
def test_numpy_and_torch_agree(c1: np.ndarray, s1: np.ndarray, c2: np.ndarray, s2: np.ndarray) -> None:
    one, two = np.concatenate([c1, c1 + s1], 1), np.concatenate([c2, c2 + s2], 1)
    for function in (b.iou, b.iod, b.intersection, b.paired_iou, b.paired_giou, b.paired_diou, b.encode):
        got = function(torch.from_numpy(one), torch.from_numpy(two))
        assert_allclose(got.numpy(), function(one, two), rtol=1e-12, atol=1e-12)
    assert_allclose(b.clip(torch.from_numpy(one), 8, 9).numpy(), b.clip(one, 8, 9))


@given(corner, side, corner, side)
def test_properties(c1: np.ndarray, s1: np.ndarray, c2: np.ndarray, s2: np.ndarray) -> None:
    one, two = np.concatenate([c1, c1 + s1], 1), np.concatenate([c2, c2 + s2], 1)
    assert_allclose(b.iou(one, two), b.iou(two, one).T)
    assert (b.iou(one, two) <= b.iod(one, two) + 1e-12).all()
    assert_allclose(np.diag(b.iou(one, two)), b.paired_iou(one, two))
    assert (b.paired_giou(one, two) <= b.paired_iou(one, two) + 1e-12).all()
    assert_allclose(b.to_xywh(one), np.concatenate([c1, s1], 1))
    assert_allclose(b.decode(b.encode(one, two), two), one, atol=1e-9)
    weights = (10.0, 10.0, 5.0, 5.0)
    assert_allclose(b.decode(b.encode(one, two, weights), two, weights), one, atol=1e-9)


@pytest.mark.parametrize("size", range(1, 9))
def test_tiny_boxes_encode_and_decode_in_float32(size: int) -> None:
    box = torch.tensor([[100.25, 200.75, 100.25 + size, 200.75 + size]])
    anchor = torch.tensor([[98.0, 198.0, 106.0, 206.0]])
    torch.testing.assert_close(b.decode(b.encode(box, anchor), anchor), box, atol=1e-4, rtol=0)


def test_decode_caps_the_scale() -> None:
    wild = np.array([[0.0, 0, 50, 50]])
    box = b.decode(wild, np.array([[0.0, 0, 16, 16]]))
    assert_allclose(b.size(box), [1000.0])
