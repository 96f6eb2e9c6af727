"""Assigners by name. A host has thresholds of its own (0.7 and 0.3 in an RPN), so what a name gives is a builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from flyspeck.errors import UserError, nearest
from flyspeck.models.assigners.base import Assigner
from flyspeck.models.assigners.max_iou import MaxIoU, MaxIoUOptions
from flyspeck.models.assigners.nwd import AITOD_SIZE, NWD, NWDOptions
from flyspeck.models.assigners.rfla import RFLA, Distance, RFLAOptions
from flyspeck.models.assigners.simd import SimD, SimDOptions
from flyspeck.options import Options

AssignerBuilder = Callable[..., Assigner]
"""Takes the host's `foreground`, `background` and `low_quality`; an assigner that ranks does without them."""

CENTER_SAMPLING = "center_sampling"
"""FCOS's own rule: it needs points and size ranges, so that it is a function of that head and not of this contract."""
NAMES = ("max_iou", "nwd", "simd", "rfla")


class CenterSamplingOptions(Options):
    """FCOS's own rule: points near an object's centre, on the level of its size (`head.radius`, `head.range_scale`)."""

    name: Literal["center_sampling"] = "center_sampling"
    """Which assigner."""


AssignerOptions = Annotated[
    MaxIoUOptions | NWDOptions | SimDOptions | RFLAOptions | CenterSamplingOptions, Field(discriminator="name")
]
"""The options of one assigner; `name` says of which."""
ASSIGNER_OPTIONS: dict[str, type[Options]] = {
    "max_iou": MaxIoUOptions,
    "nwd": NWDOptions,
    "simd": SimDOptions,
    "rfla": RFLAOptions,
    CENTER_SAMPLING: CenterSamplingOptions,
}
"""Assigner name to its options."""


def named_assigner(
    name: str,
    *,
    foreground: float | None = None,
    background: float | None = None,
    constant: float = AITOD_SIZE,
    ratios: tuple[float, float] | None = None,
    receptive_fields: Sequence[float] = (),
    distance: Distance = "kl",
    k: int = 3,
    decay: float = 0.9,
) -> AssignerBuilder:
    """The builder of the assigner `name`. `foreground` and `background` win over the host's thresholds.

    `constant` is NWD's, `ratios` (m, n) are SimD's, the rest is RFLA's. Raises UserError for another name.
    """
    if name not in NAMES:
        raise UserError(f"no assigner '{name}'", where="assigner", fix=nearest(name, NAMES))
    if name == "simd" and ratios is None:
        raise UserError(
            "simd needs the means m and n of a training set", where="assigner", fix="give ratios, or train by a recipe"
        )
    if name == "rfla" and not receptive_fields:
        raise UserError(
            "rfla needs the levels' receptive fields", where="assigner", fix="see models.receptive.receptive_fields"
        )

    def build(*, foreground: float, background: float, low_quality: bool = True) -> Assigner:
        if name == "nwd":
            return NWD(foreground=foreground, background=background, low_quality=low_quality, constant=constant)
        if name == "simd":
            assert ratios is not None
            return SimD(foreground=foreground, background=background, low_quality=low_quality, m=ratios[0], n=ratios[1])
        if name == "rfla":
            return RFLA(receptive_fields, distance=distance, k=k, decay=decay)
        return MaxIoU(foreground=foreground, background=background, low_quality=low_quality)

    def with_own_thresholds(*, foreground: float, background: float, low_quality: bool = True) -> Assigner:
        upper = foreground if own[0] is None else own[0]
        lower = background if own[1] is None else own[1]
        # One threshold above the host's other one moves that with it: 0.3 for both where only 0.3 is asked from.
        if own[0] is not None and own[1] is None:
            lower = min(lower, upper)
        if lower > upper:
            raise UserError(f"background {lower} above foreground {upper}", where="assigner", fix="give both in order")
        return build(foreground=upper, background=lower, low_quality=low_quality)

    own = (foreground, background)
    return with_own_thresholds


def refuse_unless(name: str | None, host: str, accepted: Sequence[str], hosts: Sequence[str]) -> None:
    """Raises UserError unless `host` accepts the assigner `name`; `hosts` are those that do."""
    if name is None or name in accepted:
        return
    can = f"{name} works with {', '.join(hosts)}" if hosts else "leave model.assigner out"
    takes = f"{host} takes {', '.join(accepted)}" if accepted else f"{host} assigns by its own rule"
    raise UserError(f"{host} cannot take the assigner {name}", where="model.assigner", fix=f"{takes}; {can}")
