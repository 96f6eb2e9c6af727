"""RFB Net: an SSD with receptive fields of several sizes. Liu, Huang, Wang, ECCV 2018, arXiv:1711.07767.

A receptive field block (`ReceptiveField`) sends a map through branches of ever larger kernels, each ended by a 3x3
convolution whose dilation grows with the kernel (the eccentricity of a field), joins them by a 1x1 convolution and adds a
shortcut. The block RFB-s has smaller kernels and one branch more, for the first map, where the smallest objects are.

* On VGG16: RFB-s in place of SSD's L2Norm on conv4_3, an RFB on fc7, two RFBs of stride 2, two plain layers; 3x3 predictors.
* On any other backbone, as on MobileNetV1: RFB-s on the last map but one, the last map as it is, a narrow RFB of stride 2
  and three plain layers of stride 2; depthwise dilated convolutions, 1x1 predictors.

Structure and numbers are the paper's and those of its implementation (GOATmessi8/RFBNet, MIT), of its first published
version: later ones have a branch less in the RFB, and 42.76 M. Counts at 300x300 with 80 classes and background, by the
`ptflops` convention, beside those that Mudassar and Mukhopadhyay (BMVC 2019, Table 3) print: VGG16 45.104 M and 39.917 G
(45.1, 39.9), MobileNetV1 7.678 M and 1.565 G (7.7, 1.6).

Deviations are SSD's (`flyspeck.models.heads.ssd`): off 300x300 priors keep their pixels, priors under ignore regions learn
nothing, background is the last class; where an image is so small that a map has fewer than 3x3 cells, it is padded before a
convolution that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import DefaultBoxes, SSDHead, at_least_3x3, ssd_sources, ssd_top
from flyspeck.models.heads.ssd_tables import SSDConfiguration
from flyspeck.models.postprocess import Suppression
from flyspeck.types import FeatureSpec
from flyspeck_lab.comparators.one_configuration import only_base

_RATIOS = ((1.0, 2.0, 3.0),) * 4 + ((1.0, 2.0),) * 2
VGG16 = SSDConfiguration(
    steps=(8, 16, 32, 64, 100, 300), sizes=(21, 45, 99, 153, 207, 261, 315), ratios=_RATIOS, extras=""
)
"""Priors for COCO."""
MOBILENET = SSDConfiguration(
    steps=(16, 32, 64, 100, 150, 300), sizes=(45, 90, 135, 180, 225, 270, 315), ratios=_RATIOS, extras=""
)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 1,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, BN, and ReLU where it is asked for; padded so that stride 1 keeps the size."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    same = tuple(side // 2 * dilation for side in sides)
    around = same if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, sides, stride, around, dilation, groups, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []))


class ReceptiveField(nn.Module):
    """Branches side by side, joined by a 1x1 convolution, plus a shortcut, then ReLU."""

    def __init__(self, branches: Sequence[nn.Module], widths: Sequence[int], outputs: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.branches, self.shortcut = nn.ModuleList(branches), shortcut
        self.join = conv_norm(sum(widths), outputs, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H / stride, W / stride)`, rounded up."""
        return (self.join(torch.cat([branch(x) for branch in self.branches], 1)) + self.shortcut(x)).relu()


def rfb(inputs: int, outputs: int, *, stride: int = 1) -> ReceptiveField:
    """Three branches: 1x1, 3x3, and 5x5 as two of 3x3; their last convolutions are dilated by 1, 2 and 3."""
    n = _eighth(inputs)
    more = n // 2 * 3
    branches = [
        nn.Sequential(conv_norm(inputs, 2 * n, stride=stride), conv_norm(2 * n, 2 * n, 3, relu=False)),
        nn.Sequential(
            conv_norm(inputs, n),
            conv_norm(n, 2 * n, 3, stride=stride),
            conv_norm(2 * n, 2 * n, 3, dilation=2, relu=False),
        ),
        nn.Sequential(
            conv_norm(inputs, n),
            conv_norm(n, more, 3),
            conv_norm(more, 2 * n, 3, stride=stride),
            conv_norm(2 * n, 2 * n, 3, dilation=3, relu=False),
        ),
    ]
    return ReceptiveField(branches, [2 * n] * 3, outputs, conv_norm(inputs, outputs, stride=stride, relu=False))


