"""Evaluation must see what training saw: once statistics have settled, both modes have the same losses, whatever is normalised.

A batch norm that several pyramid levels share breaks this: every level is normalised by its own batch in training, and by one
mixture of all levels in evaluation.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.layers import NORMS, LevelNorm, group_norm, per_level
from flyspeck.models.weights import levels_from_shared
from flyspeck.models.zoo import DETECTORS, NECKS
from flyspeck.types import ImageBatch, Targets

SIDE, COUNT = 128, 4
TRANSFORMERS = ("dfine", "rtdetrv2")
"""Their layers are a library's, their losses draw denoising queries: tests/models/detr."""
HEADS = [name for name, entry in DETECTORS.items() if entry.has_neck and name not in TRANSFORMERS]
SMALL = {"depth": 1, "hidden": 32}


def batch() -> tuple[ImageBatch, list[Targets]]:
    """Images of different brightness and grain, with bright boxes of 6 to 40 px."""
    generator = torch.Generator().manual_seed(5)
    pixels, truth = [], []
    for i in range(COUNT):
        image = torch.rand(3, SIDE, SIDE, generator=generator) * (20 + 50 * i)
        boxes = []
        for side in (6, 10, 20, 40):
            x, y = (torch.rand(2, generator=generator) * (SIDE - side)).round().int().tolist()
            image[:, y : y + side, x : x + side] = 255 - 10 * i
            boxes.append([x, y, x + side, y + side])
        pixels.append(image.to(torch.uint8))
        none = torch.zeros(len(boxes), dtype=torch.bool)
        truth.append(Targets(torch.tensor(boxes, dtype=torch.float32), torch.arange(len(boxes)) % 2, none))
    return ImageBatch(torch.stack(pixels), ((SIDE, SIDE),) * COUNT), truth


def detector(head: str, neck: str, norm: str) -> Detector:
    torch.manual_seed(0)
    backbone = {"hrfpn": "hrnet18"}.get(neck, "resnet50" if head == "tinaface_gn_dcn" else "mobilenet_v2")
    name = f"{head}:{backbone}:{neck}" if neck else f"{head}:{backbone}"
    own = {"hidden": SMALL["hidden"]} if DETECTORS[head].sections else {"depth": SMALL["depth"]}
    model = build(name, classes="ab", width=0.25, norm=NORMS[norm], channels=16, **own)
    assert isinstance(model, Detector)
    for layer in [*model.neck.modules(), *model.head.modules()]:
        # The usual start makes scores that hardly depend on the maps, and levels that are alike.
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.3, 3)
            nn.init.normal_(layer.bias)
    return model


def loss(model: Detector) -> float:
    torch.manual_seed(1)  # the samplers' draws
    images, truth = batch()
    return float(torch.stack([*model.losses(images, truth).values()]).sum())


@torch.no_grad()
def both_modes(model: Detector) -> tuple[float, float]:
    """The losses of one batch in training and in evaluation mode, after the statistics have settled on that batch."""
    values: dict[nn.modules.batchnorm._BatchNorm, int] = {}

    def count(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        values[norm] = inputs[0].numel() // inputs[0].shape[1]

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain mean of all steps
            module.register_forward_pre_hook(count)
    model.train()
    for _ in range(2):
        trained = loss(model)
    for norm, number in values.items():
        # PyTorch keeps the unbiased variance, and normalises a batch by the biased one.
        assert norm.running_var is not None
        norm.running_var *= (number - 1) / number
    return trained, loss(model.eval())


# Every head on its own neck, and every neck under one head.
PAIRS = [*((head, "") for head in HEADS), *(("retinanet", neck) for neck in NECKS)]


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize(("head", "neck"), PAIRS)
def test_both_modes_have_the_same_losses(head: str, neck: str, norm: str) -> None:
    trained, evaluated = both_modes(detector(head, neck, norm))
    assert evaluated == pytest.approx(trained, rel=0.02)  # proposals may change places


@pytest.mark.parametrize(("head", "neck"), PAIRS)
def test_no_batch_norm_meets_two_levels(head: str, neck: str) -> None:
    model = detector(head, neck, "bn").train()
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, *_: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(count)
    with torch.no_grad():
        loss(model)
    assert calls
    assert set(calls.values()) == {1}


def test_a_batch_norm_behind_a_shared_convolution_is_private_to_a_level() -> None:
    norm = per_level(nn.BatchNorm2d, 3)
    assert norm is not None
    layer = norm(8)
    assert isinstance(layer, LevelNorm)
    assert len({id(one) for one in layer.levels}) == 3
    assert per_level(None, 3) is None
    assert per_level(group_norm, 3) is group_norm


def test_weights_with_norms_shared_by_levels_load_into_private_ones() -> None:
    model = detector("reppoints", "", "bn")
    new = model.state_dict()
    first = {name: value for name, value in new.items() if not re.search(r"\.levels\.[1-9]", name)}
    old = {name.replace(".levels.0.", "."): value for name, value in first.items()}
    assert len(old) < len(new)
    filled = levels_from_shared(old, new)
    assert filled.keys() == new.keys()
    for name, value in filled.items():
        torch.testing.assert_close(value, first[re.sub(r"\.levels\.\d+\.", ".levels.0.", name)], rtol=0, atol=0)
    assert levels_from_shared(new, new) == new
