"""EfficientNet-Lite (Tan and Le, arXiv:1905.11946; the Lite form: no squeeze-and-excite, ReLU6, stem and head not scaled).

Stages: `stem` (convolution of stride 2 and the first block: 16 channels), `stage1` (stride 4), `stage2` (8), `stage3` (16: two
widths of blocks), `stage4` (32). The last 1x1 convolution (1280) and the classifier are left out. Lite0 has 24, 40, 112, 320
channels at C2..C5, Lite2 24, 48, 120, 352.

TensorFlow's weights need its 'same' padding: at a stride of 2 the extra pixel goes right and bottom. Their pixels were
(x - 127) / 128. Two packages of a package index hold them as plain tensors: `weights="package:efficientnet_lite0"`, which
installs and downloads nothing. Files of timm's `tf_efficientnet_lite0` fit too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from flyspeck.models.backbones.mobilenet_v1 import SameConv2d
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
PIXELS = ((127 / 255,) * 3, (128 / 255,) * 3)
"""Mean and deviation of each channel in [0, 1]."""
# Stage, blocks, kernel, stride, expansion, channels, before scaling.
_BLOCKS = (
    ("stem", 1, 3, 1, 1, 16),
    ("stage1", 2, 3, 2, 6, 24),
    ("stage2", 2, 5, 2, 6, 40),
    ("stage3", 3, 3, 2, 6, 80),
    ("stage3", 3, 5, 1, 6, 112),
    ("stage4", 4, 5, 2, 6, 192),
    ("stage4", 1, 3, 1, 6, 320),
)
_STEM = 32
# Which pair of convolution and norm of a block a foreign key means: in a block without expansion, and in the others.
_PLACES = {
    "_depthwise_conv": (0, 1), "_bn1": (0, 1), "_project_conv": (1, 2), "_bn2": (1, 2), "_expand_conv": (0, 0), "_bn0": (0, 0),
    "conv_dw": (0, 1), "bn1": (0, 0), "conv_pw": (1, 0), "bn2": (1, 1), "conv_pwl": (2, 2), "bn3": (2, 2),
}  # fmt: skip


class Block(nn.Module):
    """1x1 expansion (none at 1), depthwise convolution, 1x1 projection; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        expand = [] if expansion == 1 else [*_convolved(inputs, wide, 1), nn.ReLU6(inplace=True)]
        depthwise = [*_convolved(wide, wide, kernel, stride=stride, groups=wide), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*expand, *depthwise, *_convolved(wide, outputs, 1))
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H / stride, W / stride)`, rounded up."""
        return x + self.layers(x) if self.added else self.layers(x)


def efficientnet_lite0(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """EfficientNet-Lite0: C2..C5 of 24, 40, 112, 320 channels at strides 4, 8, 16, 32, and 16 at stride 2.

    `width` scales the channels (to multiples of 8). `weights` is `package:efficientnet_lite0` (extra `efficientnet`) or the path
    of a file. `outputs` are the stages whose outputs are feature maps.
    """
    return _scaled(1.0, 1.0, width=width, weights=weights, outputs=outputs)


def efficientnet_lite2(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """EfficientNet-Lite2: C2..C5 of 24, 48, 120, 352 channels; see `efficientnet_lite0` for the arguments."""
    return _scaled(1.1, 1.2, width=width, weights=weights, outputs=outputs)


def _scaled(
    wide: float, deep: float, *, width: float, weights: str | Path | None, outputs: Sequence[str]
) -> StagedBackbone:
    channels = _rounded(_STEM * width)
    stages: dict[str, list[nn.Module]] = {
        "stem": [*_convolved(3, channels, 3, stride=2), nn.ReLU6(inplace=True)],
        **{name: [] for name in STAGES},
    }
    specs: dict[str, FeatureSpec] = {}
    step, counts = 2, []
    for i, (name, count, kernel, stride, expansion, base) in enumerate(_BLOCKS):
        fixed = i in (0, len(_BLOCKS) - 1)  # the first and the last are not repeated
        counts.append(count if fixed else math.ceil(count * deep))
        outgoing = _rounded(base * wide * width)
        for j in range(counts[-1]):
            first = stride if j == 0 else 1
            stages[name].append(Block(channels, outgoing, kernel=kernel, stride=first, expansion=expansion))
            channels = outgoing
        step *= stride
        specs[name] = FeatureSpec(channels, step)
    backbone = StagedBackbone(
        {n: nn.Sequential(*layers) for n, layers in stages.items()}, specs, outputs=tuple(outputs)
    )
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if weights is not None:
        load_backbone(backbone, weights, rename=Renamed(backbone, counts))
    return backbone


def _convolved(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    kind = SameConv2d if kernel > 1 else nn.Conv2d
    return [kind(inputs, outputs, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)]


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, at least 8 and no more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Renamed:
    """A foreign key to ours: `_blocks.3._bn1.weight` or timm's `blocks.2.0.bn2.weight`; None for head and classifier."""

    def __init__(self, backbone: StagedBackbone, counts: Sequence[int]) -> None:
        """`counts` are the blocks of each row of the architecture, as timm counts them."""
        self.blocks = [
            f"stages.{name}.{i}"
            for name, stage in backbone.stages.items()
            for i, layer in enumerate(stage)  # type: ignore[arg-type]
            if isinstance(layer, Block)
        ]
        self.starts = [sum(counts[:i]) for i in range(len(counts))]

    def __call__(self, key: str) -> str | None:
        """The name in our backbone; None where it has no place."""
        if match := re.fullmatch(r"(?:_conv_stem|conv_stem|_bn0|bn1)\.(.+)", key):
            return f"stages.stem.{0 if 'conv' in key else 1}.{match[1]}"
        if re.match(r"_?conv_head\.|_fc\.|classifier\.|_bn1\.|bn2\.", key):
            return None
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            index = int(match[1])
        elif match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(\w+)", key):
            index = self.starts[min(int(match[1]), len(self.starts) - 1)] + int(match[2])
        else:
            return key
        layer, value = match[match.lastindex - 1], match[match.lastindex]  # type: ignore[operator]
        if index >= len(self.blocks) or layer not in _PLACES:
            return key
        pair = _PLACES[layer][int(index > 0)]
        return f"{self.blocks[index]}.layers.{3 * pair + int('bn' in layer)}.{value}"
