"""VGG16 (Simonyan and Zisserman, arXiv:1409.1556) as SSD uses it (Liu et al., arXiv:1512.02325): fc6 and fc7 as
convolutions.

Layers are numbered over convolutions and pools, as the stride-elimination paper numbers them: 0-1 conv1, 2 pool1, 3-4
conv2, 5 pool2, 6-8 conv3, 9 pool3, 10-12 conv4, 13 pool4, 14-16 conv5, 17 pool5, 18 fc6, 19 fc7. Stages: `stem` 0-4
(stride 2, 128 channels), `stage1` 5-8 (4, 256), `stage2` 9-12 (8, 512), `stage3` 13-16 (16, 512), `stage4` 17-19 (1024).
No norms; pool3 rounds up (SSD's 38x38 map at 300x300).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

from flyspeck.models.backbones.resnet import scaled
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import (
    TORCHVISION_LICENCE,
    is_file_name,
    load_backbone,
    load_strictly,
    note_loaded,
    read_weights,
    torchvision_weights,
)
from flyspeck.options import Options
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
# torchvision's index of the first module of each of our stages.
_TORCHVISION_STARTS = {"stem": 0, "stage1": 9, "stage2": 16, "stage3": 23}


class VGGOptions(Options):
    """Options of VGG16."""

    top_stride: int = Field(default=2, ge=1, le=2)
    """Stride of the last stage: 2 for a pyramid of four scales, 1 as SSD has it (and sets it)."""


def vgg16(
    *,
    width: float = 1.0,
    top_stride: int = 2,
    weights: str | Path | None = None,
    outputs: Sequence[str] = STAGES,
) -> StagedBackbone:
    """VGG16: C2..C5 of 256, 512, 512, 1024 channels at strides 4, 8, 16 and 16 x `top_stride`.

    `top_stride` 1 is SSD's pool5 and fc6 (dilation 6); 2 makes a pyramid of four scales (dilation 3). `weights` is a
    torchvision weights name (`IMAGENET1K_V1`) or the path of a file; fc6 and fc7 are then subsampled from torchvision's
    classifier, as SSD does.
    """
    c64, c128, c256, c512, c1024 = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
    dilation = 6 // top_stride
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(*_convs(3, c64, 2), nn.MaxPool2d(2), *_convs(c64, c128, 2)),
        "stage1": nn.Sequential(nn.MaxPool2d(2), *_convs(c128, c256, 3)),
        "stage2": nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *_convs(c256, c512, 3)),
        "stage3": nn.Sequential(nn.MaxPool2d(2), *_convs(c512, c512, 3)),
        "stage4": nn.Sequential(
            nn.MaxPool2d(3, stride=top_stride, padding=1),
            nn.Conv2d(c512, c1024, 3, padding=dilation, dilation=dilation),
            nn.ReLU(inplace=True),
            nn.Conv2d(c1024, c1024, 1),
            nn.ReLU(inplace=True),
        ),
    }
    channels = (c128, c256, c512, c512, c1024)
    strides = (2, 4, 8, 16, 16 * top_stride)
    specs = {name: FeatureSpec(c, s) for name, c, s in zip(stages, channels, strides, strict=True)}
    for stage in stages.values():
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        _load(backbone, weights)
    return backbone


def _convs(inputs: int, outputs: int, number: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(number):
        layers += [nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    return layers


def _load(backbone: StagedBackbone, weights: str | Path) -> None:
    state = read_weights(weights) if is_file_name(weights) else torchvision_weights("vgg16", str(weights))
    if not any(name.startswith("features.") for name in state):
        load_backbone(backbone, weights)
        return
    ours = from_torchvision(state)
    load_strictly(backbone, ours, where=weights)
    licence = "" if is_file_name(weights) else TORCHVISION_LICENCE
    skipped = {name: "fc6 and fc7 are subsampled from it" for name in state if name.startswith("classifier.")}
    note_loaded(backbone, ours, where=weights, licence=licence, skipped=skipped)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16 weights under our names; fc6 keeps every 4th unit and every 3rd pixel, fc7 every 4th unit."""
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if match:
            index = int(match[1])
            stage = [name for name, start in _TORCHVISION_STARTS.items() if start <= index][-1]
            ours[f"stages.{stage}.{index - _TORCHVISION_STARTS[stage]}.{match[2]}"] = tensor
    if "classifier.0.weight" in state:
        fc6, fc7 = state["classifier.0.weight"].view(4096, 512, 7, 7), state["classifier.3.weight"]
        ours["stages.stage4.1.weight"] = fc6[::4, :, ::3, ::3].contiguous()
        ours["stages.stage4.1.bias"] = state["classifier.0.bias"][::4].contiguous()
        ours["stages.stage4.3.weight"] = fc7[::4, ::4, None, None].contiguous()
        ours["stages.stage4.3.bias"] = state["classifier.3.bias"][::4].contiguous()
    return ours
