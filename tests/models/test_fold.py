"""Folded norms give the same maps and boxes, whatever the architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.models.backbones.freezing import freeze_norms
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet18
from flyspeck.models.detector import PixelNorm
from flyspeck.models.fold import fold_norms
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.types import ImageBatch


def shake(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return model.eval()


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2], ids=["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_backbones(build: type, frozen: bool) -> None:
    backbone = shake(build(width=0.25))
    if frozen:
        freeze_norms(backbone)
        backbone.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = backbone(x)
        norms = sum("BatchNorm" in type(m).__name__ for m in backbone.modules())
        assert fold_norms(backbone, lambda: backbone(x)) == norms > 10
        after = backbone(x)
    assert not any("BatchNorm" in type(m).__name__ for m in backbone.modules())
    for a, b in zip(after, before, strict=True):
        assert_close(a, b, atol=1e-3 * float(b.abs().max()), rtol=1e-3)


def test_a_shared_tower_keeps_its_private_norms() -> None:
    detector = shake(
        faster_rcnn(
            mobilenet_v2(width=0.25),
            classes="ab",
            pixel_norm=PixelNorm([0.5], [0.2]),
            channels=16,
            hidden=32,
            norm=nn.BatchNorm2d,
        )
    )
    images = ImageBatch(torch.randint(0, 255, (1, 1, 64, 64), dtype=torch.uint8), ((64, 64),))
    folded = copy.deepcopy(detector)
    assert fold_norms(folded, lambda: folded.detect(images)) > 20  # type: ignore[operator]
    kept = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert kept == [f"head.rpn.tower.norms.{level}.0" for level in range(5)]
    for a, b in zip(folded.pyramid(images), detector.pyramid(images), strict=True):  # type: ignore[operator]
        assert_close(a, b, atol=1e-3 * float(b.detach().abs().max()), rtol=1e-3)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_norms(resnet18(width=0.25), lambda: None)
