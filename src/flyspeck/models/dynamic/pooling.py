"""Dynamic pooling: the stride of one backbone stage becomes a bilinear resize by a factor that may change from image to
image ("DPNet: Dynamic Pooling Network for Accurate and Efficient Size-Aware Tiny Object Detection", sec. III).

Which stage: its published 107.80 GFLOPs are reachable only by the stride of stage 2 (C2 to C3); with `stage1`, whose
stride a ResNet has in the pool of its stem, that pool is what is replaced.

Two forms. `kept` resizes by twice the factor in front of the strided block, which stays: at 0.5 nothing is resized and the
detector is bit for bit the static one that the weights were trained in. `replaced` is the text's and Fig. 3's: the stride
becomes 1 and the map is resized by the factor itself; at 0.5 and on even maps the resize (align_corners=False, no
antialiasing) is exactly a 2x2 average pool, so that the static twin is a detector with such a pool before its stage.
Throwing the pretrained stride away costs 4-5 points of AP in short trainings; the papers' recipes do.
Weights keep their names and values. Anchors and points come from the true ratio of image to map, so that boxes stay where
they are at any factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import DemandingStage, StagedBackbone
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.factors import FACTORS, FactorSwitch
from flyspeck.types import ImageBatch

_Pool = nn.MaxPool2d | nn.AvgPool2d


def resized(size: int, factor: float) -> int:
    """Cells of a map side of `size` cells after `factor`: rounded, halves up, as a stride of 2 rounds (5 to 3)."""
    return max(1, int(size * factor + 0.5))


Stride = Literal["kept", "replaced"]


class PooledStage(DemandingStage):
    """A stage after a bilinear resize by the active factor. The children keep their names.

    `kept`: the stage (or `pool`, which ended the stage before) still has its stride of 2, and the resize is by twice the
    factor. Otherwise the stride is gone, and the resize is by the factor.
    """

    def __init__(
        self,
        stage: nn.Sequential,
        switch: FactorSwitch,
        *,
        name: str,
        kept: bool = False,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for child, module in stage._modules.items():  # all of them: one module may stand twice
            self.add_module(child, module)
        self.switch, self.name, self.kept = switch, name, kept
        self.pools = (pool,) if pool is not None else ()  # a tuple: no child, so that the children's names stay
        self.kernel = max([_largest(m.kernel_size) for m in stage.modules() if isinstance(m, nn.Conv2d)], default=1)

    @property
    def least_cells(self) -> int:
        """A whole kernel is left at the smallest factor."""
        return math.ceil(self.kernel / min(self.switch.factors))

    def forward(self, input: Tensor) -> Tensor:
        """The map `(B, C, H, W)` of the stage before to this stage's; raises UserError where it gets too small."""
        x = self.resize(input)
        for pool in self.pools:
            x = pool(x)
        return super().forward(x)

    def resize(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, resized(H), resized(W))`, by the active factor or, where the stride is kept, twice that."""
        height, width = x.shape[-2:]
        factor = self.switch.active * (2 if self.kept else 1)
        size = resized(height, factor), resized(width, factor)
        result = tuple((side + 1) // 2 for side in size) if self.kept else size
        if min(result) < self.kernel and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            raise UserError(
                f"the factor {self.switch.active:g} makes a map of {result[0]}x{result[1]} out of {height}x{width}, smaller "
                f"than the {self.kernel}x{self.kernel} kernels of {self.name}",
                where="factors",
                fix="enlarge or pad the image, or leave out the smallest factors",
            )
        if factor == 1:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pool_dynamically(
    detector: Detector,
    factors: Sequence[float] = FACTORS,
    *,
    stage: str = "stage2",
    default: float = 0.5,
    stride: Stride = "kept",
) -> FactorSwitch:
    """Makes the stride 2 of `stage` a bilinear resize, in place, and returns the switch that says by how much.

    Weights are kept. `default` (the factor outside of `switch.use`) must be among `factors` and stands for the stride.
    `stride`: see the head of this file.
    Raises UserError for a detector whose backbone is no chain of stages, or a stage that has no stride of 2.
    """
    backbone = staged_backbone(detector)
    if any(isinstance(s, PooledStage) for s in backbone.stages.values()):
        raise UserError("the detector has dynamic pooling already", where="detector", fix="convert it once")
    switch = FactorSwitch(factors, default=default)
    before, chain = _chain(backbone, stage)
    kept, pool = stride == "kept", None
    # A stride that stays only has to be one of 2 in all, whatever other strides lie beside the way (pooled attention).
    if not _halves(list(chain)) and not (kept and _doubles(backbone, before, stage)):
        # A ResNet's first stage has none: the pool that ends the stage before is its stride.
        tail = list(backbone.stages[before].children())[-1:]
        if not (tail and isinstance(tail[0], _Pool) and _halves(tail)):
            raise UserError(
                f"{stage} has no stride of 2 that a factor could replace", where="stage", fix="choose another stage"
            )
        pool = tail[0] if kept else None
        _remove_stride(backbone.stages[before], tail)
    elif not kept:
        if any(_shrinks(layer) for layer in _strided(list(chain))):
            raise UserError(
                f"{stage} merges cells that do not overlap: with a stride of 1 its map would shrink",
                where="stage",
                fix="keep its stride (stride: kept), or choose a backbone of padded convolutions",
            )
        _remove_stride(chain, list(chain))
    backbone.stages[stage] = PooledStage(chain, switch, name=stage, kept=kept, pool=pool)
    return switch


def staged_backbone(detector: Detector) -> StagedBackbone:
    """The detector's backbone; raises UserError where it is no chain of stages (a dual path runs one twice)."""
    if not isinstance(detector.backbone, StagedBackbone):
        raise UserError(
            "dynamic pooling needs a backbone that is a chain of stages",
            where="backbone",
            fix="choose a ResNet, MobileNet or VGG without a dual path",
        )
    return detector.backbone


def _chain(backbone: StagedBackbone, stage: str) -> tuple[str, nn.Sequential]:
    """The name of the stage before, and the stage."""
    names = list(backbone.stages)
    if stage not in names[1:]:
        raise UserError(f"no stage '{stage}' to pool before", where="stage", fix=f"choose from {', '.join(names[1:])}")
    before, chain = names[names.index(stage) - 1], backbone.stages[stage]
    if before in backbone.branches or stage in backbone.branches or not isinstance(chain, nn.Sequential):
        raise UserError(
            f"{stage} has parallel branches or merges cells: no stride of a single map that a factor could replace",
            where="stage",
            fix="choose a backbone that is a chain of stages",
        )
    return before, chain


def _strided(children: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers of `children` that have a stride."""
    layers = [m for child in children for m in child.modules() if isinstance(m, nn.Conv2d | _Pool)]
    return [layer for layer in layers if _stride(layer) != 1]


def _halves(children: Sequence[nn.Module]) -> bool:
    """Whether exactly one of `children`, which run one after another, has a stride, and that is 2."""
    return sum(bool(_strided([child])) for child in children) == 1 and all(_stride(m) == 2 for m in _strided(children))


def _doubles(backbone: StagedBackbone, before: str, stage: str) -> bool:
    """Whether the map of `stage` has twice the stride of the one before, by what the backbone promises of both."""
    specs = backbone.specs
    return before in specs and stage in specs and specs[stage].stride == 2 * specs[before].stride


def _remove_stride(parent: nn.Module, children: Sequence[nn.Module]) -> None:
    """Sets the stride 2 in `children` of `parent` to 1, in place."""
    found = _strided(children)
    for name, child in list(parent.named_modules(remove_duplicate=False)):
        if child in found and isinstance(child, _Pool):
            holder, _, last = name.rpartition(".")
            setattr(parent.get_submodule(holder), last, nn.Identity())
        elif child in found:
            child.stride = (1, 1)  # type: ignore[assignment]


def _shrinks(module: nn.Module) -> bool:
    """Whether a convolution whose padding is fixed would make its map smaller at a stride of 1, as one of 2x2 cells does."""
    if type(module).forward is not nn.Conv2d.forward or isinstance(module.padding, str):
        return False
    sizes = zip(module.kernel_size, module.dilation, module.padding, strict=True)  # type: ignore[arg-type]
    return any(d * (k - 1) > 2 * p for k, d, p in sizes)


def _stride(module: nn.Module) -> int:
    return _largest(module.stride)  # type: ignore[arg-type]


def _largest(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value)


def is_dynamic(detector: Detector) -> bool:
    """Whether `pool_dynamically` has been called on it."""
    backbone = detector.backbone
    return isinstance(backbone, StagedBackbone) and any(isinstance(s, PooledStage) for s in backbone.stages.values())


def find_switch(detector: Detector) -> FactorSwitch:
    """The switch of a detector that was made dynamic; raises UserError where there is none."""
    return _pooled(staged_backbone(detector))[1].switch


def split_stage(detector: Detector) -> str:
    """The last stage before the resize: what the shared prefix ends with."""
    backbone = staged_backbone(detector)
    names = list(backbone.stages)
    return names[names.index(_pooled(backbone)[0]) - 1]


def _pooled(backbone: StagedBackbone) -> tuple[str, PooledStage]:
    for name, stage in backbone.stages.items():
        if isinstance(stage, PooledStage):
            return name, stage
    raise UserError("the detector has no dynamic pooling", where="detector", fix="call pool_dynamically on it first")


def run_prefix(detector: Detector, images: ImageBatch) -> tuple[list[Tensor], Tensor]:
    """What no factor changes: the feature maps before the resize, and the map that is resized."""
    backbone, stop = staged_backbone(detector), split_stage(detector)
    maps = backbone.run(detector.pixel_norm(images), stop=stop)
    return (maps if stop in backbone.outputs else maps[:-1]), maps[-1]


def run_rest(detector: Detector, before: Sequence[Tensor], shared: Tensor) -> list[Tensor]:
    """All feature maps at the active factor, from what `run_prefix` gave."""
    return [*before, *staged_backbone(detector).run(shared, start=split_stage(detector))]
