"""ShuffleNetV2 (Ma et al., arXiv:1807.11164) as a staged backbone, of torchvision's own blocks: a student for distillation.

Stages: `stem` is the 3x3 convolution (stride 2, 24 channels), `stage1` the max pool (stride 4), `stage2` … `stage4` are
torchvision's (strides 8, 16, 32). C2 is thus 24 channels of one convolution: cheap, and poor. The last 1x1 convolution
(1024 or 2048) and the classifier are left out. torchvision's weights load by their name (`weights="IMAGENET1K_V1"`) at
widths 0.5, 1, 1.5 and 2.

Without the classifier and the last convolution, at 224x224: x0.5 0.143 M parameters, 29.8 M multiply-adds; x1 0.776 M,
120.5 M.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models.shufflenetv2 import InvertedResidual

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import is_file_name, load_backbone
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
_REPEATS = (4, 8, 4)
# Table 5 of the paper: width to the channels of stages 2 to 4, and torchvision's name of the network.
_PUBLISHED = {
    0.5: (48, "shufflenet_v2_x0_5"),
    1.0: (116, "shufflenet_v2_x1_0"),
    1.5: (176, "shufflenet_v2_x1_5"),
    2.0: (244, "shufflenet_v2_x2_0"),
}


def shufflenet_v2(
    *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] = STAGES
) -> StagedBackbone:
    """ShuffleNetV2: at width 1, C2..C5 of 24, 116, 232, 464 channels at strides 4, 8, 16, 32.

    At `width` 0.5, 1, 1.5 and 2 the channels are the paper's (48, 96, 192 at 0.5); between and below, the nearest even
    number to 116 x width, doubled at each stage, and a stem that narrows below width 0.5. `weights` is a torchvision
    weights name (`IMAGENET1K_V1`), of those four widths only, or the path of a local file. `outputs` are the stages whose
    outputs are feature maps.
    """
    first, published = _PUBLISHED.get(width, (max(4, 2 * round(116 * width / 2)), None))
    stem = 24 if width >= 0.5 else max(4, round(48 * width))
    conv = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(conv, nn.BatchNorm2d(stem), nn.ReLU(inplace=True)),
        "stage1": nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1)),
    }
    specs = {"stem": FeatureSpec(stem, 2), "stage1": FeatureSpec(stem, 4)}
    inputs = stem
    for i, (name, repeats) in enumerate(zip(STAGES[1:], _REPEATS, strict=True)):
        channels = first * 2**i
        rest = (InvertedResidual(channels, channels, 1) for _ in range(repeats - 1))
        stages[name] = nn.Sequential(InvertedResidual(inputs, channels, 2), *rest)
        specs[name] = FeatureSpec(channels, 8 * 2**i)
        inputs = channels
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        if published is None and not is_file_name(weights):
            raise UserError(
                f"torchvision has no ShuffleNetV2 weights at width {width:g}",
                where="weights",
                fix="use width 0.5, 1, 1.5 or 2, or the path of a local file",
            )
        load_backbone(backbone, weights, torchvision_model=published, rename=rename_torchvision)
    return backbone


def rename_torchvision(key: str) -> str | None:
    """torchvision's key to ours: `conv1.0.weight` to `stages.stem.0.weight`; last convolution and classifier to None."""
    if key.startswith(("conv5.", "fc.")):
        return None
    if key.startswith("conv1."):
        return f"stages.stem.{key.removeprefix('conv1.')}"
    return f"stages.{key}" if key.startswith("stage") and not key.startswith("stages.") else key
