"""Squares of 2 and 3 px on pyramids from stride 2 (`levels: 1-5`): every object has cells of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.layers import group_norm

# A square of 2 px may lie between the points of stride 2 too: FCOS needs a reach, as at stride 4.
OPTIONS: dict[str, dict[str, Any]] = {
    "fcos:bh_resnet14": {"reach": 0.5, "quality": "iou"},
    "retinanet:mobilenet_v2": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_specks_are_learnt_at_stride_2(name, learn, pixel_norm, specks):
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 0.25, "channels": 16, "depth": 1, "norm": group_norm, **OPTIONS[name]}
    detector = build(name, classes=specks.classes, pixel_norm=pixel_norm, levels="1-5", **small)
    assert isinstance(detector, Detector)
    assert [f.stride for f in detector.features] == [2, 4, 8, 16, 32]
    assert learn(detector, on=specks, steps=80) > 0.8
