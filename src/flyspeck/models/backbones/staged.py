"""The backbone contract: named stages that run one by one, and a promise of what comes out.

Dynamic pooling resizes between two stages, stride elimination edits one, a profile counts each: so every backbone is a
chain of stages. Builders (`resnet50`, `mobilenet_v2`, …) are plain functions that return a `StagedBackbone`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.depthwise import use_quick_depthwise
from flyspeck.models.narrow_pointwise import use_sound_pointwise
from flyspeck.models.start.report import StartReport
from flyspeck.types import FeatureSpec


def check_image_size(x: Tensor, stride: float) -> None:
    """Raises UserError for images `(B, 3, H, W)` of which one cell of the coarsest map would see more than there is."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return  # an exported graph keeps its sizes free
    height, width = x.shape[-2:]
    if min(height, width) < stride:
        raise UserError(
            f"an image of {height}x{width} px is smaller than the backbone's largest stride, {stride:g}",
            where="image size",
            fix="pad or enlarge the image, or choose a backbone with fewer strides (S{n}L{i})",
        )


def need_stages(backbone: nn.Module, what: str, *, where: str) -> StagedBackbone:
    """`backbone`, if it is a chain of stages; else raises UserError: `what` needs one. A plugin's may be any module."""
    if not isinstance(backbone, StagedBackbone):
        raise UserError(
            f"{what} needs a backbone that is a chain of stages, this one is not",
            where=where,
            fix="leave it out, or choose another backbone",
        )
    return backbone


class DemandingStage(nn.Sequential, ABC):
    """A stage that needs more of the map before it than one cell."""

    @property
    @abstractmethod
    def least_cells(self) -> int:
        """Cells that a side of its input must have."""


class StagedBackbone(nn.Module):
    """A chain of stages; the outputs of some of them are the backbone's feature maps.

    `stages` maps names (`stem`, `stage1`, … `stage4`) to modules that run in that order, each on the output of the one
    before. `specs` says what comes out of each stage that may serve as a feature map; `outputs` picks those that do.
    A stage may return a list (HRNet's parallel branches); `branches` then has the specs of its maps in place of `specs`.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        specs: Mapping[str, FeatureSpec],
        *,
        outputs: tuple[str, ...],
        branches: Mapping[str, Sequence[FeatureSpec]] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.specs = dict(specs)
        self.branches = {name: tuple(maps) for name, maps in (branches or {}).items()}
        self.outputs = tuple(outputs)
        self.start_report: StartReport | None = None
        """What was loaded of which weights; None at random."""
        use_quick_depthwise(self)
        use_sound_pointwise(self)
        known = {**self.specs, **self.branches}
        unknown = [name for name in self.outputs if name not in known]
        if unknown:
            raise ValueError(f"no feature spec for stage(s) {', '.join(unknown)}; specs: {', '.join(known)}")
        strides = [spec.stride for spec in self.features]
        if strides != sorted(strides):
            raise ValueError(f"strides of a backbone's feature maps must not decrease, got {strides}")

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What `forward` returns, finest map first."""
        return tuple(spec for name in self.outputs for spec in self.branches.get(name) or (self.specs[name],))

    @property
    def smallest_side(self) -> int:
        """Pixels that a side of the image must have: one cell of the coarsest map, and what every stage needs."""
        least, before = max(spec.stride for spec in self.features), 1.0
        for name, stage in self.stages.items():
            if isinstance(stage, DemandingStage):
                least = max(least, before * stage.least_cells)
            before = self.specs[name].stride if name in self.specs else before
        return math.ceil(least)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)`, normalised, to one map `(B, C_l, H_l, W_l)` per entry of `features`."""
        check_image_size(x, max(spec.stride for spec in self.features))
        return self.run(x)

    def run(self, x: Any, *, start: str | None = None, stop: str | None = None) -> list[Tensor]:
        """Runs the stages after `start` up to and including `stop` (default: all) on `x`, the output of `start`.

        Returns the feature maps among their outputs; with `stop` given, the output of `stop` comes last whether it is
        one or not, so that another call can go on from it.
        """
        maps: list[Tensor] = []
        running = start is None
        for name, stage in self.stages.items():
            if running:
                x = stage(x)
                if name in self.outputs or name == stop:
                    maps.extend(x if isinstance(x, list) else [x])
            running = running or name == start
            if name == stop:
                break
        return maps
