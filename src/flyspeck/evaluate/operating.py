"""What a detector is like at a working point: recall at a rate of false alarms, oLRP, calibration of its scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import APInputs, Outcome, mean_of_known, prepare
from flyspeck.evaluate.counts import WorkingPoint
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import overlapping_pairs
from flyspeck.evaluate.protocols import APProtocol

FALSE_ALARMS = (0.1, 0.3, 1.0, 3.0, 10.0)
NOTHING_FOUND = 0.5
"""The score threshold of the best F1 where no detection hits anything: one is as bad as another."""


def working_point(inputs: APInputs, area: str, iou: float, *, score: float | None = None) -> WorkingPoint:
    """The score threshold `score`, or that of the best F1 (the highest of several), at `iou` in the bin `area`.

    A threshold takes all detections of one score or none. Ignored detections count for nothing.
    """
    outcome = inputs.outcomes[area, iou]
    total = int(outcome.counted.sum())
    order = np.argsort(-inputs.found.scores, kind="stable")
    order = order[~outcome.ignored[order]]
    scores, hit = inputs.found.scores[order], outcome.hit[order]
    if score is not None:
        at = score
    elif hit.any():
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
        at = float(scores[last[int(np.argmax(np.cumsum(hit)[last] / (last + 1 + total)))]])
    else:
        at = NOTHING_FOUND
    kept, found = int((scores >= at).sum()), int(hit[scores >= at].sum())
    return WorkingPoint(
        at,
        f1=2 * found / (kept + total) if total else -1.0,
        precision=found / kept if kept else -1.0,
        recall=found / total if total else -1.0,
    )


def recall_rows(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    rates: tuple[float, ...] = FALSE_ALARMS,
    inputs: APInputs | None = None,
) -> list[dict[str, Any]]:
    """Recall of every bin, classes pooled, at the lowest score with no more than `rates` false positives per image.

    `score` is that threshold; recall is 0 and the score None where even the best detection is one false alarm too many.
    """
    inputs = prepare(annotations, detections, protocol) if inputs is None else inputs
    rows = []
    for area in protocol.bins:
        outcome = inputs.outcomes[area.name, iou]
        total = int(outcome.counted.sum())
        order = np.argsort(-inputs.found.scores, kind="stable")
        order = order[~outcome.ignored[order]]
        scores, hit = inputs.found.scores[order], outcome.hit[order]
        # A threshold takes all detections of one score or none, so only the last of a tie is a working point.
        last = np.r_[scores[1:] != scores[:-1], True] if len(scores) else np.zeros(0, bool)
        found, alarms, scores = np.cumsum(hit)[last], np.cumsum(~hit)[last] / max(len(annotations), 1), scores[last]
        for rate in rates:
            place = int(np.searchsorted(alarms, rate, side="right")) - 1
            recall = -1.0 if not total else float(found[place] / total) if place >= 0 else 0.0
            score = float(scores[place]) if place >= 0 else None
            rows.append(
                {"area": area.name, "iou": iou, "false_positives_per_image": rate} | {"value": recall, "score": score}
            )
    return rows


def olrp_rows(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    inputs: APInputs | None = None,
) -> list[dict[str, Any]]:
    """Optimal localisation-recall-precision error of every bin, mean over classes; lower is better (Oksuz et al., 2018, eq. 4).

    LRP(s) = (sum over TP of (1 - IoU) / (1 - t) + FP + FN) / (TP + FP + FN) of the detections that score at least s; oLRP is
    its minimum over s. `localisation` (mean 1 - IoU), `false_positive` (1 - precision), `false_negative` (1 - recall) and
    `score` are those at the minimum, means over classes too: over those of which something is kept at the minimum, as a class
    without detections has neither an IoU nor a precision (-1 if there is none).
    """
    inputs = prepare(annotations, detections, protocol) if inputs is None else inputs
    overlap = _matched_iou(inputs)
    rows = []
    for area in protocol.bins:
        outcome = inputs.outcomes[area.name, iou]
        parts = [
            part
            for k in range(len(annotations.classes))
            if (part := _olrp(inputs, outcome, overlap(outcome), k, iou)) is not None
        ]
        means = [mean_of_known(np.array(part)) for part in zip(*parts, strict=True)] if parts else [-1.0] * 5
        names = ("value", "localisation", "false_positive", "false_negative", "score")
        rows.append({"area": area.name, "iou": iou} | dict(zip(names, means, strict=True)))
    return rows


def _matched_iou(inputs: APInputs) -> Any:
    """A function that gives the IoU of every hit of an outcome, (N,); 0 elsewhere."""
    found, truths = inputs.found, inputs.truths

    def overlap(outcome: Outcome) -> np.ndarray:
        value = np.zeros(len(found))
        rows = np.flatnonzero(outcome.hit)
        number = np.arange(len(rows))
        pairs = overlapping_pairs(
            found.boxes[rows],
            number,
            truths.boxes[outcome.truth[rows]],
            number,
            sides=found.sides[rows],
            truth_sides=truths.sides[outcome.truth[rows]],
        )
        value[rows[pairs.detection]] = pairs.iou
        return value

    return overlap


NOTHING_KEPT = (1.0, -1.0, -1.0, 1.0, -1.0)  # all is missed; no IoU, precision or score to speak of


def _olrp(
    inputs: APInputs, outcome: Outcome, overlap: np.ndarray, label: int, iou: float
) -> tuple[float, float, float, float, float] | None:
    """oLRP, its three components and its score for one class; None without ground truth."""
    total = int((outcome.counted & (inputs.truths.label == label)).sum())
    if not total:
        return None
    rows = np.flatnonzero((inputs.found.label == label) & ~outcome.ignored)
    rows = rows[np.argsort(-inputs.found.scores[rows], kind="stable")]
    if not len(rows):
        return NOTHING_KEPT
    hit = outcome.hit[rows]
    tp, fp = np.cumsum(hit), np.cumsum(~hit)
    loss = np.cumsum(np.where(hit, 1 - overlap[rows], 0.0))
    error = (loss / (1 - iou) + fp + total - tp) / (fp + total)  # TP + FP + FN = FP + all ground truths
    last = np.flatnonzero(np.r_[np.diff(inputs.found.scores[rows]) != 0, True])
    at = last[int(np.argmin(error[last]))]
    if error[at] >= 1:
        # Saying nothing at all has an error of exactly 1.
        return NOTHING_KEPT
    count = max(int(tp[at]), 1)
    wrong, missed = fp[at] / (tp[at] + fp[at]), 1 - tp[at] / total
    return float(error[at]), float(loss[at] / count), float(wrong), float(missed), float(inputs.found.scores[rows[at]])


def calibration(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    parts: int = 10,
    inputs: APInputs | None = None,
) -> dict[str, Any]:
    """Are scores probabilities? The share of hits among the detections of similar score, in the protocol's first bin.

    `error` is the expected calibration error of detections (Kuppers et al., 2020): mean |share of hits - mean score| over
    `parts` equal ranges of score, weighted by their detections; ignored detections take no part.
    """
    inputs = prepare(annotations, detections, protocol) if inputs is None else inputs
    outcome = inputs.outcomes[protocol.bins[0].name, iou]
    counted = ~outcome.ignored
    scores, hit = np.clip(inputs.found.scores[counted], 0, 1), outcome.hit[counted]
    part = np.minimum((scores * parts).astype(np.int64), parts - 1)
    number = np.bincount(part, minlength=parts)
    known = np.maximum(number, 1)
    mean = np.bincount(part, scores, parts) / known
    precision = np.bincount(part, hit, parts) / known
    error = float((number * np.abs(precision - mean)).sum() / max(len(scores), 1)) if len(scores) else -1.0
    rows = [
        {"from": k / parts, "to": (k + 1) / parts, "detections": int(number[k])}
        | {"score": float(mean[k]) if number[k] else None, "precision": float(precision[k]) if number[k] else None}
        for k in range(parts)
    ]
    return {"area": protocol.bins[0].name, "iou": iou, "error": error, "parts": rows}
