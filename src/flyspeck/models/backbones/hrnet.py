"""HRNet (Wang et al., arXiv:1908.07919): parallel branches at strides 4, 8, 16, 32 that exchange what they see.

Sizes as detectors use them (mmdetection's layout, checked by the counts of seed paper arXiv:2303.11267, Table 4): no
classifier and no incremental modules, every module gives all its scales, the last one too.
HRNet32: 29,305,536 parameters, 51.93 GFLOPs at 512x640; HRNet18: 9.56 M, 21.71 GFLOPs (mmcv convention).

A stage with branches returns a list; the maps of the last stage are the backbone's feature maps. `staged_hrnet` takes the
stem and the number of blocks of every branch: `bottom_heavy.bh_hrnet18` is one call of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from flyspeck.models.backbones.resnet import init_resnet, residual_stage, scaled
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

Stem = Literal["standard", "bottom_heavy", "stage1_stride", "stride1"]


@dataclass(frozen=True)
class HRStage:
    """A stage of parallel branches."""

    modules: int
    """Exchange modules, one after another."""
    blocks: tuple[int, ...]
    """Basic blocks of each branch per module, finest branch first."""


STANDARD = (HRStage(1, (4, 4)), HRStage(4, (4, 4, 4)), HRStage(3, (4, 4, 4, 4)))


def hrnet18(*, width: float = 1.0, weights: str | Path | None = None) -> StagedBackbone:
    """HRNetV2-W18: maps of 18, 36, 72, 144 channels at strides 4, 8, 16, 32. `weights` is the path of a file."""
    return _named(18, width=width, weights=weights)


def hrnet32(*, width: float = 1.0, weights: str | Path | None = None) -> StagedBackbone:
    """HRNetV2-W32: maps of 32, 64, 128, 256 channels at strides 4, 8, 16, 32. `weights` is the path of a file."""
    return _named(32, width=width, weights=weights)


def _named(branch: int, *, width: float, weights: str | Path | None) -> StagedBackbone:
    backbone = staged_hrnet(branch, width=width)
    if weights is not None:
        load_backbone(backbone, weights)
    return backbone


def staged_hrnet(
    branch_width: int,
    *,
    stem: Stem = "standard",
    stage1_blocks: int = 4,
    stages: Sequence[HRStage] = STANDARD,
    width: float = 1.0,
) -> StagedBackbone:
    """An HRNet whose finest branch has `branch_width` channels (each further one twice as many), scaled by `width`.

    `stem`: `standard` is two 3x3 convolutions of stride 2; `bottom_heavy` strides 1 and 2, then a 3x3 max pool of stride
    2; `stage1_stride` strides 1 and 2, and the first block of stage 1 has stride 2; `stride1` both convolutions at
    stride 1, then two max pools. The total stride is 4 in all of them.
    """
    if len(stages) != 3 or [len(s.blocks) for s in stages] != [2, 3, 4]:
        raise ValueError("an HRNet has three stages of 2, 3 and 4 branches")
    planes = scaled(64, width)
    widths = [max(2, round(branch_width * width)) * 2**i for i in range(4)]
    stage1_stride = 2 if stem == "stage1_stride" else 1
    parts: dict[str, nn.Module] = {
        "stem": _stem(planes, stem),
        "stage1": residual_stage(Bottleneck, planes, planes, stage1_blocks, stage1_stride),
    }
    incoming = [planes * Bottleneck.expansion]
    for i, stage in enumerate(stages):
        outgoing = widths[: i + 2]
        modules = [ExchangeModule(outgoing, stage.blocks) for _ in range(stage.modules)]
        parts[f"stage{i + 2}"] = nn.Sequential(Transition(incoming, outgoing), *modules)
        incoming = outgoing
    init_resnet(*parts.values())
    branches = {
        f"stage{i + 2}": tuple(FeatureSpec(w, 4 * 2**j) for j, w in enumerate(widths[: i + 2])) for i in range(3)
    }
    specs = {"stem": FeatureSpec(planes, 4 // stage1_stride), "stage1": FeatureSpec(planes * Bottleneck.expansion, 4)}
    return StagedBackbone(parts, specs, outputs=("stage4",), branches=branches)


def _stem(channels: int, kind: Stem) -> nn.Sequential:
    first, second = {"standard": (2, 2), "bottom_heavy": (1, 2), "stage1_stride": (1, 2), "stride1": (1, 1)}[kind]
    pools = {"standard": 0, "bottom_heavy": 1, "stage1_stride": 0, "stride1": 2}[kind]
    return nn.Sequential(
        *_conv_norm(3, channels, stride=first),
        *_conv_norm(channels, channels, stride=second),
        *(nn.MaxPool2d(3, stride=2, padding=1) for _ in range(pools)),
    )


def _conv_norm(inputs: int, outputs: int, *, stride: int, relu: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else [])]


class Transition(nn.Module):
    """Branches of `incoming` channels to one more branch, of `outgoing` channels; the new one is half the last's size."""

    def __init__(self, incoming: Sequence[int], outgoing: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for i, channels in enumerate(outgoing):
            if i < len(incoming):
                same = incoming[i] == channels
                branch = nn.Identity() if same else nn.Sequential(*_conv_norm(incoming[i], channels, stride=1))
            else:
                branch = nn.Sequential(*_conv_norm(incoming[-1], channels, stride=2))
            self.branches.append(branch)

    def forward(self, x: Tensor | list[Tensor]) -> list[Tensor]:
        """The maps of the stage before (one, or a list) to one map per branch."""
        maps = x if isinstance(x, list) else [x]
        return [branch(maps[min(i, len(maps) - 1)]) for i, branch in enumerate(self.branches)]


class ExchangeModule(nn.Module):
    """Basic blocks on every branch, then every branch receives the sum of all, resized to it."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            residual_stage(BasicBlock, c, c, n, 1) if n else nn.Identity()
            for c, n in zip(channels, blocks, strict=True)
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(_resizer(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch, finest first, to the same shapes."""
        maps = [branch(m) for branch, m in zip(self.branches, maps, strict=True)]
        fused = []
        for target, resizers in enumerate(self.fuse):
            height, width = maps[target].shape[-2:]
            resizers = list(resizers)  # type: ignore[arg-type]
            # A map of odd size is half-size rounded up below it, so that its upsampled twin may be a pixel too large.
            parts = [resize(m)[..., :height, :width] for resize, m in zip(resizers, maps, strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            fused.append(self.relu(total))
        return fused


def _resizer(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """From branch `source` to the shape of branch `target`: 1x1 and upsampling, or 3x3 convolutions of stride 2."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(channels[source], channels[target], 1, bias=False),
            nn.BatchNorm2d(channels[target]),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps: list[nn.Module] = []
    for i in range(source, target):
        last = i == target - 1
        steps += _conv_norm(channels[source], channels[target] if last else channels[source], stride=2, relu=not last)
    return nn.Sequential(*steps)
