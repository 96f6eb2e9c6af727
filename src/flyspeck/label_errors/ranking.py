"""The chance of each of four errors, on one scale, estimated on the set itself. NumPy only.

Every formula is in `docs/how-to/label_errors.md`, with its sources. They have one form: P(error) from the share of errors and
from two densities, one of what is seen where all is well, one of what is seen where it is not; the share of errors is
estimated on the same data, so that a set of which a fifth is wrong is not taken for the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.label_errors.evidence import FLOOR, GATE, Evidence, gather, near_pairs, offsets
from flyspeck.label_errors.mixture import MOST_ERRORS, Curve, fit_contrast, fit_curve, logit

Kind = Literal["missing", "superfluous", "class", "placement"]
KINDS: tuple[Kind, ...] = ("missing", "superfluous", "class", "placement")
PRIOR = (2.0, 48.0)
"""What is believed before looking: 4 % of each kind, as firmly as 50 observations would make it."""
_ROUNDS = 60
_SURE = 0.99  # score at which a sight is believed, as far as `mixture.SURE_WEIGHT` observations would make it
_CROWD = 1.5  # apart; a neighbour farther than this does not matter
_DRAWS = 12  # tries for a place without annotation
_TAIL = 4.0  # degrees of freedom of the spread of well placed boxes
_WRONG_BY = 0.4  # apart; the usual offset of a badly placed box
_MEDIAN = 0.163  # log(median) - log(scale) of a Rayleigh distribution
_LEAST_APART = 0.005


@dataclass(frozen=True)
class Chances:
    """The chance of each error."""

    evidence: Evidence
    missing: np.ndarray
    """(S,) that the sight is an object that nobody annotated; 0 where it has an annotation."""
    superfluous: np.ndarray
    """(M,) that there is no object; 0 for ignore regions, here and below, and for classes that the detector does not know."""
    another: np.ndarray
    """(M,) that the class is another one: that of the annotation's sight."""
    placement: np.ndarray
    """(M,) that the box is badly placed."""
    rates: dict[str, float]
    """Estimated share of annotations (of `missing`: of objects) with each error."""


