"""SSD learns, with one path and with two, at small widths on 160x128."""

from __future__ import annotations

import pytest
import torch

from flyspeck.models.backbones.mobilenet_v1 import mobilenet_v1
from flyspeck.models.heads.ssd import ssd


def build(configuration, pixel_norm, classes):
    torch.manual_seed(0)
    backbone = mobilenet_v1(width=0.25)
    return ssd(backbone, classes=classes, pixel_norm=pixel_norm, configuration=configuration)


def test_ssd_learns(learn, small_backbone, pixel_norm, squares):
    model = ssd(small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, configuration="Early")
    assert learn(model) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["S1L0", "S1L0-DualPath19-10-C", "S1L0-DualPath19-10-S", "S2L4-6"])
def test_other_configurations_learn(learn, pixel_norm, squares, configuration):
    assert learn(build(configuration, pixel_norm, squares.classes), steps=150) > 0.7
