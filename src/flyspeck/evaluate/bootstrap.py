"""How sure is a number? Bootstrap over images, and the paired comparison of two runs.

Matching happens within an image, so it is done once; a resample only changes how often each image counts. An AP of
weighted detections is exact: of equal copies of a hit the last has the largest precision, which the envelope spreads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import RECALL_POINTS, TINIEST, mean_of_known, prepare
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import APProtocol


@dataclass(frozen=True)
class _Curve:
    """Counted detections of one class in one bin by falling score."""

    hit: np.ndarray
    image: np.ndarray
    truths_of_image: np.ndarray
    """(I,) counted ground truths of each image."""

    def average_precision(self, weight: np.ndarray) -> float:
        """AP with image i counted `weight[i]` times; -1 without ground truth."""
        total = float((self.truths_of_image * weight).sum())
        if not total:
            return -1.0
        own = weight[self.image]
        found = np.cumsum(self.hit * own)
        precision = found / (np.cumsum(own) + TINIEST)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.r_[envelope, 0.0][np.searchsorted(found / total, RECALL_POINTS, side="left")].mean())


def _curves(
    annotations: Annotations, detections: DetectionTable, protocol: APProtocol, iou: float
) -> dict[str, list[_Curve]]:
    """Curves of every class, by bin."""
    inputs = prepare(annotations, detections, protocol)
    curves: dict[str, list[_Curve]] = {}
    for area in protocol.bins:
        outcome = inputs.outcomes[area.name, iou]
        for k in range(len(annotations.classes)):
            rows = inputs.by_score[inputs.class_bounds[k] : inputs.class_bounds[k + 1]]
            rows = rows[~outcome.ignored[rows]]
            mine = outcome.counted & (inputs.truths.label == k)
            truths = np.bincount(inputs.truths.image[mine], minlength=len(annotations))
            curves.setdefault(area.name, []).append(_Curve(outcome.hit[rows], inputs.found.image[rows], truths))
    return curves


def _resamples(images: int, samples: int, seed: int) -> np.ndarray:
    """(S, I) how often each image is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def _mean_ap(curves: list[_Curve], weight: np.ndarray) -> float:
    return mean_of_known(np.array([curve.average_precision(weight) for curve in curves]))


def interval_rows(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """AP of every bin with its percentile interval (`low`, `high`) over `samples` resamples of the images.

    Resamples without ground truth in a bin are left out; the interval is None with fewer than two images.
    """
    weights = _resamples(len(annotations), samples, seed) if len(annotations) else np.zeros((0, 0))
    rows = []
    for area, curves in _curves(annotations, detections, protocol, iou).items():
        drawn = np.array([_mean_ap(curves, weight) for weight in weights])
        drawn = drawn[drawn >= 0]
        row = {"metric": "AP", "iou": iou, "area": area, "value": _mean_ap(curves, np.ones(len(annotations)))}
        known = len(annotations) > 1 and len(drawn) > 1
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist() if known else (None, None)
        rows.append(row | {"low": low, "high": high, "level": level, "samples": len(drawn)})
    return rows


def compare(
    annotations: Annotations,
    ours: DetectionTable,
    theirs: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """AP of two runs on the same images: their difference, its interval and a p-value, for every bin.

    Both runs are scored on the same resamples, so what makes images hard cancels out. `p_value` is two-sided: twice the
    share of resamples in which the difference has the other sign or is 0, counting the data themselves once.
    """
    if len(annotations) < 2:
        raise UserError(f"{len(annotations)} image(s): too few to compare runs", fix="give at least two images")
    weights = _resamples(len(annotations), samples, seed)
    first, second = (_curves(annotations, table, protocol, iou) for table in (ours, theirs))
    rows = []
    for area in first:
        one = np.ones(len(annotations))
        a, b = _mean_ap(first[area], one), _mean_ap(second[area], one)
        row: dict[str, Any] = {"metric": "AP", "iou": iou, "area": area, "value": a, "other": b}
        if a < 0:
            rows.append(row | {"difference": None, "low": None, "high": None, "p_value": None, "samples": 0})
            continue
        pairs = np.array([(_mean_ap(first[area], w), _mean_ap(second[area], w)) for w in weights])
        drawn = (pairs[:, 0] - pairs[:, 1])[pairs[:, 0] >= 0]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
        rows.append(row | {"difference": a - b, "low": low, "high": high, "p_value": p_value, "samples": len(drawn)})
    return rows


def drawn_aps(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """AP of every bin in each of `samples` resamples of the images, `(S,)`; NaN without ground truth in a resample.

    The same images, `samples` and `seed` give the same resamples: differences of two runs are paired.
    """
    weights = _resamples(len(annotations), samples, seed) if len(annotations) else np.zeros((0, 0))
    drawn = {}
    for area, curves in _curves(annotations, detections, protocol, iou).items():
        values = np.array([_mean_ap(curves, weight) for weight in weights])
        drawn[area] = np.where(values < 0, np.nan, values)
    return drawn
