"""One knob at inference: a quality, a budget of GFLOPs or milliseconds, or one factor for all; nothing is trained again.

The predictor says how likely each factor is to be good enough; an image takes the smallest one that is likely enough
(`Decision`). Raising that threshold moves images to larger factors. What share of images takes which factor at which
threshold was noted when the predictor was trained (`choices` of its checkpoint, on the validation images), so a mean cost can
be promised for images like those.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flyspeck.devices import torch_device
from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.cost import profile_factors
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter, FoldedFactors
from flyspeck.types import ImageBatch


@dataclass(frozen=True)
class Choice:
    """What a user asks of a detector with factors; at most one of the three."""

    budget: str | None = None
    """`0.6`, `0.6GFLOPs` or `12ms`: mean cost of an image (or tile)."""
    quality: float | None = None
    """From 0 (the smallest factor everywhere) to 1 (the largest): the probability that a factor must reach."""
    factor: float | None = None
    """This one for every image."""

    def __post_init__(self) -> None:
        given = [
            n for n, v in (("budget", self.budget), ("quality", self.quality), ("factor", self.factor)) if v is not None
        ]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other", fix="give one of them")
        if self.quality is not None and not 0 <= self.quality <= 1:
            raise UserError(f"a quality of {self.quality:g}", where="quality", fix="choose one from 0 to 1")


def apply_choice(
    detector: Detector, choice: Choice, description: Mapping[str, Any], *, size: tuple[int, int], device: str = "auto"
) -> Detector:
    """The detector that does what was asked; `size` (H, W) is that of an image or tile as the network sees it.

    Raises UserError for a detector without factors, or without a predictor where one is needed, and for a budget below the
    least possible, which it says.
    """
    if choice.factor is not None:
        return at_factor(detector, choice.factor)
    if choice.budget is None and choice.quality is None:
        return detector
    router = detector.router
    if not isinstance(router, FactorRouter):
        raise UserError(
            "the detector has no factor predictor: it cannot choose",
            where="budget" if choice.budget is not None else "quality",
            fix="train one with `flyspeck dpnet fit RUN`, and give RUN/dpnet",
        )
    if choice.quality is not None:
        # 1 is the largest factor for all, whatever the predictor says.
        router.decision = Decision("cheapest", choice.quality if choice.quality < 1 else 1.001)
        return detector
    assert choice.budget is not None
    amount, unit = parse_budget(choice.budget)
    if unit == "ms":
        costs = factor_times(detector, size, device=device)
    else:
        costs = [cost.gflops for cost in profile_factors(detector, size).values()]
    router.decision = decision_for_budget(
        amount, costs, description.get("choices", []), unit=unit, factors=router.switch.factors
    )
    return detector


def parse_budget(text: str) -> tuple[float, str]:
    """(`amount`, `GFLOPs` or `ms`) of `0.6`, `0.6 GFLOPs`, `12ms`."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(gflops|g|ms)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UserError(f"'{text}' is no budget", where="budget", fix="write 0.6GFLOPs or 12ms")
    return float(found[1]), "ms" if (found[2] or "").lower() == "ms" else "GFLOPs"


def decision_for_budget(
    budget: float, costs: Sequence[float], choices: Sequence[Sequence[float]], *, unit: str, factors: Sequence[float]
) -> Decision:
    """The highest threshold whose mean cost is within `budget`.

    `costs (m,)` are an image's at each factor, `choices` rows `[threshold, share at each factor …]`, threshold ascending.
    """
    if not choices:
        raise UserError(
            "the checkpoint does not say what its choices cost", where="budget", fix="fit the predictor again"
        )
    means = [sum(share * cost for share, cost in zip(row[1:], costs, strict=True)) for row in choices]
    within = [row[0] for row, mean in zip(choices, means, strict=True) if mean <= budget]
    if not within:
        raise UserError(
            f"a budget of {budget:g} {unit} is below the least possible, {min(means):.4g} {unit}"
            f" (every image at the factor {factors[-1]:g})",
            where="budget",
            fix=f"give at least {min(means):.4g}, or train smaller factors",
        )
    return Decision("cheapest", float(max(within)))


def factor_times(
    detector: Detector, size: tuple[int, int], *, device: str = "auto", runs: int = 7, warmup: int = 2
) -> list[float]:
    """Median milliseconds of one image of `size` (H, W) at each factor, predictor included, measured here and now.

    The factors take turns, so that a machine that slows down slows all of them.
    """
    place = torch_device(device)
    folded = FoldedFactors(detector).eval().to(place)
    channels = int(detector.pixel_norm.mean.shape[1])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *size, generator=generator).to(place)
    images = ImageBatch(image, (size,))
    router = folded.router
    assert router is not None
    places = range(len(find_switch(detector).factors))
    times: list[list[float]] = [[] for _ in places]
    for turn in range(warmup + runs):
        for place in places:
            router.choose_always(place)
            start = time.perf_counter()
            with torch.inference_mode():
                folded.detect(images)  # ends on the CPU: nothing to wait for
            if turn >= warmup:
                times[place].append(1000 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]
