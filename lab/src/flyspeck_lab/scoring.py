"""What a table scores beyond a card: bins of its own, pre-trainings by their top-1, and each factor of a dynamic detector."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.evaluate import customised, protocol_named
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin, Protocol
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.publish.score import SAMPLES, Score, cost, interval


def rule_of(protocol: str, *, bins: list[float] | None, bin_scale: float = 1.0) -> Protocol:
    """The protocol of a row: `protocol` with `bins` (sizes in pixels that bound them) in the place of its own.

    `bin_scale` multiplies the bounds of the bins (lengths in pixels): for a set with the same objects at another size. Raises
    UserError where the protocol has no bins that could be scaled.
    """
    rule = customised(protocol_named(protocol), size_edges=None if bins is None else tuple(bins))
    if bin_scale == 1:
        return rule
    if not isinstance(rule, APProtocol):
        raise UserError(f"the bins of '{protocol}' cannot be scaled", where="bin_scale")
    scaled = [Bin(b.name, b.low * bin_scale**2, min(INFINITE, b.high * bin_scale**2)) for b in rule.bins]
    return replace(rule, bins=tuple(scaled))


def share_score(share: float, count: int) -> Score:
    """Of a share of `count` images that are right (top-1): binomial resamples."""
    draws = np.random.default_rng(0).binomial(count, share, SAMPLES) / count
    return Score({"top1": round(share, 5)}, {"top1": interval(draws) or [share, share]}, {"top1": draws})


def factor_cost(
    detector: Detector, variant: str, size: tuple[int, int], *, proposals: int | None, latency_runs: int
) -> dict[str, Any]:
    """`cost` at the factor of a variant `df0.33` of a dynamic detector; empty for any other variant."""
    factor = re.fullmatch(r"df([0-9.]+)", variant)
    if factor is None:
        return {}
    with find_switch(detector).use(float(factor[1])):
        return cost(detector, size, proposals=proposals, latency_runs=latency_runs)
