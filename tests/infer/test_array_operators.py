"""The NumPy steps of a LiteRT file give what the operators of a traced detector give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.infer import array_operators
from flyspeck.infer.array_operators import nms_mask, pyramid_roi_align, tiny_suppression
from flyspeck.models import batch_decoding
from flyspeck.models import tiny_suppression as torch_tiny


def crowd(
    seed: int, *, images: int = 2, number: int = 300, classes: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of 1 to 40 px that lie over each other, scores in [0, 1] and labels; some boxes have no area."""
    rng = np.random.default_rng(seed)
    middle, side = (
        rng.uniform(0, 90, (images, number, 2)),
        rng.uniform(1, 40, (images, number, 1)) ** rng.uniform(0.3, 1),
    )
    boxes = np.concatenate([middle, middle + side * rng.uniform(0.6, 1.6, (images, number, 2))], 2).astype(np.float32)
    boxes[:, ::29, 2] = boxes[:, ::29, 0]
    return boxes, rng.random((images, number), np.float32), rng.integers(0, classes, (images, number))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("iou", "limit"), [(0.5, 500), (0.3, 7), (0.95, 40)])
def test_suppression_keeps_what_torch_keeps(seed: int, iou: float, limit: int) -> None:
    boxes, scores, labels = crowd(seed)
    by_class = (scores[:, None] * (labels[:, None] == np.arange(2)[None, :, None])).astype(np.float32)
    expected = batch_decoding.nms_mask(torch.tensor(boxes), torch.tensor(by_class), iou, 0.1, limit)
    assert_array_equal(nms_mask(boxes, by_class, iou, 0.1, limit), expected.numpy())


def test_suppression_by_hand() -> None:
    """8-px boxes: the second overlaps the first by 6/10 of the union, the third by 3/13; the fourth is below the threshold."""
    boxes = np.array([[[0, 0, 8, 8], [2, 0, 10, 8], [5, 0, 13, 8], [40, 0, 41, 1]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7, 0.1]]], np.float32)
    assert nms_mask(boxes, scores, 0.5, 0.1, 10).tolist() == [[[1, 0, 1, 0]]]
    assert nms_mask(boxes, scores, 0.7, 0.05, 10).tolist() == [[[1, 1, 1, 1]]]
    assert nms_mask(boxes, scores, 0.7, 0.05, 2).tolist() == [[[1, 1, 0, 0]]]
    assert nms_mask(boxes[:, :0], scores[:, :, :0], 0.7, 0.05, 2).shape == (1, 1, 0)


@pytest.mark.parametrize("seed", range(4))
def test_one_box_each_is_that_of_torch(seed: int) -> None:
    boxes, scores, labels = crowd(seed)
    by_class = (scores[:, None] * (labels[:, None] == np.arange(2)[None, :, None])).astype(np.float32)
    kept = scores * nms_mask(boxes, by_class, 0.5, 0.1, 200).max(1)
    given = (torch.tensor(boxes), torch.tensor(scores), torch.tensor(kept), torch.tensor(labels))
    places, left = (array.numpy() for array in torch_tiny.tiny_suppression(*given, 0.1, 150))
    mine, own = tiny_suppression(boxes, scores, kept, labels, 0.1, 150)
    assert_allclose(own, left, atol=1e-6)
    assert_allclose(mine[own > 0], places[left > 0], atol=1e-3)
    assert (own < kept).sum() > 10  # duplicates there were


def test_the_counts_are_those_of_torch() -> None:
    assert array_operators.MOST == torch_tiny.MOST
    assert array_operators.VOTERS == torch_tiny.VOTERS
    assert array_operators.ROUNDS == torch_tiny.ROUNDS


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("output", "sampling"), [(7, 2), (3, 1), (2, 4)])
def test_regions_are_pooled_as_by_torch(output: int, sampling: int, aligned: bool) -> None:
    rng = np.random.default_rng(output)
    maps = [rng.normal(size=(2, 5, h, w)).astype(np.float32) for h, w in ((17, 23), (8, 11), (1, 2))]
    corner, side = rng.uniform(-4, 22, (40, 2)), rng.uniform(0.2, 9, (40, 2))  # some reach far out of every map
    regions = np.concatenate([rng.integers(0, 2, (40, 1)), corner, corner + side], 1).astype(np.float32)
    level = rng.integers(0, 3, 40)
    level[:5] = 2
    given = [torch.tensor(m) for m in maps]
    expected = batch_decoding.pyramid_roi_align(
        given, torch.tensor(regions), torch.tensor(level), output, sampling, aligned
    )
    found = pyramid_roi_align(maps, regions, level, output, sampling, aligned)
    assert found.shape == (40, 5, output, output)
    assert_allclose(found, expected.numpy(), atol=2e-5)
    assert pyramid_roi_align(maps, regions[:0], level[:0], output, sampling, aligned).shape == (0, 5, output, output)
