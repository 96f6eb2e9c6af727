"""Which maps of a backbone a pyramid is made of: levels follow from strides. Level k is a map of stride 2^k."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.types import FeatureSpec


def parse_levels(levels: str) -> tuple[int, int]:
    """`2-6` to (2, 6): first and last level of a pyramid, at strides 2^first to 2^last."""
    first, dash, last = levels.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last) <= 9):
        raise UserError(f"'{levels}' are no pyramid levels", where="levels", fix="write 2-6, 1-5, 3-7 or the like")
    return int(first), int(last)


def level_of(stride: float) -> int:
    """The level of a map: the logarithm of its stride to the base 2; of any other than a power of two, the nearest."""
    return round(math.log2(stride))


def stage_of_level(backbone: StagedBackbone) -> dict[int, str]:
    """Level to the name of the stage that gives its map, finest first; of several of one stride, the last, which saw most.

    Stages of parallel branches are left out: their maps come together.
    """
    found = {level_of(spec.stride): name for name, spec in backbone.specs.items() if name not in backbone.branches}
    return dict(sorted(found.items()))


def choose_maps(backbone: nn.Module, first: int, *, name: str) -> None:
    """Lets `backbone` give its maps from level `first` on, in place; `name` is what an error calls it.

    Raises UserError that lists its levels where it has no such map. A backbone that is no chain of stages gives all its maps
    together, so that `first` must be their finest.
    """
    if not isinstance(backbone, StagedBackbone) or any(stage in backbone.branches for stage in backbone.outputs):
        finest = level_of(backbone.features[0].stride)  # type: ignore[index, union-attr]
        if first != finest:
            raise UserError(
                f"{name} gives all its maps together, from level {finest} on: its pyramid cannot begin at level {first}",
                where="levels",
                fix=f"begin at level {finest}, or choose a backbone that is a chain of stages",
            )
        return
    stages = stage_of_level(backbone)
    if first not in stages:
        raise UserError(
            f"{name} has no map of level {first} (stride {2**first})",
            where="levels",
            fix=f"its maps have the levels {', '.join(map(str, stages))}: {_strides(backbone, stages)}",
        )
    backbone.outputs = tuple(stage for level, stage in stages.items() if level >= first)


def _strides(backbone: StagedBackbone, stages: Mapping[int, str]) -> str:
    return "strides " + ", ".join(f"{backbone.specs[stage].stride:g}" for stage in stages.values())


def count_extra(features: tuple[FeatureSpec, ...], last: int, *, name: str) -> int:
    """How many levels a neck must add above the backbone's maps `features` to end at level `last`."""
    top = level_of(features[-1].stride)
    if last < top:
        raise UserError(
            f"levels to {last} leave out the last map of {name}, which has level {top}",
            where="levels",
            fix=f"end at {top} or above",
        )
    return last - top
