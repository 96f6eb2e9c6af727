"""What a training's curves say when it is done: whether it should have gone on for longer, or has over-fitted.

The rules, for a curve with a value an epoch (a loss) or an evaluation (a metric, from 0 to 1), of which the last quarter is
compared with the quarter before. A curve still moves where the means of the two differ by more than `LEAST_GAIN` (a metric: a
point of 100) or `LEAST_FALL` (a loss: 2 % of its mean before), and by more than twice the scatter of such a difference, which
is estimated from the curve's second differences, so that a trend does not count as scatter. Less than `LEAST_POINTS` values
say nothing.

1. **Over-fitted**: the metric's last quarter lies below its best quarter by as much, while the loss fell since then.
2. **Train longer**: the metric still rises; or, where there are too few evaluations to tell, the loss still falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flyspeck.evaluate.results import falls

LEAST_POINTS = 4
LEAST_GAIN = 0.01
LEAST_FALL = 0.02


def remarks(history: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """What is to be said of a finished run, a sentence each; none where the curves are flat, or too short.

    `history` has a record an epoch (`losses`, name to mean; of some `metrics`, name to value), `metric` picks the best weights:
    of a miss rate the lowest.
    """
    epochs = [float(record["epoch"]) for record in history]
    losses = np.array([_total(record) for record in history])
    measured = [
        (k, record["metrics"][metric]) for k, record in enumerate(history) if metric in record.get("metrics", {})
    ]
    at, values = [k for k, _ in measured], np.array([value for _, value in measured], float)
    told = len(values) >= LEAST_POINTS and bool((values >= 0).all())
    if told:
        less = falls(metric)
        values = 1 - values if less else values  # from here on more is better
        size = max(1, len(values) // 4)
        means = np.convolve(values, np.full(size, 1 / size), mode="valid")
        best = int(means.argmax())
        fallen, since = float(means[best] - means[-1]), at[best + size - 1]
        before, after = losses[max(0, since - size + 1) : since + 1].mean(), losses[-size:].mean()
        # The best quarter was chosen among all, so that it lies high by chance: half as much again is wanted.
        if _beyond(fallen, 1.5 * LEAST_GAIN, 1.5 * _scatter(values, size)) and after < (1 - LEAST_FALL) * before:
            peak = at[int(values.argmax())]
            top, last = (100 * float(1 - mean if less else mean) for mean in (means[best], means[-1]))
            return [
                f"over-fitted: {metric} {'rose' if less else 'fell'} from {top:.1f} to {last:.1f} in validation while the loss "
                f"fell on. The best weights are of epoch {epochs[peak]:g}; more images, stronger augmentation or fewer "
                "epochs would help, more epochs would not"
            ]
        gain = _change(values)
        if _beyond(gain, LEAST_GAIN, _scatter(values, size)):
            return [
                f"{metric} was still {'falling' if less else 'rising'} at the end "
                f"({-100 * gain if less else 100 * gain:+.1f} points in the last quarter): train longer"
            ]
        return []
    finite = losses[np.isfinite(losses)]
    if len(finite) < LEAST_POINTS:
        return []
    size = max(1, len(finite) // 4)
    fall, level = -_change(finite), float(finite[-2 * size : -size].mean())
    if _beyond(fall, LEAST_FALL * abs(level), _scatter(finite, size)):
        return [f"the loss was still falling at the end ({100 * fall / level:.0f} % in the last quarter): train longer"]
    return []


def _total(record: Mapping[str, Any]) -> float:
    losses = record.get("losses", {})
    return float(sum(losses.values())) if losses else math.nan


def _change(values: np.ndarray) -> float:
    """The mean of the last quarter against that of the quarter before."""
    size = max(1, len(values) // 4)
    return float(values[-size:].mean() - values[-2 * size : -size].mean())


def _scatter(values: np.ndarray, size: int) -> float:
    """Standard deviation of the difference of two means of `size` values, without the trend."""
    bends = np.diff(values, 2)
    return math.sqrt(float((bends**2).mean()) / 6) * math.sqrt(2 / size)


def _beyond(change: float, least: float, scatter: float) -> bool:
    return change > least and change > 2 * scatter
