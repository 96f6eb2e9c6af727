"""Measuring a detector of several factors: at each of them, and on the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.train.dynamic import MEAN, variant
from flyspeck.train.measure import Files, Measurement


def measure_factors(detector: nn.Module, *, measure: Callable[[nn.Module], Measurement]) -> Measurement:
    """What `measure(detector)` gives at every factor: metrics `ap50_tiny@0.33`, and their mean `@mean`.

    Without a suffix stand those of the default factor. A mean leaves out factors with nothing to measure (-1).
    """
    switch = find_switch(detector)  # type: ignore[arg-type]
    metrics: dict[str, float] = {}
    if detector.router is not None:
        raise ValueError("a detector with a predictor takes its own factors; measure it as any other")
    named: dict[str, list[float]] = {}
    files: list[Files] = []
    for factor in switch.factors:
        with switch.use(factor):
            own = measure(detector)
        if factor == switch.default:
            metrics |= own.metrics
            files += own.files
        files += [replace(one, variant=variant(factor)) for one in own.files]
        for name, value in own.metrics.items():
            metrics[f"{name}@{factor:g}"] = value
            named.setdefault(name, []).append(value)
    for name, values in named.items():
        counted = [v for v in values if v >= 0]
        metrics[f"{name}@{MEAN}"] = sum(counted) / len(counted) if counted else -1.0
    return Measurement(metrics, tuple(files))
