"""What the report draws, as plain numbers: curves, rates by size with their uncertainty, and the worst images.

Everything here follows from one matching, at IoU 0.5 under the `flyspeck` rules (ignore regions hold for every class), so
that all figures of a report agree with each other. The tables above them keep the run's own protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.ap import RECALL_POINTS, APInputs, Outcome, precision_at_recall, prepare
from flyspeck.evaluate.miss_rate import fppi_points, miss_rate_curves
from flyspeck.evaluate.operating import working_point
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin, MissRateProtocol, Setup
from flyspeck.report.runs import RunReport
from flyspeck.size_bins import bin_of, half_open

IOU = 0.5
SIZES = {"2-8": (2, 8), "8-12": (8, 12), "12-20": (12, 20), "20-32": (20, 32), "32+": (32, 1e5)}
"""The bins of the figures, in pixels of sqrt(area); each with its lower bound and without its upper."""
LOOKS = {name: look for look, name in enumerate(("all", *SIZES, "2-20"))}
"""The colour, dashes and marker of a size, in whichever figure."""
_BINS = (Bin("all", 0.0, INFINITE), *(Bin(name, *half_open(low, high)) for name, (low, high) in SIZES.items()))
_RESAMPLES = 200


@dataclass(frozen=True)
class Rate:
    """A share with a 95 % interval from resampling images; NaN where there is nothing to find."""

    value: float
    low: float
    high: float
    count: int
    """Objects it is a share of."""


@dataclass(frozen=True)
class Curve:
    """One line: its points, and what it is called."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class RunDiagnosis:
    """The matching of one run, and what follows from it."""

    run: RunReport
    inputs: APInputs

    @cached_property
    def overall(self) -> Outcome:
        """Every detection's fate, all sizes."""
        return self.inputs.outcomes["all", IOU]

    @cached_property
    def working_score(self) -> float:
        """The score with the best F1 over all classes: what counts as a detection in images and counts."""
        return working_point(self.inputs, "all", IOU).score

    def precision_recall(self, name: str) -> Curve:
        """Precision over recall at IoU 0.5 in a bin, mean of the classes that have objects there, in percent."""
        outcome, curves = self.inputs.outcomes[name, IOU], []
        totals = np.bincount(self.inputs.truths.label[outcome.counted], minlength=len(self.inputs.class_bounds) - 1)
        for k in np.flatnonzero(totals):
            rows = self.inputs.by_score[self.inputs.class_bounds[k] : self.inputs.class_bounds[k + 1]]
            rows = rows[~outcome.ignored[rows]]
            curves.append(precision_at_recall(outcome.hit[rows], int(totals[k])))
        mean = np.mean(curves, axis=0) if curves else np.full(len(RECALL_POINTS), np.nan)
        return Curve(name, 100 * RECALL_POINTS, 100 * mean)

    def recall(self, name: str) -> Rate:
        """Share of a bin's objects found at the working score, with its interval."""
        outcome = self.inputs.outcomes[name, IOU]
        images = len(self.run.annotations)
        kept = outcome.hit & (self.inputs.found.scores >= self.working_score)
        found = np.bincount(self.inputs.found.image[kept], minlength=images).astype(np.float64)
        total = np.bincount(self.inputs.truths.image[outcome.counted], minlength=images).astype(np.float64)
        return _share(found, total)

    def fate_of_objects(self) -> dict[str, dict[str, int]]:
        """By bin, how many objects were found, boxed badly, called another class, or missed, at the working score."""
        return {
            name: {fate: int(((self.fates == k) & (self.object_bins == b)).sum()) for k, fate in enumerate(FATES)}
            for b, name in enumerate(SIZES)
        }

    @cached_property
    def object_rows(self) -> np.ndarray:
        """Rows of the truth table that count."""
        return np.flatnonzero(self.overall.counted)

    @cached_property
    def object_bins(self) -> np.ndarray:
        """The size bin of each object."""
        return bin_of(self.inputs.truths.area[self.object_rows], [*(low for low, _ in SIZES.values()), np.inf])

    @cached_property
    def fates(self) -> np.ndarray:
        """The fate of each object as an index into `FATES`."""
        found, truths = self.inputs.found, self.inputs.truths
        strong = found.scores >= self.working_score
        fates = np.full(len(self.object_rows), FATES.index("missed"))
        by_image = _groups(found.image[strong], len(self.run.annotations))
        rows_of = np.flatnonzero(strong)
        for position, row in enumerate(self.object_rows):
            near = rows_of[by_image[truths.image[row]]]
            overlap = box_algebra.iou(truths.boxes[row][None], found.boxes[near])[0]
            same = found.label[near] == truths.label[row]
            if (overlap[~same] >= IOU).any():
                fates[position] = FATES.index("other class")
            if (overlap[same] >= 0.1).any():
                fates[position] = FATES.index("badly placed")
        matched = self.overall.truth[self.overall.hit & strong]
        fates[np.isin(self.object_rows, matched)] = FATES.index("found")
        return fates

    @cached_property
    def false_alarms(self) -> np.ndarray:
        """Rows of the ranked detections that count as wrong at the working score."""
        strong = self.inputs.found.scores >= self.working_score
        return np.flatnonzero(strong & ~self.overall.hit & ~self.overall.ignored)

    def worst_images(self, number: int) -> list[int]:
        """Ranks of the images with the most errors: missed or badly placed objects and false alarms, at least one."""
        images = len(self.run.annotations)
        lost = self.object_rows[self.fates != FATES.index("found")]
        errors = np.bincount(self.inputs.truths.image[lost], minlength=images).astype(np.float64)
        errors += np.bincount(self.inputs.found.image[self.false_alarms], minlength=images)
        order = np.argsort(-errors, kind="stable")
        return [int(i) for i in order[:number] if errors[i] > 0]


