"""The comparators of the fusion-factor paper's tables learn, at 32 channels on 160x128."""

from __future__ import annotations

import pytest
import torch

from flyspeck.models.detector import PixelNorm
from flyspeck_lab.comparators.free_anchor import free_anchor
from flyspeck_lab.comparators.grid_rcnn import grid_rcnn
from flyspeck_lab.comparators.libra_rcnn import libra_rcnn
from learning import build_small_backbone, learn_on, make_squares

TWO_STAGES = {
    "hidden": 64,
    "samples": 64,
    "proposals": 50,
    "train_proposals": 50,
    "pool": {"output": 5, "canonical": 64.0},
    "rpn": {"samples": 64},
}
GRID = {"point_channels": 8, "grid_depth": 2, "max_grids": 32}


@pytest.mark.parametrize(
    ("builder", "options", "steps"),
    [(free_anchor, {"depth": 1}, 70), (libra_rcnn, TWO_STAGES, 70), (grid_rcnn, {**TWO_STAGES, **GRID}, 60)],
)
def test_it_learns(builder, options, steps):
    squares, pixel_norm = make_squares(), PixelNorm((0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    detector = builder(build_small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, channels=32, **options)
    assert learn_on(squares, detector, steps=steps) > 0.7
