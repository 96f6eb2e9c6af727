"""Everything composes: a training step of every backbone x neck x head at small widths, in one run of each backbone.

The whole grid is for the slow run; the quick one has every pair of backbone and neck, backbone and head, neck and head.
"""

from __future__ import annotations

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS
from one_step import finite_step, train_a_step

DEFORMABLE = ("tinaface_gn_dcn",)  # changes its backbone, which must have bottlenecks: no part of the grid
HEADS = [name for name, entry in DETECTORS.items() if entry.has_neck and name not in DEFORMABLE]


def some(backbone_name: str) -> list[tuple[str, str]]:
    """Every head once, the necks in turn, from another one for each backbone."""
    start, necks = list(BACKBONES).index(backbone_name), list(NECKS)
    return [(necks[(start + i) % len(necks)], head) for i, head in enumerate(HEADS)]


def test_the_few_have_every_pair():
    assert len(HEADS) >= len(NECKS)  # so that each backbone meets each neck
    assert {pair for name in BACKBONES for pair in some(name)} == {(n, h) for n in NECKS for h in HEADS}


@pytest.mark.parametrize("backbone_name", BACKBONES)
def test_every_neck_and_every_head_trains_a_step_on(backbone_name):
    train_a_step(backbone_name, some(backbone_name))


@pytest.mark.slow
@pytest.mark.parametrize("backbone_name", BACKBONES)
def test_every_neck_with_every_head_trains_a_step_on(backbone_name):
    train_a_step(backbone_name, [(neck, head) for neck in NECKS for head in HEADS])


@pytest.mark.parametrize("head", DEFORMABLE)
def test_deformable_heads_train_on_bottlenecks_and_refuse_other_blocks(head):
    torch.manual_seed(0)
    detector = build(f"{head}:resnet50", width=1 / 16, channels=16, classes=("a", "b"))
    assert isinstance(detector, Detector)
    finite_step(detector)
    with pytest.raises(UserError, match="no bottleneck"):
        build(f"{head}:resnet18", width=1 / 16)
