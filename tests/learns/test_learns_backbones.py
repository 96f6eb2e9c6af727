"""Backbones with parts of their own kind learn: channel shuffles, windows."""

from __future__ import annotations

import pytest
import torch

from flyspeck.models.build import build
from flyspeck.models.detector import Detector


@pytest.mark.parametrize(
    ("name", "options"), [("fcos:shufflenet_v2", {}), ("fcos:swin_t", {"backbone_options": {"stochastic_depth": 0.0}})]
)
def test_a_detector_on_it_learns(name, options, learn, squares, pixel_norm):
    torch.manual_seed(0)
    detector = build(
        name, classes=squares.classes, pixel_norm=pixel_norm, width=0.125, channels=32, depth=1, levels="2-5", **options
    )
    assert isinstance(detector, Detector)
    assert learn(detector, steps=40, lr=5e-3) > 0.6
