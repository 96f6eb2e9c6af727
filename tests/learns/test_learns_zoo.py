"""The whole zoo, slowly: every listed detector learns at small width, and trains one step at its own."""

from __future__ import annotations

import pytest
import torch

from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.listed import LISTED
from flyspeck.models.names import parse_name
from flyspeck.models.zoo import DETECTORS

NAMES = [m.name for m in LISTED if parse_name(m.name).detector is not None and not parse_name(m.name).dynamic]
WITH_NECK = [name for name in NAMES if DETECTORS[parse_name(name).detector].has_neck]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NECK)
def test_every_listed_detector_learns_at_small_width(name, learn, squares, pixel_norm):
    torch.manual_seed(0)
    options = {"proposals": 100, "train_proposals": 100, "hidden": 64} if "rcnn" in name else {"depth": 2}
    detector = build(name, classes=squares.classes, pixel_norm=pixel_norm, width=0.125, channels=32, **options)
    assert isinstance(detector, Detector)
    assert learn(detector, steps=150, lr=2e-3) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NECK)
def test_every_listed_detector_trains_a_step_at_its_own_width(name, squares, pixel_norm):
    torch.manual_seed(0)
    detector = build(name, classes=squares.classes, pixel_norm=pixel_norm)
    total = torch.stack(list(detector.losses(squares.images, squares.targets).values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
