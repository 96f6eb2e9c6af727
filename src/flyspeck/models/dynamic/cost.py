"""What a dynamic detector costs at each of its factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch, run_prefix
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.profile import Profile, profile
from flyspeck.types import ImageBatch


def profile_factors(
    detector: Detector, size: tuple[int, int], *, name: str = "", convention: str = "mmcv"
) -> dict[float, Profile]:
    """The cost of one image of `size` (H, W) at each factor; see `models.profile`. Parameters are those of all factors.

    Where the detector has a predictor, each factor's GFLOPs include it, as the part `predictor`.
    """
    switch = find_switch(detector)
    choosing = predictor_gflops(detector, size, convention=convention)
    found = {}
    for factor in switch.factors:
        with switch.use(factor):
            cost = profile(detector, size, name=name, convention=convention)
        if detector.router is not None:
            cost = replace(cost, gflops=cost.gflops + choosing, parts={**cost.parts, "predictor": choosing})
        found[factor] = cost
    return found


@torch.no_grad()
def predictor_gflops(detector: Detector, size: tuple[int, int], *, convention: str = "mmcv") -> float:
    """GFLOPs of the predictor on one image of `size` (H, W); 0 for a detector without one."""
    if not isinstance(detector.router, FactorRouter):
        return 0.0
    twin = copy.deepcopy(detector).to("meta").eval()
    shared = run_prefix(twin, ImageBatch(torch.empty(1, 3, *size, device="meta"), (size,)))[1]
    return profile(_OnMap(detector.router.predictor, tuple(shared.shape)), size, convention=convention).gflops


class _OnMap(nn.Module):
    """A predictor that reads an empty map of a given shape instead of the image."""

    def __init__(self, predictor: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.predictor, self.shape = predictor, shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` says the device only."""
        return self.predictor(torch.empty(self.shape, device=x.device))


def mean_gflops(costs: Mapping[float, Profile], shares: Mapping[float, float]) -> float:
    """GFLOPs of a data set of which the share `shares[f]` of images takes factor f (sec. IV-A); shares sum to 1."""
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares of images must sum to 1, got {sum(shares.values()):g}")
    return sum(costs[factor].gflops * share for factor, share in shares.items())
