"""Theoretical receptive fields, against published ones and against what a gradient really reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build_backbone
from flyspeck.models.receptive import RESNET50, chain_fields, receptive_fields
from flyspeck.types import FeatureSpec


def test_resnet50_as_the_authors_of_rfla_list_it() -> None:
    fields = receptive_fields(build_backbone("resnet50", width=0.125), [4, 8, 16, 32, 64, 128])
    assert fields == (35, 91, 267, 427, 555, 811)


def test_branches_get_resnet50s() -> None:
    backbone = build_backbone("hrnet18", width=0.25)
    assert chain_fields(backbone) is None
    assert receptive_fields(backbone, [4, 8, 16, 32, 64]) == tuple(map(float, list(RESNET50.values())[:5]))


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg16"])
def test_the_finest_map_sees_what_a_gradient_reaches(name: str) -> None:
    backbone = build_backbone(name, width=0.125).double().eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):  # positive weights: nothing cancels, no ReLU closes
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    image = torch.ones(1, 3, 96, 96, dtype=torch.double, requires_grad=True)
    image_map = backbone(image)[0]
    image_map[0, :, 12, 12].sum().backward()
    assert image.grad is not None
    reached = image.grad[0].abs().sum(0)[:, :].amax(0).nonzero()
    field = receptive_fields(backbone, [4])[0]
    seen = int(reached.max() - reached.min()) + 1
    # Max pools pass the gradient to one of equal inputs, so that a stem with one may reach a little less.
    assert field - (4 if name in ("resnet18", "vgg16") else 0) <= seen <= field


def test_what_runs_beside_something_else_is_noticed() -> None:
    stages = {"stem": nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), "stage1": nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1))}
    wrong = StagedBackbone(stages, {"stage1": FeatureSpec(4, 8)}, outputs=("stage1",))
    assert chain_fields(wrong) is None