def chances(annotations: Annotations, detections: DetectionTable, *, known: np.ndarray | None = None) -> Chances:
    """The chance of each kind of error, by detections of a model that was not trained on these annotations.

    `known` (K,) bool marks the classes that the detector knows (None: all); annotations of others hold their place, but are
    not judged.
    """
    evidence = gather(annotations, detections)
    objects = ~annotations.ignore & (annotations.labels >= 0)
    if known is not None:
        objects &= known[annotations.labels]
    missing, rate_missing = _missing(evidence)
    superfluous, rate_superfluous = _superfluous(annotations, evidence, np.flatnonzero(objects))
    rows = np.flatnonzero(objects & (evidence.sight >= 0))
    another, rate_class = _another(annotations, evidence, rows)
    placement, rate_placement = _placement(annotations, evidence, rows)
    rates = {
        "missing": rate_missing,
        "superfluous": rate_superfluous,
        "class": rate_class,
        "placement": rate_placement,
    }
    return Chances(evidence, missing, superfluous, another, placement, rates)


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, K - 1) columns; the first class has none."""
    return (labels[:, None] == np.arange(1, classes)[None]).astype(np.float64)


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """(N, 2) log of the size and its square."""
    size = np.log(np.maximum(box_algebra.size(boxes), 0.5))
    return np.stack([size, size**2], 1)


def _missing(evidence: Evidence) -> tuple[np.ndarray, float]:
    """P(object that nobody annotated | sight without annotation)."""
    yes, judged = evidence.partner >= 0, ~evidence.hidden
    features = _sight_features(evidence, evidence.best)
    sure = _sight_features(evidence, np.full(len(yes), _SURE))
    curve = fit_curve(features[judged], yes[judged], prior=PRIOR, sure=sure[judged])
    return _hidden_yes(curve, features, judged & ~yes), 1 - curve.ceiling


def _sight_features(evidence: Evidence, score: np.ndarray) -> np.ndarray:
    """(S, F) what says whether a sight of this score is an object: score, size, class and how near other annotations are."""
    size, strength = _sizes(evidence.boxes), logit(score)[:, None]
    label = _one_hot(evidence.label, evidence.scores.shape[1])
    crowding = np.minimum(evidence.crowding, _CROWD)[:, None]
    return np.concatenate([strength, size, strength * size[:, :1], crowding, label, strength * label], 1)


def _hidden_yes(curve: Curve, features: np.ndarray, no: np.ndarray) -> np.ndarray:
    """(N,) P(it should be a yes | it is a no) by a curve with a ceiling; 0 where it is a yes."""
    inner, top = curve.inner(features), curve.ceiling
    return np.where(no, (1 - top) * inner / np.maximum(1 - top * inner, 1e-12), 0.0)


def _superfluous(annotations: Annotations, evidence: Evidence, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """P(no object | what is seen at the annotation), by contrast with the same boxes at places without annotations."""
    chance = np.zeros(annotations.num_boxes)
    places = empty_places(annotations, rows)
    empty = np.isfinite(places[:, 0])
    if not empty.any():
        return chance, 0.0
    image = annotations.image_index[rows]
    here = _support(annotations.boxes[rows], image, evidence)
    there = _support(places[empty], image[empty], evidence)
    chance[rows], rate = fit_contrast(here, there, prior=PRIOR)
    return chance, rate


def _support(boxes: np.ndarray, image: np.ndarray, evidence: Evidence) -> np.ndarray:
    """(N, 4) features of what is seen at `boxes`: the best score times nearness, the best score, size."""
    pairs = near_pairs(boxes, image, evidence.boxes, evidence.image, GATE)
    score = evidence.best[pairs.truth]
    weighed, best = np.full(len(boxes), FLOOR), np.full(len(boxes), FLOOR)
    np.maximum.at(weighed, pairs.detection, score * (1 - pairs.iou / GATE))
    np.maximum.at(best, pairs.detection, score)
    return np.concatenate([logit(weighed)[:, None], logit(best)[:, None], _sizes(boxes)], 1)


def empty_places(annotations: Annotations, rows: np.ndarray) -> np.ndarray:
    """The boxes of `rows` at random places of their images that hold no annotation, `(N, 4)`; NaN where none was found.

    The same table gives the same places.
    """
    rng = np.random.default_rng(0)
    found = np.full((len(rows), 4), np.nan)
    left = np.arange(len(rows))
    for _ in range(_DRAWS):
        sides = annotations.boxes[rows[left], 2:] - annotations.boxes[rows[left], :2]
        image = annotations.image_index[rows[left]]
        room = np.maximum(annotations.sizes[image][:, ::-1] - sides, 0)
        corner = rng.uniform(size=(len(left), 2)) * room
        places = np.concatenate([corner, corner + sides], 1)
        taken = near_pairs(places, image, annotations.boxes, annotations.image_index, GATE).detection
        free = np.ones(len(left), bool)
        free[taken] = False
        found[left[free]] = places[free]
        left = left[~free]
    return found


def _another(annotations: Annotations, evidence: Evidence, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """P(another class | the annotation's sight is of another class)."""
    chance = np.zeros(annotations.num_boxes)
    if len(annotations.classes) < 2 or not len(rows):
        return chance, 0.0
    sight = evidence.sight[rows]
    ranked = np.sort(evidence.scores[sight], 1)
    label = evidence.label[sight]
    rest = np.concatenate([_sizes(evidence.boxes[sight]), _one_hot(label, len(annotations.classes))], 1)
    seen = np.stack([logit(ranked[:, -1]), logit(ranked[:, -2]), evidence.distance[rows]], 1)
    certain = np.tile(np.append(logit(np.array([_SURE, FLOOR])), 0.0), (len(rows), 1))
    features = np.concatenate([seen, rest], 1)
    agrees = annotations.labels[rows] == label
    curve = fit_curve(features, agrees, prior=PRIOR, sure=np.concatenate([certain, rest], 1))
    chance[rows] = _hidden_yes(curve, features, ~agrees)
    return chance, 1 - curve.ceiling


def _placement(annotations: Annotations, evidence: Evidence, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """P(badly placed | how the annotation lies to its sight): its centre, its shape, or both."""
    chance = np.zeros(annotations.num_boxes)
    if not len(rows):
        return chance, 0.0
    sight = evidence.sight[rows]
    strength = logit(evidence.best[sight])
    ones = np.ones(len(rows))
    features = np.concatenate([np.stack([ones, strength, strength**2], 1), _sizes(evidence.boxes[sight])], 1)
    shift, shape = offsets(annotations.boxes[rows], evidence.boxes[sight])
    moved, rate_moved = _outlying(shift, features)
    resized, rate_resized = _outlying(shape, features)
    chance[rows] = 1 - (1 - moved) * (1 - resized)
    return chance, 1 - (1 - rate_moved) * (1 - rate_resized)


def _outlying(distance: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, float]:
    """(N,) P(the distance is that of a bad box) and the share of bad boxes.

    Good boxes spread as a Student distribution in the plane about a scale that follows the features, bad ones as a Rayleigh
    distribution of scale `_WRONG_BY`.
    """
    distance = np.maximum(distance, _LEAST_APART)
    scale = np.exp(robust_line(features, np.log(distance)) - _MEDIAN)
    good = distance / scale**2 * (1 + (distance / scale) ** 2 / _TAIL) ** (-(_TAIL + 2) / 2)
    bad = distance / _WRONG_BY**2 * np.exp(-0.5 * (distance / _WRONG_BY) ** 2)
    rate, chance = PRIOR[0] / sum(PRIOR), np.zeros(len(distance))
    for _ in range(_ROUNDS):
        chance = np.where(distance < 1.2 * scale, 0.0, rate * bad / (rate * bad + (1 - rate) * good))
        rate = min(float((chance.sum() + PRIOR[0]) / (len(distance) + sum(PRIOR))), MOST_ERRORS)
    return chance, rate


def robust_line(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) a line through the middle of `values` by `features` (N, F), which a fifth of far values hardly moves.

    Huber's weights about a spread by the median absolute deviation.
    """
    weights = np.ones(len(values))
    ridge = 1e-3 * np.eye(features.shape[1])
    at = np.full(len(values), np.median(values))
    for _ in range(_ROUNDS):
        left = features.T * weights
        at = features @ np.linalg.solve(left @ features + ridge, left @ values)
        residual = values - at
        spread = max(1.4826 * float(np.median(np.abs(residual - np.median(residual)))), 0.1)
        weights = np.minimum(1, 1.5 * spread / np.maximum(np.abs(residual), 1e-9))
    return at