def rfb_s(channels: int, *, light: bool) -> ReceptiveField:
    """Four branches of kernels 1x1, 3x1, 1x3 and 3x3 (1x3, then 3x1), dilated by 1, 3, 3 and 5. `light`: depthwise there, and
    nothing on the shortcut.
    """
    n = max(4, channels // 4)

    def last(dilation: int) -> nn.Module:
        return conv_norm(n, n, 3, dilation=dilation, groups=n if light else 1, relu=False)

    branches = [
        nn.Sequential(conv_norm(channels, n), last(1)),
        nn.Sequential(conv_norm(channels, n), conv_norm(n, n, (3, 1)), last(3)),
        nn.Sequential(conv_norm(channels, n), conv_norm(n, n, (1, 3)), last(3)),
        nn.Sequential(
            conv_norm(channels, n // 2),
            conv_norm(n // 2, n // 4 * 3, (1, 3)),
            conv_norm(n // 4 * 3, n, (3, 1)),
            last(5),
        ),
    ]
    shortcut = nn.Identity() if light else conv_norm(channels, channels, relu=False)
    return ReceptiveField(branches, [n] * 4, channels, shortcut)


def rfb_light(inputs: int, outputs: int) -> ReceptiveField:
    """Of stride 2, two branches: 3x3 as 1x3 and 3x1, and 5x5 as two of 3x3; then depthwise, dilated by 3 and 5."""
    n = _eighth(inputs)
    m = n // 2 * 3
    branches = [
        nn.Sequential(
            conv_norm(inputs, n),
            conv_norm(n, m, (1, 3)),
            # The kernel has one column, which a stride of 2 passes over every second of.
            conv_norm(m, m, (3, 1), stride=2),
            conv_norm(m, m, 3, dilation=3, groups=m, relu=False),
        ),
        nn.Sequential(
            conv_norm(inputs, n),
            conv_norm(n, m, 3),
            conv_norm(m, m, 3, stride=2),
            conv_norm(m, m, 3, dilation=5, groups=m, relu=False),
        ),
    ]
    return ReceptiveField(branches, [m] * 2, outputs, conv_norm(inputs, outputs, stride=2, relu=False))


def _eighth(channels: int) -> int:
    """An even share of the channels, 2 at least: a branch's width is one and a half of it."""
    return max(2, channels // 16 * 2)


class RFBNeck(nn.Module):
    """The backbone's two maps to the predictors' six: see the head of this module."""

    def __init__(self, features: Sequence[FeatureSpec], *, plain: bool, width: float) -> None:
        super().__init__()
        first, last = features
        c512, c256, c128 = (max(16, round(c * width)) for c in (512, 256, 128))
        self.first = rfb_s(first.channels, light=not plain)
        self.last: nn.Module = rfb(last.channels, last.channels) if plain else nn.Identity()
        if plain:
            layers = [rfb(last.channels, c512, stride=2), rfb(c512, c256, stride=2)]
            layers += [_plain(c256, c128, c256, stride=1), _plain(c256, c128, c256, stride=1)]
            channels, self.padded = (c512, c256, c256, c256), (False, False, True, True)
        else:
            layers = [rfb_light(last.channels, c512)]
            layers += [_plain(a, b, c, stride=2) for a, b, c in
                       ((c512, c128, c256), (c256, c128, c256), (c256, max(8, c128 // 2), c128))]  # fmt: skip
            channels, self.padded = (c512, c256, c256, c128), (False,) * 4
        self.layers = nn.ModuleList(layers)
        strides = [last.stride * 2 ** (i + 1) for i in range(4)]
        self.features = (first, last, *(FeatureSpec(c, s) for c, s in zip(channels, strides, strict=True)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps to predictor maps, finest first."""
        x = self.last(maps[1])
        levels = [self.first(maps[0]), x]
        for layer, padded in zip(self.layers, self.padded, strict=True):
            x = layer(at_least_3x3(x) if padded else x)
            levels.append(x)
        return levels


def _plain(inputs: int, narrow: int, outputs: int, *, stride: int) -> nn.Sequential:
    """1x1, then 3x3: of stride 2 padded, of stride 1 not."""
    return nn.Sequential(
        conv_norm(inputs, narrow), conv_norm(narrow, outputs, 3, stride=stride, padding=1 if stride == 2 else 0)
    )


find_configuration = only_base("RFB Net")


def rfb_net(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    plain: bool = False,
    width: float | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """RFB Net on the last maps of `backbone`.

    `plain` takes VGG16's blocks and priors, otherwise MobileNetV1's. `width` scales the layers after the backbone; None
    takes the backbone's own (its last map's channels over 1024, at most 1).
    """
    find_configuration(configuration)
    backbone = need_stages(backbone, "RFB Net", where="model.name")
    if plain:
        ssd_top(backbone)
    backbone.outputs = ssd_sources(backbone, plain=plain)
    if width is None:
        width = min(1.0, backbone.features[-1].channels / 1024)
    neck = RFBNeck(backbone.features, plain=plain, width=width)
    rfb_head = SSDHead(
        neck.features,
        num_classes=len(classes),
        priors=DefaultBoxes(VGG16 if plain else MOBILENET),
        suppression=suppression,
        kernel=3 if plain else 1,
        **head,
    )
    return Detector(backbone, neck, rfb_head, pixel_norm=pixel_norm, classes=classes, divisor=1)
