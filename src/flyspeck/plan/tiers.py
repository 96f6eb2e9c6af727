"""The detectors that a plan may take, from the cheapest to the dearest, and which one is taken for a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flyspeck.errors import counted
from flyspeck.plan.choices import JUDGED, Speed, Tier
from flyspeck.plan.fingerprint import Fingerprint

MANY_CLASSES = 200
"""From here on, scores of every class at every point would cost more than all the rest."""
FEW_IMAGES = 3600
"""Images that a training should see at least: the short trainings of our tables see as many."""
FEW_PASSES = 6
"""Passes over the training set that it should have, for the same reason."""


def _two_stage(channels: int, hidden: int, neck: str = "") -> dict[str, Any]:
    return {
        "name": f"faster_rcnn:mobilenet_v2{neck}",
        "channels": channels,
        "norm": "bn",
        "head": {"hidden": hidden, "samples": 128, "train_proposals": 500, "proposals": 300},
    }


def _points(width: float, channels: int) -> dict[str, Any]:
    return {
        "name": "fcos:bh_resnet14",
        "width": width,
        "channels": channels,
        "levels": "2-5",
        "norm": "bn",
        "head": {"depth": 2, "reach": 0.5, "quality": "iou"},
        "min_score": 0.05,
    }


TIERS: tuple[Tier, ...] = (
    Tier("smallest", "FCOS on a bottom-heavy ResNet-14 of a quarter of the width", _points(0.25, 16), 4, 3e-3, JUDGED,
         anchored=False, pretrained=False),
    Tier("small", "FCOS on a bottom-heavy ResNet-14 of half the width", _points(0.5, 32), 4, 3e-3, "demo",
         anchored=False, pretrained=False),
    Tier("medium", "Faster R-CNN on MobileNetV2 with 32 channels", _two_stage(32, 128), 8, 1e-3, JUDGED, tracing=45.0),
    Tier("large", "Faster R-CNN on MobileNetV2 with 64 channels", _two_stage(64, 256), 16, 1e-3, "hituav", tracing=45.0),
    Tier("largest", "Faster R-CNN on MobileNetV2 with SSPNet's neck of 128 channels",
         {**_two_stage(128, 256, ":sspnet"), "norm": "none"}, 8, 1e-3, "teacher",
         fuses=False, tracing=60.0),
    Tier("speck_n", "speck_n, made to run in real time", {"name": "speck_n"}, 16, 2e-3, "speck",
         anchored=False, pretrained=False, fast=True, weight_decay=0.02),
    Tier("speck_s", "speck_s, made to run in real time", {"name": "speck_s"}, 16, 2e-3, "speck",
         anchored=False, pretrained=False, fast=True, weight_decay=0.02),
    Tier("speck_m", "speck_m, made to run in real time", {"name": "speck_m"}, 16, 2e-3, "speck",
         anchored=False, pretrained=False, fast=True, weight_decay=0.02),
)  # fmt: skip
"""From the cheapest to the dearest; then the fast ones, from the cheapest to the dearest too."""


def allowed_tiers(found: Fingerprint) -> list[Tier]:
    """Detectors that can learn so many classes; those without an object cost as much as the others."""
    return [tier for tier in TIERS if tier.anchored or len(found.classes) <= MANY_CLASSES]


def images_seen(tiers: Sequence[Tier], speeds: Mapping[str, Speed], minutes: float) -> dict[str, float]:
    """Images that a training of so many minutes sees, by the tier's name."""
    return {tier.name: speeds[tier.name].images_per_second * 60 * minutes for tier in tiers}


def best_tier(found: Fingerprint, speeds: Mapping[str, Speed], minutes: float) -> tuple[Tier, str]:
    """The largest detector that sees enough images in the time, and why; the one that sees most where none does.

    `speeds` are those of the tiers that were measured, by name. A fast one is taken where no other sees enough and it sees more:
    what was measured of the fast ones is not beside the others on the same clock, which `auto` does.
    """
    every = [tier for tier in allowed_tiers(found) if tier.name in speeds]
    tiers = [tier for tier in every if not tier.fast] or every
    wanted = max(FEW_IMAGES, FEW_PASSES * found.images)
    seen = images_seen(every, speeds, minutes)
    fitting = [tier for tier in tiers if seen[tier.name] >= wanted]
    tier = fitting[-1] if fitting else max(every, key=lambda one: seen[one.name])
    words = f"it sees {seen[tier.name]:.0f} images in {counted(float(f'{minutes:.3g}'), 'minute')}"
    if not fitting:
        return tier, f"{words}, the most of all, where {wanted} would be good"
    larger = [one for one in tiers if tiers.index(one) > tiers.index(tier)]
    if larger:
        words += f"; {larger[0].name} would see {seen[larger[0].name]:.0f}, fewer than the {wanted} that it takes"
    return tier, words
