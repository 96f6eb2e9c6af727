"""The stated rule by which a first convolution is widened."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.resnet import resnet18
from flyspeck.models.bands import input_bands, input_conv, widen, widened
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.zoo import BACKBONES
from flyspeck.types import ImageBatch

BANDS = (2, 4, 5, 8, 13)


@pytest.mark.parametrize("bands", BANDS)
def test_a_constant_image_gives_the_same_activation(bands: int) -> None:
    torch.manual_seed(0)
    backbone = resnet18(width=0.25).eval()
    before = [m.detach() for m in backbone(torch.full((1, 3, 64, 64), 0.7))]
    widen(backbone, bands, pretrained=True)
    assert input_bands(backbone) == bands
    for now, then in zip(backbone(torch.full((1, bands, 64, 64), 0.7)), before, strict=True):
        assert_close(now, then, rtol=1e-4, atol=1e-5)


def test_the_rule_by_hand() -> None:
    weight = torch.tensor([3.0, 6.0, 9.0]).view(1, 3, 1, 1)
    assert_close(widened(weight, 2).flatten(), torch.tensor([9.0, 9.0]))  # the mean, 6, times 3 / 2
    assert_close(widened(weight, 4).flatten(), torch.tensor([2.25, 4.5, 6.75, 4.5]))  # 3, 6, 9, 6 times 3 / 4
    assert_close(widened(weight, 6).flatten(), torch.tensor([1.5, 3.0, 4.5, 3.0, 3.0, 3.0]))


def test_without_weights_the_variance_stays() -> None:
    torch.manual_seed(0)
    backbone = resnet18()
    before = input_conv(backbone)[1].weight.std()
    widen(backbone, 12, pretrained=False)
    after = input_conv(backbone)[1].weight.std()
    assert_close(after / before, torch.tensor(0.5), atol=0.02, rtol=0)  # sqrt(3 / 12)


FAMILIES = ("resnet18", "bh_hrnet18", "mobilenet_v1", "mobilenet_v2", "shufflenet_v2", "swin_t", "vgg16")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAMILIES else pytest.mark.slow) for n in sorted(BACKBONES)],
)
def test_every_backbone_takes_more_bands(name: str) -> None:
    with torch.device("meta"):
        model = build(f"fcos:{name}", pixel_norm=PixelNorm([0.5] * 5, [0.2] * 5), width=0.5, channels=16)
        assert isinstance(model, Detector)
        assert input_bands(model.backbone) == 5
        images = ImageBatch(torch.zeros(1, 5, 64, 64), ((64, 64),))
        maps = model.pyramid(images)
    assert len(maps) == len(model.features)


def test_one_and_three_bands_change_nothing() -> None:
    for mean in ([0.5], [0.5] * 3):
        torch.manual_seed(0)
        model = build("fcos:resnet18", pixel_norm=PixelNorm(mean, mean), width=0.25, channels=16)
        assert isinstance(model, Detector)
        torch.manual_seed(0)
        plain = build("fcos:resnet18", width=0.25, channels=16)
        own, other = input_conv(model.backbone)[1], input_conv(plain.backbone)[1]
        assert torch.equal(own.weight, other.weight)


@pytest.mark.parametrize("first", [nn.Conv2d(1, 4, 3), nn.Conv2d(3, 6, 3, groups=3), nn.Linear(2, 2)])
def test_what_cannot_be_widened_says_so(first: nn.Module) -> None:
    with pytest.raises(UserError, match=r"bands.*set data\.channels to 1 or 3"):
        widen(nn.Sequential(first), 4, pretrained=True)
