"""What a dynamic detector costs at each of its factors."""

from __future__ import annotations

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.models.profile import Profile, profile


def profile_factors(
    detector: Detector, size: tuple[int, int], *, name: str = "", convention: str = "mmcv"
) -> dict[float, Profile]:
    """The cost of one picture of `size` (H, W) at each factor; see `models.profile`. Parameters are those of all factors."""
    switch = find_switch(detector)
    found = {}
    for factor in switch.factors:
        with switch.use(factor):
            found[factor] = profile(detector, size, name=name, convention=convention)
    return found


def mean_gflops(costs: dict[float, Profile], shares: dict[float, float]) -> float:
    """GFLOPs of a data set of which the share `shares[f]` of pictures takes factor f (sec. IV-A); shares sum to 1."""
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares of pictures must sum to 1, got {sum(shares.values()):g}")
    return sum(costs[factor].gflops * share for factor, share in shares.items())
