"""CKA against its Gram-matrix form, cover by hand, levels of models that see images at different sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from flyspeck.explain.similarity import View, attention_on_objects, compare_levels, linear_cka, object_cover
from flyspeck.types import ImageBatch


def gram_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition by centred Gram matrices (Kornblith et al., 2019, eq. 4): the slow twin."""
    n = len(x)
    center = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)
    k, m = center @ (x @ x.T).double() @ center, center @ (y @ y.T).double() @ center
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


def test_cka():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(500, 6, generator=generator), torch.randn(500, 4, generator=generator)
    turned = 3 * x @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0] + 5
    assert linear_cka(x, turned) == pytest.approx(1)
    mixed = torch.cat([x[:, :2], noise], 1)
    assert linear_cka(x, mixed) == pytest.approx(gram_cka(x, mixed))
    assert linear_cka(x, noise) < 0.05 < linear_cka(x, mixed) < 0.9
    assert np.isnan(linear_cka(x, torch.ones(500, 2)))


def test_object_cover_by_hand():
    # Cells of 4 px: a box of 2x2 covers a quarter of one; a box of a fraction of a pixel one sixteenth; one that sticks
    # out is cut.
    boxes = np.array([[1, 1, 3, 3], [4.2, 0.2, 4.6, 0.4], [6.0, 6, 20, 20]])
    assert_allclose(object_cover(boxes, (8, 8), (2, 2)).numpy(), [[0.25, 1 / 16], [0, 0.25]])


def view(side: int, seed: int, factor: int = 1) -> View:
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    boxes = np.array([[8.0, 8, 16, 16]]) * factor
    return View(ImageBatch(pixels, ((side * factor,) * 2,)), boxes)


def test_a_model_is_like_itself_on_every_level(known):
    levels = compare_levels(known(), known(), [(view(64, i), view(64, i)) for i in range(4)])
    assert [one.level for one in levels] == ["P2", "P3"]
    assert [one.cka for one in levels] == pytest.approx([1, 1])
    # 256 cells of 16x16 and all 64 of 8x8 an image; 4 and 1 cells under the object.
    assert [(one.cells, one.object_cells) for one in levels] == [(4 * 256, 4 * 4), (4 * 64, 4)]
    assert levels[0].cka_objects == pytest.approx(1)
    assert np.isnan(levels[1].cka_objects)  # of four cells nothing can be said


def test_a_model_that_sees_images_enlarged_is_compared_at_the_same_stride_of_the_file(known):
    # Enlarged twice, its P3 (8 px) has the cells of the other's P2, and the same means in them; P2 meets nothing.
    (level,) = compare_levels(known(), known(), [(view(64, i), view(64, i, factor=2)) for i in range(3)])
    assert level.level == "P2"
    assert level.cka == pytest.approx(1)
    (other,) = compare_levels(known(), known(), [(view(64, i, factor=2), view(64, i)) for i in range(3)])
    assert other.level == "P3"


def test_attention_on_objects_by_hand(known):
    # A white square of one cell of P3, in black: all attention lies on 64 of 32 x 64 px. On even grey it lies anywhere.
    pixels = torch.zeros(1, 3, 32, 64)
    pixels[:, :, 8:16, 16:24] = 1
    boxes = np.array([[16.0, 8, 24, 16]])
    white = View(ImageBatch(pixels, ((32, 64),)), boxes)
    grey = View(ImageBatch(torch.full_like(pixels, 0.5), ((32, 64),)), boxes)
    empty = View(ImageBatch(pixels, ((32, 64),)), np.zeros((0, 4)))
    assert attention_on_objects(known(), [white, empty]) == pytest.approx({"P2": 32.0, "P3": 32.0})
    assert attention_on_objects(known(), [grey]) == pytest.approx({"P2": 1.0, "P3": 1.0})
    assert all(np.isnan(v) for v in attention_on_objects(known(), [empty]).values())
