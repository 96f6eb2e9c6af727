"""Why detections are wrong: the kinds of error by size bin, and what AP each kind costs (after TIDE, Bolya et al., 2020).

A false positive is, by its best IoU with the counted ground truths of its image (TIDE, sec. 2.2, t_f the matching
threshold, t_b = 0.1):

* `duplicate`: at least t_f with one of its class (which a better detection has taken);
* `class`: at least t_f with one of another class;
* `localisation`: between t_b and t_f with one of its class;
* `both`: between t_b and t_f with one of another class only;
* `background`: less than t_b with all.

A ground truth that nothing took is `missed`, unless a class or localisation error points at it. Two things are not TIDE's:
detections under ignore regions are counted as `hidden` (they count for nothing), and everything is done within a size bin.
Deviation: where TIDE takes whichever of several conditions its order of evaluation meets, the order here is the one above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import APInputs, Outcome, mean_of_known, precision_at_recall, prepare
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import Pairs, overlapping_pairs
from flyspeck.evaluate.protocols import APProtocol

KINDS = ("class", "localisation", "both", "duplicate", "background")
BACKGROUND = 0.1


@dataclass(frozen=True)
class Errors:
    """Kinds of error in one bin at one threshold."""

    kind: np.ndarray
    """(N,) index into `KINDS` of every false positive among the ranked detections, -1 for all others."""
    points_at: np.ndarray
    """(N,) the ground truth that a class or localisation error is about, -1 elsewhere."""
    missed: np.ndarray
    """(M,) bool: counted ground truths that nothing took and no class or localisation error points at."""
    hidden: np.ndarray
    """(N,) bool: detections of the bin's size that an ignore region absorbed."""


def error_rows(
    annotations: Annotations,
    detections: DetectionTable,
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    inputs: APInputs | None = None,
) -> list[dict[str, Any]]:
    """One row per bin: counts of every kind, of true positives and of ground truths, AP, and the AP that mending a kind gains.

    `delta_ap` has, for each kind of false positive, the AP with those errors mended minus the AP (class and
    localisation errors become hits where their ground truth is free, else they go; the others go), and for `missed` the AP
    without the missed ground truths minus the AP.
    """
    inputs = prepare(annotations, detections, protocol) if inputs is None else inputs
    pairs = _pairs_of_any_class(inputs)
    rows = []
    for area in protocol.bins:
        outcome = inputs.outcomes[area.name, iou]
        errors = classify(inputs, outcome, pairs, iou)
        base = _ap(inputs, outcome, len(annotations.classes))
        counts = {name: int((errors.kind == code).sum()) for code, name in enumerate(KINDS)}
        row = {
            "area": area.name,
            "iou": iou,
            "n_gt": int(outcome.counted.sum()),
            "tp": int(outcome.hit.sum()),
            **counts,
        }
        row |= {"missed": int(errors.missed.sum()), "hidden": int(errors.hidden.sum()), "ap": base}
        gains = {name: mended_ap(inputs, outcome, errors, name, len(annotations.classes)) - base for name in KINDS}
        gains["missed"] = mended_ap(inputs, outcome, errors, "missed", len(annotations.classes)) - base
        rows.append(row | {"delta_ap": gains if base >= 0 else {}})
    return rows


def _pairs_of_any_class(inputs: APInputs) -> Pairs:
    """Overlapping pairs within an image, whatever the class."""
    found, truths = inputs.found, inputs.truths
    return overlapping_pairs(
        found.boxes, found.image, truths.boxes, truths.image, sides=found.sides, truth_sides=truths.sides
    )


