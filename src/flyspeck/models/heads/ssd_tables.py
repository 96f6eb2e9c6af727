"""The SSD configurations of the stride-elimination paper (Mudassar and Mukhopadhyay, BMVC 2019), number for number.

Sizes and steps are pixels at the configuration's image size. They come from the authors' released configuration files,
except where the text of the paper contradicts them or they are absent:

* MobileNetV1's base has 6,6,6,6,6,4 priors a cell: only these give the paper's 16.5 M parameters (the released file has
  6,6,6,6,4,4, which gives 16.14 M).
* `Size512`'s prior sizes are not published: the base's, scaled by 512/300. `Early`'s neither: the base's, with 10 and 45 px
  for the new first map.
* `S2L0-5` (Fig. 3c) cannot mean layer 5 counted from 0, which has no stride: the figure's 5 counts from 1, so layers 0 and
  4 lose theirs.
* The paper says that later pools of VGG16 are enlarged to keep the sizes of the last maps. The released `S1L2` does not do
  that, and only the released form gives the published 128.98 GFLOPs. `S1L2-LargePools` is the text's variant: pool4 has
  kernel and stride 4, so that fc7 is 19x19 as in the base and the base's extras follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Dual = Literal["none", "concat1", "concat2", "split"]

_SIX, _FOUR = (1.0, 2.0, 3.0), (1.0, 2.0)


@dataclass(frozen=True)
class SSDConfiguration:
    """What differs between the SSDs of the paper."""

    steps: tuple[float, ...]
    """Distance of neighbouring priors of each predictor's map, at `image`."""
    sizes: tuple[float, ...]
    """Prior size of each predictor's map, and one more for the last map's larger square."""
    ratios: tuple[tuple[float, ...], ...]
    """Of each map: 1 stands for two squares, every other ratio for both orientations."""
    extras: str
    """Kinds of the extra layers: S has stride 2 and padding 1, P stride 2 without padding, V stride 1 without padding."""
    eliminated: tuple[int, ...] = ()
    """Layers whose stride is set to 1."""
    dual: Dual = "none"
    """`concat1`/`concat2`: the large path's maps join predictor 2 (and 3); `split`: they have the later predictors."""
    early: bool = False
    """An extra first predictor on the map before (stride 8)."""
    large_pools: bool = False
    """VGG16: pool4 has kernel and stride 4."""
    image: int = 300


def _ratios(six: int, four: int) -> tuple[tuple[float, ...], ...]:
    return (_SIX,) * six + (_FOUR,) * four


_BASE = SSDConfiguration(
    steps=(16, 32, 64, 100, 150, 300), sizes=(45, 90, 135, 180, 225, 270, 315), ratios=_ratios(5, 1), extras="SSSS"
)
_S1 = replace(_BASE, steps=(8, 16, 32, 64, 100, 150), sizes=(10, 45, 90, 135, 180, 225, 270), eliminated=(0,))
_S1_FMAP1 = replace(_S1, steps=(8, 16, 32, 64, 100, 300), extras="SSSP")
_S2 = replace(_BASE, steps=(4, 8, 16, 32, 64, 100), sizes=(5, 10, 45, 90, 135, 180, 225))

MOBILENET_V1: dict[str, SSDConfiguration] = {
    "base": _BASE,
    "Size512": replace(
        _BASE,
        image=512,
        steps=(16, 32, 64, 128, 256, 512),
        sizes=tuple(round(s * 512 / 300, 1) for s in _BASE.sizes),
    ),
    "Early": replace(
        _BASE,
        steps=(8, *_BASE.steps),
        sizes=(10, *_BASE.sizes),
        ratios=_ratios(5, 2),
        early=True,
    ),
    "Anchor10": replace(_BASE, sizes=(10, *_BASE.sizes[1:])),
    "S1L6": replace(_S1, eliminated=(6,)),
    "S1L4": replace(_S1, eliminated=(4,)),
    "S1L0": _S1,
    "S1L4-Fmap1": replace(_S1_FMAP1, eliminated=(4,), sizes=(*_S1.sizes[:-1], 315)),
    "S1L0-Fmap1": _S1_FMAP1,
    "S2L4-6": replace(_S2, eliminated=(4, 6)),
    "S2L0-5": replace(_S2, eliminated=(0, 4)),
    "S1L0-DualPath19-C": replace(_S1_FMAP1, dual="concat1"),
    "S1L0-DualPath19-10-C": replace(_S1_FMAP1, dual="concat2"),
    "S1L0-DualPath19-10-S": replace(
        _S1, steps=(8, 16, 64, 100, 150, 300), sizes=(10, 45, 135, 180, 225, 270, 315), dual="split"
    ),
}

_VGG_BASE = SSDConfiguration(
    steps=(8, 16, 32, 64, 100, 300), sizes=(30, 60, 111, 162, 213, 264, 315), ratios=_ratios(4, 2), extras="SSVV"
)
_VGG_S1 = replace(
    _VGG_BASE, steps=(4, 8, 16, 32, 64, 100), sizes=(15, 30, 60, 111, 162, 213, 264), extras="SSSS", eliminated=(2,)
)

VGG16: dict[str, SSDConfiguration] = {
    "base": _VGG_BASE,
    "torchvision": replace(
        _VGG_BASE,
        sizes=(21, 45, 99, 153, 207, 261, 315),
        ratios=(_FOUR, _SIX, _SIX, _SIX, _FOUR, _FOUR),
    ),
    "S1L2": _VGG_S1,
    "S1L2-LargePools": replace(
        _VGG_S1,
        steps=(4, 16, 32, 64, 100, 300),
        sizes=(15, 60, 111, 162, 213, 264, 315),
        extras="SSVV",
        large_pools=True,
    ),
    "S1L2-DualPath": replace(
        _VGG_S1, steps=(4, 8, 32, 64, 100, 300), sizes=(15, 30, 111, 162, 213, 264, 315), extras="SSVV", dual="split"
    ),
}
