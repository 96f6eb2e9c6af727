"""ResNet-18/34/50/101/152 (He et al., arXiv:1512.03385) and ResNeXt-50 as staged backbones, of torchvision's own blocks.

Stages: `stem` (7x7 stride 2, BN, ReLU, 3x3 max pool stride 2), `stage1` … `stage4` = torchvision's layer1 … layer4;
C2..C5 lie at strides 4, 8, 16, 32. torchvision's weights load by their name (`weights="IMAGENET1K_V1"`).
The stride sits on the 3x3 of a bottleneck ("pytorch style"; the papers' counts need it).

`staged_resnet` takes any depth and stride per stage: `bottom_heavy.bh_resnet50` is one call of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")


def resnet18(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNet-18; see `resnet50` for the arguments. C2..C5 have 64, 128, 256, 512 channels."""
    return _named("resnet18", BasicBlock, (2, 2, 2, 2), width=width, weights=weights, outputs=outputs)


def resnet34(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNet-34; see `resnet50` for the arguments. C2..C5 have 64, 128, 256, 512 channels."""
    return _named("resnet34", BasicBlock, (3, 4, 6, 3), width=width, weights=weights, outputs=outputs)


def resnet50(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNet-50: 23,508,032 parameters, C2..C5 of 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32.

    `width` scales every channel count (0.25: 16-channel stem). `weights` is a torchvision weights name
    (`IMAGENET1K_V1`) or the path of a local file. `outputs` are the stages whose outputs are feature maps.
    """
    return _named("resnet50", Bottleneck, (3, 4, 6, 3), width=width, weights=weights, outputs=outputs)


def resnet101(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNet-101; see `resnet50` for the arguments."""
    return _named("resnet101", Bottleneck, (3, 4, 23, 3), width=width, weights=weights, outputs=outputs)


def resnet152(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNet-152; see `resnet50` for the arguments."""
    return _named("resnet152", Bottleneck, (3, 8, 36, 3), width=width, weights=weights, outputs=outputs)


def resnext50(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ResNeXt-50 32x4d (Xie et al., arXiv:1611.05431); see `resnet50` for the arguments.

    `width` below 1 takes fewer groups (a power of two) of four channels in stage 1.
    """
    groups = 2 ** min(5, max(0, math.floor(math.log2(32 * width))))
    name = "resnext50_32x4d"
    return _named(name, Bottleneck, (3, 4, 6, 3), width=width, weights=weights, outputs=outputs, groups=groups)


def _named(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    *,
    width: float,
    weights: str | Path | None,
    outputs: Sequence[str],
    groups: int = 1,
) -> StagedBackbone:
    backbone = staged_resnet(block, depths, width=width, outputs=outputs, groups=groups)
    if weights is not None:
        load_backbone(backbone, weights, torchvision_model=name, rename=rename_torchvision)
    return backbone


def staged_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    *,
    strides: Sequence[int] = (1, 2, 2, 2),
    stem: nn.Module | None = None,
    stem_stride: int = 4,
    width: float = 1.0,
    outputs: Sequence[str] = STAGES,
    groups: int = 1,
) -> StagedBackbone:
    """A ResNet of `depths[i]` blocks in stage `i`, the first of which has stride `strides[i]`.

    `stem` (default: the 7x7 one) maps 3 to `round(64 * width)` channels at `stem_stride`. `groups` above
    1 groups the 3x3 of a bottleneck, which is then twice as wide (ResNeXt).
    """
    channels = scaled(64, width)
    stages: dict[str, nn.Module] = {"stem": imagenet_stem(channels) if stem is None else stem}
    specs = {"stem": FeatureSpec(channels, stem_stride)}
    planes, stride = channels, stem_stride
    inplanes = channels
    for name, depth, step in zip(STAGES, depths, strides, strict=True):
        stages[name] = residual_stage(block, inplanes, planes, depth, step, groups=groups)
        inplanes, stride = planes * block.expansion, stride * step
        specs[name] = FeatureSpec(inplanes, stride)
        planes *= 2
    init_resnet(*stages.values())
    return StagedBackbone(stages, specs, outputs=tuple(outputs))


def scaled(channels: int, width: float) -> int:
    """`channels * width`, to the nearest multiple of 4 and at least 4."""
    return max(4, int(channels * width / 4 + 0.5) * 4)


def imagenet_stem(channels: int) -> nn.Sequential:
    """7x7 convolution of stride 2, BN, ReLU, 3x3 max pool of stride 2: total stride 4."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck], inplanes: int, planes: int, depth: int, stride: int, *, groups: int = 1
) -> nn.Sequential:
    """`depth` blocks; the first takes `inplanes` channels at `stride`, with a 1x1 projection where shapes differ."""
    # torchvision's bottleneck is groups x int(planes x base_width / 64) wide: 2 x planes with this base width.
    base_width = 64 if groups == 1 else 128 // groups
    out = planes * block.expansion
    projection = None
    if stride != 1 or inplanes != out:
        projection = nn.Sequential(conv1x1(inplanes, out, stride), nn.BatchNorm2d(out))
    rest = [block(out, planes, groups=groups, base_width=base_width) for _ in range(depth - 1)]
    return nn.Sequential(block(inplanes, planes, stride, projection, groups, base_width), *rest)


def init_resnet(*modules: nn.Module) -> None:
    """He initialisation by fan-out of every convolution; norms start as the identity (torchvision's choice)."""
    for root in modules:
        for module in root.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def rename_torchvision(key: str) -> str | None:
    """torchvision's key to ours: `layer2.0.conv1.weight` to `stages.stage2.0.conv1.weight`; the classifier to None."""
    if key.startswith("fc."):
        return None
    for theirs, ours in (("conv1.", "stem.0."), ("bn1.", "stem.1."), ("layer", "stage")):
        if key.startswith(theirs):
            return f"stages.{ours}{key.removeprefix(theirs)}"
    return key
