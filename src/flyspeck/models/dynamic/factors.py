"""Down-sampling factors, and which of them acts now: one switch for a whole detector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flyspeck.errors import UserError

FACTORS = (0.5, 0.33, 0.25)
"""DPNet's down-sampling factors (sec. IV-A); 0.5 is the stride 2 that the detector had."""


class FactorSwitch:
    """Which factor acts: a pool and all private norms of one detector hold the same switch.

    The factors are kept in descending order, so that copies of norm layers have the same places however they are listed.
    Outside of `use` the default acts: the stride that the detector was built with. A deep copy of the detector has a
    switch of its own. One thread at a time.
    """

    def __init__(self, factors: Sequence[float], *, default: float) -> None:
        self.factors = check_factors(factors, default=default)
        self.default = default
        self.index = self.factors.index(default)

    @property
    def active(self) -> float:
        """The factor that acts."""
        return self.factors[self.index]

    def place(self, factor: float) -> int:
        """The index of `factor`; raises UserError for one that the detector was not made for."""
        if factor not in self.factors:
            raise UserError(
                f"no down-sampling factor {factor:g}",
                where="factor",
                fix=f"the detector has {_listing(self.factors)}",
            )
        return self.factors.index(factor)

    @contextmanager
    def use(self, factor: float) -> Iterator[None]:
        """Lets `factor` act on everything that runs inside the context, backward passes of checkpointed parts included."""
        before, self.index = self.index, self.place(factor)
        try:
            yield
        finally:
            self.index = before


def check_factors(factors: Sequence[float], *, default: float) -> tuple[float, ...]:
    """The factors, largest first; raises UserError for an empty list, values out of (0, 1], repeats, or no `default`."""
    found = tuple(sorted((float(f) for f in factors), reverse=True))
    wrong = [f for f in found if not (math.isfinite(f) and 0 < f <= 1)]
    if wrong:
        raise UserError(
            f"{wrong[0]:g} is no down-sampling factor", where="factors", fix="give numbers above 0 and up to 1"
        )
    if len(set(found)) < len(found):
        raise UserError(f"a factor is listed twice: {_listing(found)}", where="factors", fix="list each factor once")
    if default not in found:
        raise UserError(
            f"the factors {_listing(found) or '(none)'} do not have the default {default:g}",
            where="factors",
            fix=f"add {default:g}: it is the stride that the detector has without dynamic pooling",
        )
    return found


def _listing(factors: Sequence[float]) -> str:
    return ", ".join(f"{f:g}" for f in factors)
