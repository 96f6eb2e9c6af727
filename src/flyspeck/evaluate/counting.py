"""What somebody sees who looks at the boxes from one score on: two boxes on one object, and how far the count is off.

AP is blind to both. A second box on an object is a second try at the IoU that AP asks for, and the false positive that it
otherwise is comes late in the ranking: AP often *rises* with every box that is not suppressed.

The rules:

* Boxes count whose score is at least the threshold: the one given, or the one of the best F1 on this very set (IoU 0.5, classes
  pooled, all sizes).
* A box belongs to the object of its class in whose reach its centre lies: within the object, which is taken to be at least
  `REACH` px a side, so that a pixel of label noise does not part the two. Where several objects reach it, it belongs to
  the one whose centre is nearest in units of that object's half sides; so a neighbour's box is no double.
* A box without an object whose centre lies in an ignore region counts for nothing.
* `doubles` is the share of the objects with a box that have two or more.
* The error of a count is, for an image and a class, the number of boxes less the number of objects. An image's error adds up
  its classes: `count_error` their sizes, `count_bias` with their signs; both are means over all images. `count_share` is
  the sum of the sizes over all images, as a share of all objects.
* By size, a box counts where its object does, and one without an object by its own area, as in AP.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import prepare
from flyspeck.evaluate.counts import Counts, SizeCount
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import overlapping_pairs
from flyspeck.evaluate.operating import working_point
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin
from flyspeck.evaluate.tables import RankedDetections, TruthTable

REACH = 4.0
"""Pixels that an object's sides have at least, where boxes are told to belong to it."""
_ALL = Bin("all", 0.0, INFINITE)


def count(
    annotations: Annotations, detections: DetectionTable, protocol: APProtocol, *, score: float | None = None
) -> Counts:
    """Doubles and errors of the count by the bins of `protocol`, whose ignore rules hold; see the head of this module.

    `score` is the threshold; None takes that of the best F1 on this set. All boxes of an image count, whatever the protocol's
    maxDets.
    """
    everything = replace(protocol, bins=(_ALL,), ious=(0.5,), max_dets=(max(len(detections), 1),), affinity="iou")
    inputs = prepare(annotations, detections, everything)
    at = working_point(inputs, _ALL.name, 0.5, score=score)
    found = inputs.found.select(inputs.found.scores >= at.score)
    owner, hidden = owners(found, inputs.truths)
    rows = tuple(_row(area, found, inputs.truths, owner, hidden, len(annotations)) for area in protocol.bins)
    return Counts(at, score is not None, rows)


def owners(found: RankedDetections, truths: TruthTable) -> tuple[np.ndarray, np.ndarray]:
    """The object that each box belongs to, `(N,)` rows of `truths`, -1 for none; and whether a box counts for nothing."""
    centre = box_algebra.center(found.boxes)
    middle = box_algebra.center(truths.boxes)
    half = np.maximum(truths.boxes[:, 2:] - truths.boxes[:, :2], REACH) / 2
    images = int(max(found.image.max(initial=0), truths.image.max(initial=0))) + 1
    # Overlap of a box of one pixel about the centre finds all that may be near, in near-linear time.
    pairs = overlapping_pairs(
        np.concatenate([centre - 0.5, centre + 0.5], 1),
        found.label * images + found.image,
        np.concatenate([middle - half, middle + half], 1),
        truths.label * images + truths.image,
    )
    i, j = pairs.detection, pairs.truth
    distance = (np.abs(centre[i] - middle[j]) / half[j]).max(1)
    inside = distance <= 1
    i, j, distance = i[inside], j[inside], distance[inside]
    owner = np.full(len(found), -1, np.int64)
    counted = ~truths.flagged[j]
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((j[rows], distance[rows], i[rows]))][::-1]
    owner[i[rows]] = j[rows]  # the last written, hence the nearest, stays
    hidden = np.zeros(len(found), bool)
    hidden[i[~counted]] = True
    return owner, hidden & (owner < 0)


def _row(
    area: Bin, found: RankedDetections, truths: TruthTable, owner: np.ndarray, hidden: np.ndarray, images: int
) -> SizeCount:
    inside = (truths.area >= area.low) & (truths.area <= area.high) & ~truths.flagged
    own = (found.area >= area.low) & (found.area <= area.high)
    counts = ~hidden & np.where(owner >= 0, np.r_[inside, False][owner], own)
    load = np.bincount(owner[owner >= 0], minlength=len(truths.ids))[inside]
    error = _errors((found.image[counts], found.label[counts]), (truths.image[inside], truths.label[inside]))
    objects, hit = int(inside.sum()), int((load > 0).sum())
    size = float(np.abs(error).sum())
    return SizeCount(
        area=area.name,
        objects=objects,
        found=hit,
        boxes=int(counts.sum()),
        doubles=float((load > 1).sum() / hit) if hit else -1.0,
        count_error=size / images if images else -1.0,
        count_bias=float(error.sum()) / images if images else 0.0,
        count_share=size / objects if objects else -1.0,
    )


def _errors(boxes: tuple[np.ndarray, np.ndarray], objects: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Boxes less objects of every (image, class) that has either; `(image, label)` columns of both."""
    columns = np.concatenate([np.stack(boxes, 1), np.stack(objects, 1)])
    signs = np.r_[np.ones(len(boxes[0])), -np.ones(len(objects[0]))]
    _, place = np.unique(columns, axis=0, return_inverse=True)
    return np.bincount(place.ravel(), signs)
