"""Grad-CAM, LayerCAM and attention, by hand and against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from flyspeck.explain.maps import GRAD_CAM, LAYER_CAM, explain, grad_cam, layer_cam, level_names
from flyspeck.models.build import build
from flyspeck.types import FeatureSpec, ImageBatch


def test_cams_equal_loops_over_cells():
    generator = torch.Generator().manual_seed(0)
    maps, gradient = torch.randn(2, 1, 3, 4, 5, generator=generator)
    plain, layered = np.zeros((4, 5)), np.zeros((4, 5))
    for y in range(4):
        for x in range(5):
            for k in range(3):
                weight = sum(float(gradient[0, k, v, u]) for v in range(4) for u in range(5))
                plain[y, x] += weight * float(maps[0, k, y, x])
                layered[y, x] += max(float(gradient[0, k, y, x]), 0) * float(maps[0, k, y, x])
    assert_allclose(grad_cam(maps, gradient).numpy(), np.maximum(plain, 0), rtol=1e-5, atol=1e-6)
    assert_allclose(layer_cam(maps, gradient).numpy(), np.maximum(layered, 0), rtol=1e-5, atol=1e-6)


def test_an_explanation_by_hand(known):
    # Channel 0 is 1 in the cell (2, 3) of P2 and 0.5 elsewhere, channel 1 is 0.25, channel 2 is 0.
    pixels = torch.zeros(1, 3, 16, 32)
    pixels[:, 0] = 0.5
    pixels[:, 0, 8:12, 12:16] = 1
    pixels[:, 1] = 0.25
    found = explain(known(), ImageBatch(pixels, ((16, 32),)), score=0.5)
    assert found.explained.tolist() == [True, True]
    # Of the log-odds, dy/dA is 1 in one cell of P2's channel 0, and 1 in all 8 cells of P3's channel 1. Grad-CAM: P2 has
    # weight 1: the map itself, 31 x 0.5 + 1; P3 has weight 8: 8 x 0.25 in each of 8 cells.
    p2, p3 = 31 * 0.5 + 1, 8 * 8 * 0.25
    assert found.evidence[GRAD_CAM] == pytest.approx({"P2": p2 / (p2 + p3), "P3": p3 / (p2 + p3)})
    # LayerCAM: the one cell of P2, 1; 0.25 in each cell of P3.
    assert found.evidence[LAYER_CAM] == pytest.approx({"P2": 1 / 3, "P3": 2 / 3})
    assert_allclose(found.cams[LAYER_CAM][0, 0], 0.25, rtol=1e-6)
    assert np.unravel_index(found.cams[LAYER_CAM].argmax(), (16, 32))[0] in range(8, 12)
    # Mean squares over three channels.
    assert_allclose(found.attention["P2"][0, 0], (0.25 + 0.0625) / 3, rtol=1e-6)


def test_what_is_explained_is_chosen(known):
    # Log-odds: 1 x 0.4 for class 0, 8 cells x 0.5 = 4 for class 1.
    pixels = torch.zeros(1, 3, 16, 32)
    pixels[:, 0], pixels[:, 1] = 0.4, 0.5
    images = ImageBatch(pixels, ((16, 32),))
    strong = explain(known(), images, score=0.9)
    assert strong.explained.tolist() == [False, True]
    assert strong.evidence[LAYER_CAM]["P2"] == 0
    one_class = explain(known(), images, score=0.5, label=0)
    assert one_class.explained.tolist() == [True, False]
    assert one_class.evidence[LAYER_CAM]["P3"] == 0
    none_reach = explain(known(), images, score=0.999)
    assert none_reach.explained.tolist() == [True, True]  # the best ones instead
    nothing = explain(known(), images, label=7)
    assert nothing.explained.sum() == 0
    assert nothing.cams[GRAD_CAM].max() == 0
    assert nothing.evidence[GRAD_CAM] == {"P2": 0, "P3": 0}
    with pytest.raises(ValueError, match="one image at a time"):
        explain(known(), ImageBatch(pixels.expand(2, -1, -1, -1), ((16, 32),) * 2))


@pytest.mark.parametrize("head", ["retinanet", "fcos", "faster_rcnn", "cascade_rcnn", "reppoints"])
def test_every_kind_of_head_is_explained_and_left_alone(head):
    torch.manual_seed(0)
    options = {"hidden": 16, "proposals": 20} if "rcnn" in head else {"depth": 1}
    detector = build(f"{head}:mobilenet_v2", width=0.25, channels=16, classes=("a", "b"), **options).eval()
    pixels = torch.randint(0, 256, (1, 3, 75, 97), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    detector.head.suppression = type(detector.head.suppression)(score=0.0)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    found = explain(detector, ImageBatch(pixels, ((75, 97),)), score=0.0)
    assert all(p.grad is None for p in detector.parameters())
    assert_close(dict(detector.state_dict()), before, rtol=0, atol=0)
    assert found.explained.all()
    assert len(found.found) > 0
    for heat in (*found.cams.values(), *found.attention.values()):
        assert heat.shape == (75, 97)
        assert np.isfinite(heat).all()
        assert heat.min() >= 0
    assert found.cams[LAYER_CAM].max() > 0
    assert sum(found.evidence[LAYER_CAM].values()) == pytest.approx(1)


def test_level_names():
    assert level_names([FeatureSpec(8, 2), FeatureSpec(8, 4), FeatureSpec(8, 64), FeatureSpec(8, 6)]) == [
        "P1",
        "P2",
        "P6",
        "P2.58",
    ]