FATES = ("found", "badly placed", "other class", "missed")


def diagnose(run: RunReport) -> RunDiagnosis:
    """Match a run's detections for the figures."""
    base = protocol_named("flyspeck")
    assert isinstance(base, APProtocol)
    return RunDiagnosis(run, prepare(by_boxes(run), run.detections, replace(base, bins=_BINS, ious=(IOU,))))


def by_boxes(run: RunReport) -> Annotations:
    """The ground truth with the area of each box for its area: a file's own (of masks) would put objects into other bins here
    than `data inspect` does."""
    return replace(run.annotations, area=box_algebra.area(run.annotations.boxes))


def miss_rates(run: RunReport) -> list[Curve]:
    """Miss rate over false positives per image at IoU 0.5, by size, mean of the classes, in percent."""
    protocol = protocol_named("flyspeck_mr")
    assert isinstance(protocol, MissRateProtocol)
    setups = [Setup("all", -1.0, INFINITE), Setup("2-20", 2.0, float(np.nextafter(20.0, 0)))]
    setups += [Setup(name, float(low), float(np.nextafter(high, 0))) for name, (low, high) in SIZES.items()]
    curves = []
    own = replace(protocol, ious=(IOU,), setups=tuple(setups))
    for curve in miss_rate_curves(by_boxes(run), run.detections, own):
        known = curve.miss_rates[curve.truths > 0]
        if len(known):
            curves.append(Curve(curve.setup, fppi_points(protocol), 100 * known.mean(0)))
    return curves


def _share(found: np.ndarray, total: np.ndarray) -> Rate:
    """`found` of `total` per image as one share; the interval resamples images, as objects of one are alike."""
    if total.sum() == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(total), np.full(len(total), 1 / len(total)), _RESAMPLES)
    draws = (weights @ found)[weights @ total > 0] / (weights @ total)[weights @ total > 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Rate(float(found.sum() / total.sum()), float(low), float(high), int(total.sum()))


def _groups(image: np.ndarray, images: int) -> list[np.ndarray]:
    """For each image, the positions in `image` that belong to it."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.cumsum(np.bincount(image, minlength=images))[:-1])
