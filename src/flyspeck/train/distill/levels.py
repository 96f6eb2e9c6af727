"""Which level of the teacher teaches which level of the student, and how maps of two shapes are made comparable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.types import FeatureSpec

DEFAULT = (2, 3, 4, 5)
"""P2 to P5: strides 4 to 32."""


@dataclass(frozen=True)
class LevelPair:
    """A level of the student and the one of the teacher that belongs to it."""

    number: int
    """Of the student: 2 is stride 4."""
    student: int
    """Index in the student's pyramid."""
    teacher: int
    """Index in the teacher's pyramid."""
    channels: tuple[int, int]
    """Of the student's and the teacher's map."""

    @property
    def name(self) -> str:
        """`P2`."""
        return f"P{self.number}"


def match_levels(
    student: Sequence[FeatureSpec],
    teacher: Sequence[FeatureSpec],
    *,
    wanted: Sequence[int] | None = None,
    teacher_scale: float = 1.0,
    by: str = "stride",
    single: bool = False,
) -> list[LevelPair]:
    """Pairs of levels, finest first.

    By `stride`, a teacher that sees the image `teacher_scale` times enlarged teaches from the level of the same stride
    in the student's pixels; by `level` from the level of the same number. `wanted` None takes all common levels of P2 to P5,
    or the finest of them if `single`. Raises UserError if there is none, or if a wanted level is missing.
    """
    own = _numbered(student, 1.0)
    theirs = _numbered(teacher, teacher_scale if by == "stride" else 1.0)
    common = [number for number in own if number in theirs]
    chosen = list(wanted) if wanted is not None else [n for n in common if n in DEFAULT][: 1 if single else None]
    missing = [number for number in chosen if number not in common]
    if missing or not chosen:
        words = {who: ", ".join(f"P{n}" for n in levels) for who, levels in (("s", own), ("t", theirs))}
        seen = f" (enlarged by {teacher_scale:g})" if teacher_scale != 1 and by == "stride" else ""
        raise UserError(
            f"no common level{' P' + ', P'.join(map(str, missing)) if missing else ''}: the student has {words['s']}, the"
            f" teacher{seen} {words['t']}",
            where="distill.levels",
            fix="choose levels that both have, model.levels of student and teacher alike, or distill.match: level",
        )
    return [
        LevelPair(n, own[n], theirs[n], (student[own[n]].channels, teacher[theirs[n]].channels)) for n in sorted(chosen)
    ]


def _numbered(features: Sequence[FeatureSpec], scale: float) -> dict[int, int]:
    """Level number to index; a stride that is no power of two has no number. The first of two with one stride counts."""
    found: dict[int, int] = {}
    for index, spec in enumerate(features):
        number = math.log2(spec.stride / scale)
        if abs(number - round(number)) < 1e-6:
            found.setdefault(round(number), index)
    return found


def build_adapters(pairs: Sequence[LevelPair]) -> nn.ModuleDict:
    """`P2` to a 1x1 convolution from the student's channels to the teacher's, or nothing where they agree."""
    return nn.ModuleDict(
        {p.name: nn.Identity() if p.channels[0] == p.channels[1] else nn.Conv2d(*p.channels, 1) for p in pairs}
    )


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, C, H, W)` to `size` (H, W): averaged where it shrinks, bilinear where it grows (both float32), or untouched."""
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    maps = maps.float()
    if size[0] <= height and size[1] <= width:
        return F.interpolate(maps, size=size, mode="area")
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
