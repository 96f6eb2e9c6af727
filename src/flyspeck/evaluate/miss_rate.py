"""Log-average miss rate: the share of objects missed at nine rates of false positives per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import MissRateProtocol, Setup
from flyspeck.evaluate.tables import RankedDetections, TruthTable, matcher, ranked, truth_table

ABSENT = 2.0  # what the reference stores for a class without ground truth


@dataclass(frozen=True)
class MissRateCurve:
    """Miss rates at the nine points for one setup and IoU."""

    setup: str
    iou: float
    miss_rates: np.ndarray
    """(K, 9); 2.0 for a class without ground truth."""
    truths: np.ndarray
    """(K,) ground truths that count."""


def fppi_points(protocol: MissRateProtocol) -> np.ndarray:
    """The nine rates of false positives per image, (9,)."""
    if protocol.fppi is not None:
        return np.asarray(protocol.fppi)
    return np.exp(np.linspace(np.log(1e-2), np.log(1.0), 9)) if not protocol.wrap else _reference_points()


def _reference_points() -> np.ndarray:
    # The reference spells a logarithmic range by its step, which ends slightly above 1.0 (1.0000000000000027).
    return np.exp(np.arange(np.log(0.01), 1e-6, np.log(100) / 8))


def miss_rate_rows(
    annotations: Annotations, detections: DetectionTable, protocol: MissRateProtocol
) -> list[dict[str, Any]]:
    """One row per setup and IoU."""
    points = fppi_points(protocol)
    setups = {setup.name: setup for setup in protocol.setups}
    rows = []
    for curve in miss_rate_curves(annotations, detections, protocol):
        setup = setups[curve.setup]
        rows.append(
            {
                "protocol": protocol.name,
                "metric": "MR",
                "iou": curve.iou,
                "setup": setup.name,
                "size_or_height_range": [setup.low, setup.high],
                "vis_range": [setup.visible_low, setup.visible_high],
                "value": log_average(curve.miss_rates, protocol.floor),
                "n_images": len(annotations),
                "n_gt_per_class": curve.truths.tolist(),
                "fppi": points.tolist(),
                "miss_rate_at_fppi": curve.miss_rates.tolist(),
            }
        )
    return rows


def log_average(miss_rates: np.ndarray, floor: float = 0.0) -> float:
    """Geometric mean over points and classes with ground truth; -1 if there is none."""
    known = miss_rates[miss_rates < ABSENT]
    if not known.size:
        return -1.0
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(np.maximum(known, floor)))))


def miss_rate_curves(
    annotations: Annotations, detections: DetectionTable, protocol: MissRateProtocol
) -> list[MissRateCurve]:
    """Miss rates of every setup and IoU."""
    if protocol.first_class_only:
        detections = detections.select(detections.labels == 0)
    found = ranked(detections, annotations, protocol.max_dets)
    truths = truth_table(annotations, protocol.ignore)
    measure, visible = _measures(annotations, truths, protocol)
    own = found.sides[:, 1] if protocol.measure == "height" else np.sqrt(found.area)
    classes = 1 if protocol.first_class_only else len(annotations.classes)
    curves = []
    for setup in protocol.setups:
        low, high = setup.low / protocol.expand, setup.high * protocol.expand
        kept = found.select((own >= low) & (own < high))
        ignored = truths.flagged | (measure < setup.low) | (measure > setup.high)
        ignored |= (visible < setup.visible_low) | (visible > setup.visible_high)
        curves += _curves_of_setup(setup, kept, truths, ignored, protocol, classes, len(annotations))
    return curves


def _measures(
    annotations: Annotations, truths: TruthTable, protocol: MissRateProtocol
) -> tuple[np.ndarray, np.ndarray]:
    """Size or height in pixels, and the visible share, `(M,)` each; a field of the source wins over the box."""
    extra = annotations.extra
    if protocol.measure == "height":
        given, derived = extra.get("height"), truths.sides[:, 1]
    else:
        given, derived = extra.get("size"), np.sqrt(truths.area)
    visible = extra.get("vis_ratio", extra.get("vis"))
    shown = np.full(len(truths.row), np.nan) if visible is None else np.asarray(visible, np.float64)[truths.row]
    measure = derived if given is None else _where_known(np.asarray(given, np.float64)[truths.row], derived)
    return measure, _where_known(shown, np.full(len(shown), 1 - 1e-12))


def _where_known(given: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(given), given, otherwise)


def _curves_of_setup(
    setup: Setup,
    found: RankedDetections,
    truths: TruthTable,
    ignored: np.ndarray,
    protocol: MissRateProtocol,
    classes: int,
    images: int,
) -> list[MissRateCurve]:
    matchings = matcher(found, truths, protocol.rule).at(ignored, protocol.ious)
    totals = np.bincount(truths.label[~ignored], minlength=classes)[:classes]
    by_score = np.lexsort((-found.scores, found.label))
    bounds = np.searchsorted(found.label[by_score], np.arange(classes + 1))
    curves = []
    for iou, matching in zip(protocol.ious, matchings, strict=True):
        hit = (matching.truth >= 0) & ~matching.ignored
        if not protocol.id_zero_matches:
            hit[hit] = truths.ids[matching.truth[hit]] != 0
        rates = np.full((classes, 9), ABSENT)
        for k in np.flatnonzero(totals):
            rows = by_score[bounds[k] : bounds[k + 1]]
            wrong = ~hit[rows] & ~matching.ignored[rows]
            recall, fppi = np.cumsum(hit[rows]) / totals[k], np.cumsum(wrong) / images
            rates[k] = 1 - _recall_at_fppi(recall, fppi, fppi_points(protocol), wrap=protocol.wrap)
        curves.append(MissRateCurve(setup.name, iou, rates, totals))
    return curves


def _recall_at_fppi(recall: np.ndarray, fppi: np.ndarray, points: np.ndarray, *, wrap: bool) -> np.ndarray:
    """Recall at the last detection whose false positives per image do not exceed each point, (P,).

    `recall` and `fppi` (N,) run over all detections by falling score, ignored ones included: an ignored detection in front
    is a place on the curve with no false positive yet.
    """
    if not len(recall):
        return np.zeros(len(points))
    last = np.searchsorted(fppi, points, side="right") - 1
    if wrap:
        return recall[last]  # -1 is the last: the reference's own slip
    return np.where(last >= 0, recall[last], 0.0)
