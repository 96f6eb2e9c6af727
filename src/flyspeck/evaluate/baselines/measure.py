"""Baselines fitted to a training set and measured on other images, under the same protocol as a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.baselines.blobs import BlobDetector, fit_blobs
from flyspeck.evaluate.baselines.constants import ConstantBoxes, constant_count_errors, fit_constant_boxes
from flyspeck.evaluate.baselines.values import Baseline, Key
from flyspeck.evaluate.catalogue import protocol_named
from flyspeck.evaluate.counting import count
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.evaluation import evaluate
from flyspeck.evaluate.protocols import COCO_BINS, APProtocol, Bin, DelegatedCOCO, Protocol


@dataclass(frozen=True)
class Baselines:
    """What was fitted to a training set."""

    train: Annotations
    blobs: BlobDetector
    boxes: ConstantBoxes | str
    """Or why there are none."""
    blob_score: float
    """The score threshold with the least error of the count on images of the training set."""
    box_score: float

    def measure(self, annotations: Annotations, protocol: Protocol | str = "flyspeck") -> tuple[Baseline, ...]:
        """The baselines on a table's images, whose files are read: all background, the usual number, the usual places, blobs.

        Args:
            annotations: Other images than those of the training set, with the same classes in any order.
            protocol: As for `evaluate`.

        Raises:
            UserError: For classes that the training set does not have, and image files that cannot be read.
        """
        protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        turn = _labels(self.train, annotations)
        train = counted(len(self.train), "training image")
        found = [
            _measured(
                "background", "all background", "no box at all", annotations, DetectionTable.empty(), protocol, 0.5
            )
        ]
        areas = _areas(protocol)
        if areas:
            own = replace(self.train, labels=_turned(self.train.labels, turn), classes=annotations.classes)
            errors = {area.name: constant_count_errors(own, annotations, area)[0] for area in areas}
            words = f"in every image as many objects of a class as the median of {train} has; no boxes, so no AP"
            found.append(Baseline("count", "the usual number", words, None, errors))
        if isinstance(self.boxes, ConstantBoxes) and (annotations.sizes > 0).all():
            table = self.boxes.detect(annotations)
            words = (
                f"the same {counted(len(self.boxes.boxes), 'box')} in every image: where most of {train} have objects"
            )
            table = replace(table, labels=_turned(table.labels, turn)).select(_turned(table.labels, turn) >= 0)
            found.append(_measured("boxes", "the usual places", words, annotations, table, protocol, self.box_score))
        table = self.blobs.detect(annotations)
        words = f"{self.blobs.settings.words}; chosen on {self.blobs.chosen_on} of {train}"
        table = replace(table, labels=_turned(table.labels, turn)).select(_turned(table.labels, turn) >= 0)
        found.append(_measured("blobs", "blobs", words, annotations, table, protocol, self.blob_score))
        return tuple(found)


def fit_baselines(train: Annotations, *, seed: int = 0, seconds: float = math.inf) -> Baselines:
    """Fit the baselines to a training set, of which at most 40 images (2.5 megapixels) are read: up to a minute of one core.

    Args:
        train: Its annotations, with image files that are there.
        seed: Of the choice of images.
        seconds: After so many of looking at them, no further images of the training set are looked at.

    Raises:
        UserError: For a set without objects, and images that cannot be read.
    """
    blobs, boxes = fit_blobs(train, seed=seed, seconds=seconds), fit_constant_boxes(train, seed=seed)
    busy = np.unique(train.image_index[~train.ignore])
    few = np.random.default_rng(seed).permutation(busy)[: blobs.chosen_on]
    table = train.select_images(np.sort(few))
    blob_score = _best_score(table, blobs.detect(table))
    box_score = _best_score(train, boxes.detect(train)) if isinstance(boxes, ConstantBoxes) else 0.5
    return Baselines(train, blobs, boxes, blob_score, box_score)


def _best_score(annotations: Annotations, detections: DetectionTable) -> float:
    """The score threshold with the least error of the count; above all scores where no box at all is best."""
    protocol = protocol_named("flyspeck")
    assert isinstance(protocol, APProtocol)
    protocol = replace(protocol, bins=protocol.bins[:1])
    above = float(np.nextafter(detections.scores.max(initial=0.5), 2.0))
    options = np.unique(np.quantile(detections.scores, np.linspace(0, 1, 30) ** 0.5)) if len(detections) else ()
    return min(
        (above, *map(float, options[::-1])),
        key=lambda score: count(annotations, detections, protocol, score=score).rows[0].count_error,
    )


def measure_baselines(
    train: Annotations,
    annotations: Annotations,
    protocol: Protocol | str = "flyspeck",
    *,
    seed: int = 0,
    seconds: float = math.inf,
) -> tuple[Baseline, ...]:
    """`fit_baselines` on `train`, then `Baselines.measure` on `annotations` under `protocol`; errors as theirs."""
    return fit_baselines(train, seed=seed, seconds=seconds).measure(annotations, protocol)


def _areas(protocol: Protocol) -> tuple[Bin, ...]:
    if isinstance(protocol, DelegatedCOCO):
        return COCO_BINS
    return protocol.bins if isinstance(protocol, APProtocol) else ()


def _measured(
    key: Key,
    name: str,
    words: str,
    annotations: Annotations,
    table: DetectionTable,
    protocol: Protocol,
    score: float,
) -> Baseline:
    result = evaluate(annotations, table, protocol, score=score if _areas(protocol) else None)
    errors = {} if result.counts is None else {row.area: row.count_error for row in result.counts.rows}
    return Baseline(key, name, words, result, errors)


def _labels(train: Annotations, annotations: Annotations) -> np.ndarray:
    """(K of train) each class's label in the other table, -1 where it has none."""
    missing = [name for name in annotations.classes if name not in train.classes]
    if missing:
        raise UserError(
            f"the training set has no class '{missing[0]}'", where=train.source, fix="give the set that goes with it"
        )
    return np.array([annotations.classes.index(c) if c in annotations.classes else -1 for c in train.classes], np.int64)


def _turned(labels: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return np.where(labels >= 0, np.r_[turn, -1][labels], -1)