def classify(inputs: APInputs, outcome: Outcome, pairs: Pairs, iou: float) -> Errors:
    """The kind of every false positive of `outcome`, and the ground truths that are really missed."""
    found, truths = inputs.found, inputs.truths
    wrong = ~outcome.hit & ~outcome.ignored
    pairs = pairs.select(outcome.counted[pairs.truth] & wrong[pairs.detection])
    same = found.label[pairs.detection] == truths.label[pairs.truth]
    own, own_truth = _best(pairs.select(same), len(found))
    other, other_truth = _best(pairs.select(~same), len(found))
    kind = np.full(len(found), -1)
    conditions = [
        (own >= iou, "duplicate"),
        (other >= iou, "class"),
        (own >= BACKGROUND, "localisation"),
        (other >= BACKGROUND, "both"),
        (np.ones(len(found), bool), "background"),
    ]
    for holds, name in reversed(conditions):
        kind[wrong & holds] = KINDS.index(name)
    points_at = np.full(len(found), -1)
    for name, truth in (("class", other_truth), ("localisation", own_truth)):
        points_at = np.where(kind == KINDS.index(name), truth, points_at)
    taken = np.zeros(len(truths.row), bool)
    taken[outcome.truth[outcome.hit]] = True
    excused = np.zeros(len(truths.row), bool)
    excused[points_at[points_at >= 0]] = True
    under = outcome.truth >= 0
    hidden = outcome.ignored & under & ~outcome.outside
    hidden[under] &= truths.flagged[outcome.truth[under]]
    return Errors(kind, points_at, outcome.counted & ~taken & ~excused, hidden)


def _best(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each detection and its ground truth, `(count,)`; 0 and -1 where there is none."""
    value, truth = np.zeros(count), np.full(count, -1)
    order = np.argsort(pairs.iou, kind="stable")  # the largest is written last
    value[pairs.detection[order]] = pairs.iou[order]
    truth[pairs.detection[order]] = pairs.truth[order]
    return value, truth


def _ap(inputs: APInputs, outcome: Outcome, classes: int) -> float:
    return _ap_of(inputs, outcome.hit, ~outcome.ignored, inputs.found.label, outcome.counted, outcome.counted, classes)


def mended_ap(inputs: APInputs, outcome: Outcome, errors: Errors, kind: str, classes: int) -> float:
    """AP with every error of `kind` mended."""
    hit, counts, label = outcome.hit.copy(), ~outcome.ignored, inputs.found.label
    if kind == "missed":
        return _ap_of(inputs, hit, counts, label, outcome.counted & ~errors.missed, outcome.counted, classes)
    chosen = errors.kind == KINDS.index(kind)
    counts = counts & ~chosen
    if kind in ("class", "localisation"):
        taken = np.zeros(len(inputs.truths.row), bool)
        taken[outcome.truth[outcome.hit]] = True
        mended = np.flatnonzero(chosen)
        mended = mended[~taken[errors.points_at[mended]]]
        mended = mended[np.argsort(-inputs.found.scores[mended], kind="stable")]
        # The best-scored error of a free ground truth becomes its hit; the rest go.
        mended = mended[np.unique(errors.points_at[mended], return_index=True)[1]]
        hit[mended], counts[mended] = True, True
        label = label.copy()
        label[mended] = inputs.truths.label[errors.points_at[mended]]
    return _ap_of(inputs, hit, counts, label, outcome.counted, outcome.counted, classes)


def _ap_of(
    inputs: APInputs,
    hit: np.ndarray,
    counts: np.ndarray,
    label: np.ndarray,
    counted: np.ndarray,
    of: np.ndarray,
    classes: int,
) -> float:
    """Mean AP, over the classes of the ground truths `of`, of detections that `hit`, among those that `counts`."""
    order = np.lexsort((-inputs.found.scores, label))
    order = order[counts[order]]
    bounds = np.searchsorted(label[order], np.arange(classes + 1))
    totals = np.bincount(inputs.truths.label[counted], minlength=classes)
    # A class that loses its last ground truth by the mending of misses keeps the AP it had, which is 0.
    values = np.where(np.bincount(inputs.truths.label[of], minlength=classes) > 0, 0.0, -1.0)
    for k in np.flatnonzero(totals):
        values[k] = precision_at_recall(hit[order[bounds[k] : bounds[k + 1]]], int(totals[k])).mean()
    return mean_of_known(values)
