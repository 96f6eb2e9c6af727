"""MobileNetV2 (Sandler et al., arXiv:1801.04381) as a staged backbone, of torchvision's own blocks.

Stages are slices of torchvision's `features`: `stem` [0:2] (stride 2, 16 channels), `stage1` [2:4] (4, 24), `stage2`
[4:7] (8, 32), `stage3` [7:14] (16, 96), `stage4` [14:18] (32, 320). The last 1x1 convolution (1280) and the classifier
are left out. torchvision's weights load by their name (`weights="IMAGENET1K_V1"`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import nn
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
_SLICES = {"stem": (0, 2), "stage1": (2, 4), "stage2": (4, 7), "stage3": (7, 14), "stage4": (14, 18)}


def mobilenet_v2(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """MobileNetV2: C2..C5 of 24, 32, 96, 320 channels at strides 4, 8, 16, 32.

    `width` is the paper's width multiplier (channels are multiples of 8). `weights` is a torchvision weights name
    (`IMAGENET1K_V1`) or the path of a local file. `outputs` are the stages whose outputs are feature maps.
    """
    features = list(torchvision_mobilenet_v2(weights=None, width_mult=width).features)
    stages: dict[str, nn.Module] = {}
    specs: dict[str, FeatureSpec] = {}
    for i, (name, (start, stop)) in enumerate(_SLICES.items()):
        stages[name] = nn.Sequential(*features[start:stop])
        specs[name] = FeatureSpec(cast(int, features[stop - 1].out_channels), 2 ** (i + 1))
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, weights, torchvision_model="mobilenet_v2", rename=rename_torchvision)
    return backbone


def rename_torchvision(key: str) -> str | None:
    """torchvision's key to ours: `features.5.conv.…` to `stages.stage2.1.conv.…`; the classifier to None."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)", key)
    if match is None:
        return None if key.startswith("classifier.") else key
    index = int(match[1])
    for name, (start, stop) in _SLICES.items():
        if start <= index < stop:
            return f"stages.{name}.{index - start}.{match[2]}"
    return None
