"""Pelee: PeleeNet and an SSD of residual prediction blocks. Wang, Li, Ling, NeurIPS 2018, arXiv:1804.06882.

* PeleeNet (`peleenet`): a stem of stride 4 whose two ways (3x3 and pooling) are joined; dense layers with two ways of
  growth (one 3x3, and two 3x3 in a row) of 16 channels each; bottlenecks no wider than half of what comes in; transitions
  that keep the channels; conventional convolutions, norm and activation after each.
* The detector (`pelee`) predicts on 19x19, 10x10, 5x5, 3x3 and 1x1, none finer, through a residual block for each
  (`Residual`) and 1x1 predictors; two scales of priors on 19x19.

Structure and numbers are the paper's and those of its implementation (Robert-JunWang/Pelee and PeleeNet, Apache-2.0).
Counts at 304x304 with background: 80 classes 5.981 M and 1.284 G of products (the paper: 1,290 M); 20 classes 5.426 M and
1.205 G (5.43 M, 1,210 M). The table in which the stride-elimination paper compares with it (Table 3: 5.4 M, 1.3 G) has the
parameters of 20 classes and the cost of 80.

Deviations: the layers after PeleeNet have no norms, as released (the paper does not say). Others are SSD's
(`flyspeck.models.heads.ssd`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.models.backbones.resnet import scaled
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import DefaultBoxes, SSDHead, at_least_3x3, ssd_sources
from flyspeck.models.heads.ssd_tables import SSDConfiguration
from flyspeck.models.postprocess import Suppression
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec
from flyspeck_lab.comparators.one_configuration import only_base
from flyspeck_lab.comparators.rfb_net import conv_norm

PRIORS = SSDConfiguration(
    steps=(16, 16, 30.4, 60.8, 304 / 3, 304),
    sizes=tuple(304 * share for share in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
    ratios=((1.0, 2.0, 3.0),) * 6,
    extras="",
    image=304,
)
"""For COCO."""


class Stem(nn.Module):
    """3x3 of stride 2, then 1x1 and 3x3 of stride 2 beside a pooling, joined by 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm(3, channels, 3, stride=2)
        self.way = nn.Sequential(conv_norm(channels, channels // 2), conv_norm(channels // 2, channels, 3, stride=2))
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.join = conv_norm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images to maps of a quarter of the size, rounded up."""
        x = self.first(x)
        return self.join(torch.cat([self.pool(x), self.way(x)], 1))


class TwoWays(nn.Module):
    """A dense layer: what comes in, and `growth` channels that see 3x3 of it and `growth` that see 5x5."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        narrow = growth * bottleneck // 4 * 4
        if narrow > inputs / 2:
            narrow = inputs // 8 * 4
        narrow = max(4, narrow)
        self.near = nn.Sequential(conv_norm(inputs, narrow), conv_norm(narrow, growth, 3))
        self.far = nn.Sequential(conv_norm(inputs, narrow), conv_norm(narrow, growth, 3), conv_norm(growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C + 2 growth, H, W)`."""
        return torch.cat([x, self.near(x), self.far(x)], 1)


def peleenet(
    *,
    width: float = 1.0,
    weights: str | Path | None = None,
    outputs: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
) -> StagedBackbone:
    """PeleeNet: C2..C5 of 128, 256, 512, 704 channels at strides 4, 8, 16, 32. `weights` is the path of a file of
    flyspeck's own.
    """
    growth = scaled(16, width)
    channels = scaled(32, width)
    stages: dict[str, nn.Module] = {"stem": Stem(channels)}
    specs = {"stem": FeatureSpec(channels, 4)}
    for number, (layers, bottleneck) in enumerate(zip((3, 4, 8, 6), (1, 2, 4, 4), strict=True), 1):
        pool = [nn.AvgPool2d(2, 2, ceil_mode=True)] if number > 1 else []
        dense = [TwoWays(channels + 2 * growth * i, growth, bottleneck) for i in range(layers)]
        channels += 2 * growth * layers
        stages[f"stage{number}"] = nn.Sequential(*pool, *dense, conv_norm(channels, channels))
        specs[f"stage{number}"] = FeatureSpec(channels, 2 ** (number + 1))
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, Path(weights))
    return backbone


class Residual(nn.Module):
    """What stands before each predictor: 1x1, 3x3, 1x1 of half the width, plus 1x1, then ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.straight = conv_norm(inputs, outputs, relu=False)
        self.way = nn.Sequential(
            conv_norm(inputs, half), conv_norm(half, half, 3), conv_norm(half, outputs, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H, W)`."""
        return (self.straight(x) + self.way(x)).relu()


class PeleeNeck(nn.Module):
    """The backbone's last two maps to the six predictors', of which the first two see the same."""

    def __init__(self, features: Sequence[FeatureSpec], *, width: float) -> None:
        super().__init__()
        c256, c128 = (max(8, round(c * width)) for c in (256, 128))
        before, last = features
        self.extras = nn.ModuleList(
            [_extra(last.channels, c256, c256, stride=2), *(_extra(c256, c128, c256, stride=1) for _ in range(2))]
        )
        sources = [before, last, *(FeatureSpec(c256, last.stride * 2 ** (i + 1)) for i in range(3))]
        self.blocks = nn.ModuleList(Residual(source.channels, c256) for source in sources)
        self.features = tuple(FeatureSpec(c256, source.stride) for source in (before, *sources))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps to predictor maps, finest first."""
        sources, x = list(maps), maps[-1]
        for number, extra in enumerate(self.extras):
            x = extra(x if number == 0 else at_least_3x3(x))
            sources.append(x)
        levels = [block(source) for block, source in zip(self.blocks, sources, strict=True)]
        return [levels[0], *levels]


def _extra(inputs: int, narrow: int, outputs: int, *, stride: int) -> nn.Sequential:
    """1x1, then 3x3: of stride 2 padded, of stride 1 not; with biases, without norms."""
    layers = (nn.Conv2d(inputs, narrow, 1), nn.Conv2d(narrow, outputs, 3, stride, 1 if stride == 2 else 0))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1], nn.ReLU(inplace=True))


find_configuration = only_base("Pelee")


def pelee(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    width: float | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """Pelee on the last two maps of `backbone`: any chain of stages, PeleeNet in the paper.

    `width` scales the layers after the backbone; None takes the backbone's own (its last map's channels over 704, at most 1).
    """
    find_configuration(configuration)
    backbone = need_stages(backbone, "Pelee", where="model.name")
    backbone.outputs = ssd_sources(backbone, plain=False)
    if width is None:
        width = min(1.0, backbone.features[-1].channels / 704)
    neck = PeleeNeck(backbone.features, width=width)
    pelee_head = SSDHead(
        neck.features,
        num_classes=len(classes),
        priors=DefaultBoxes(PRIORS),
        suppression=suppression,
        kernel=1,
        **head,
    )
    return Detector(backbone, neck, pelee_head, pixel_norm=pixel_norm, classes=classes, divisor=1)
