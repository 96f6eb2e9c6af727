"""MobileNetV3-Large (Howard et al., arXiv:1905.02244) as a staged backbone, of torchvision's own blocks.

Stages are slices of torchvision's `features`: `stem` [0:2] (stride 2, 16 channels), `stage1` [2:4] (4, 24), `stage2` [4:7]
(8, 40), `stage3` [7:13] (16, 112), `stage4` [13:14] (32, 160), `stage5` [14:17] (32, 960). Pyramids take `stage5`;
torchvision's Faster R-CNN takes both maps of stride 32. torchvision's weights load by their name (`IMAGENET1K_V1`, `_V2`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models import mobilenet_v3_large as torchvision_mobilenet_v3_large

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage5")
SLICES = {"stem": (0, 2), "stage1": (2, 4), "stage2": (4, 7), "stage3": (7, 13), "stage4": (13, 14), "stage5": (14, 17)}
"""Of torchvision's `features`: the first module of each stage, and the first after it."""


def mobilenet_v3_large(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """MobileNetV3-Large: C2..C5 of 24, 40, 112, 960 channels at strides 4, 8, 16, 32.

    `width` is the paper's width multiplier (channels are multiples of 8). `weights` is a torchvision weights name
    (`IMAGENET1K_V2`) or the path of a local file. `outputs` are the stages whose outputs are feature maps.
    """
    features = list(torchvision_mobilenet_v3_large(weights=None, width_mult=width).features)
    stages: dict[str, nn.Module] = {}
    specs: dict[str, FeatureSpec] = {}
    for i, (name, (start, stop)) in enumerate(SLICES.items()):
        stages[name] = nn.Sequential(*features[start:stop])
        specs[name] = FeatureSpec(int(features[stop - 1].out_channels), 2 ** min(i + 1, 5))  # type: ignore[arg-type]
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, weights, torchvision_model="mobilenet_v3_large", rename=rename_torchvision)
    return backbone


def rename_torchvision(key: str) -> str | None:
    """torchvision's key to ours: `features.5.block.…` to `stages.stage2.1.block.…`; the classifier to None."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)", key)
    if match is None:
        return None if key.startswith("classifier.") else key
    index = int(match[1])
    name, start = next((name, start) for name, (start, stop) in SLICES.items() if start <= index < stop)
    return f"stages.{name}.{index - start}.{match[2]}"
