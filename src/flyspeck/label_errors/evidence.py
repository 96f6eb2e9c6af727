"""What a detector says of every annotation, and what it sees where none is: detections become sights, sights get annotations.

Everything is measured by one distance that treats tiny boxes fairly (`apart`), because IoU does not: a box of 4 x 4 px that is
one pixel off both ways has an IoU of 0.39 with itself, one of 40 x 40 px 0.91. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import Pairs, overlapping_pairs

SAME = 0.4
"""Detections of one image no farther `apart` than this are one sight."""
GATE = 1.0
"""A sight and an annotation farther `apart` than this are not of one object."""
NEIGHBOUR = 3.0
"""Distances to a neighbour are looked for up to this, and end there."""
FLOOR = 1e-3
"""Score of a class that the detector did not name."""
_HIDDEN = 0.5  # share of a sight under an ignore region from which nothing is said of it


@dataclass(frozen=True)
class Evidence:
    """`S` sights (what the detector takes for one object each, whatever the class) beside `M` annotations of `K` classes."""

    image: np.ndarray
    """(S,) int64 row of the annotation table's images."""
    boxes: np.ndarray
    """(S, 4) xyxy pixels, of the strongest detection."""
    scores: np.ndarray
    """(S, K) best score of each class, `FLOOR` where there is none."""
    partner: np.ndarray
    """(S,) row of the annotation that the sight belongs to, -1 for none."""
    hidden: np.ndarray
    """(S,) bool: lies under an ignore region, so that nothing follows from it."""
    sight: np.ndarray
    """(M,) the annotation's sight, -1 for none."""
    distance: np.ndarray
    """(M,) how far `apart` the two are; inf without a sight."""
    crowding: np.ndarray
    """(S,) how far `apart` the nearest annotation is that is not the sight's own, at most `NEIGHBOUR`."""

    @property
    def best(self) -> np.ndarray:
        """(S,) score of the strongest class."""
        return self.scores.max(1, initial=FLOOR)

    @property
    def label(self) -> np.ndarray:
        """(S,) the strongest class."""
        return self.scores.argmax(1) if len(self.scores) else np.zeros(0, np.int64)


def apart(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far boxes are from each other in units of their size, elementwise `(N, 4), (N, 4) -> (N,)`.

    The Wasserstein distance of the two boxes as Gaussians (Wang et al., 2021, A Normalized Gaussian Wasserstein Distance for Tiny
    Object Detection, eq. 8: squared distance of the centres plus a quarter of the squared differences of the sides, under a
    root), over the geometric mean of their sizes plus one pixel, as precisely as boxes are drawn. Two boxes of one shape that
    are shifted by half their size are 0.49 apart at a size of 40 px, and 0.4 at one of 4 px.
    """
    shift, shape = offsets(boxes, others)
    return np.hypot(shift, shape)


def offsets(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two parts of `apart`, (N,) each: of the centres, and of the sides."""
    shift = box_algebra.center(boxes) - box_algebra.center(others)
    shape = ((boxes[:, 2:] - boxes[:, :2]) - (others[:, 2:] - others[:, :2])) / 2
    unit = np.sqrt(box_algebra.size(boxes) * box_algebra.size(others)) + 1
    return np.hypot(*shift.T) / unit, np.hypot(*shape.T) / unit


def gather(annotations: Annotations, detections: DetectionTable) -> Evidence:
    """The sights of `detections` and which annotation each belongs to.

    Detections are taken from the strongest to the weakest; one that is at most `SAME` apart from an earlier sight, or overlaps
    it with an IoU of a half, belongs to it, whatever its class. Sights and annotations then pair one to one, the pairs of the
    largest product of score and nearness first, up to `GATE`.
    """
    order = np.lexsort((-detections.scores, detections.image_index))
    image, boxes = detections.image_index[order], detections.boxes[order]
    label, score = detections.labels[order], detections.scores[order]
    leader = _leaders(image, boxes)
    leaders, sight_of = np.unique(leader, return_inverse=True)
    scores = np.full((len(leaders), len(annotations.classes)), FLOOR)
    np.maximum.at(scores, (sight_of, label), score)
    boxes, image = boxes[leaders], image[leaders]
    objects = np.flatnonzero(~annotations.ignore & (annotations.labels >= 0))
    near = near_pairs(boxes, image, annotations.boxes[objects], annotations.image_index[objects], NEIGHBOUR)
    truth = objects[near.truth]
    partner, distance = _assigned(near.detection, truth, near.iou, scores.max(1, initial=FLOOR), annotations.num_boxes)
    sight = np.full(annotations.num_boxes, -1, np.int64)
    sight[partner[partner >= 0]] = np.flatnonzero(partner >= 0)
    crowding = np.full(len(leaders), NEIGHBOUR)
    other = truth != partner[near.detection]
    np.minimum.at(crowding, near.detection[other], near.iou[other])
    hidden = _hidden(boxes, image, annotations)
    return Evidence(image, boxes, scores, partner, hidden & (partner < 0), sight, distance, crowding)


def near_pairs(boxes: np.ndarray, image: np.ndarray, others: np.ndarray, other_image: np.ndarray, most: float) -> Pairs:
    """Pairs of one image at most `most` apart, of `boxes` (`Pairs.detection`) and `others` (`Pairs.truth`).

    The distance stands in the column `iou`.
    """
    found = overlapping_pairs(_grown(boxes, most), image, _grown(others, most), other_image)
    distance = apart(boxes[found.detection], others[found.truth])
    keep = distance <= most
    return Pairs(found.detection[keep], found.truth[keep], distance[keep], found.iod[keep])


def _grown(boxes: np.ndarray, most: float) -> np.ndarray:
    """Squares about the same centres, which overlap for all boxes that are at most `most` apart.

    The unit of `apart` is at most the mean of the two sizes plus a pixel, as a geometric mean is at most the arithmetic one.
    """
    middle = box_algebra.center(boxes)
    reach = (most * (box_algebra.size(boxes) + 1) / 2 + 1e-6)[:, None]
    return np.concatenate([middle - reach, middle + reach], 1)


def _leaders(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) for detections sorted by image and score: the first of the sight that each belongs to."""
    near = near_pairs(boxes, image, boxes, image, GATE)
    same = (near.iou <= SAME) | (box_algebra.paired_iou(boxes[near.detection], boxes[near.truth]) >= 0.5)
    later = near.detection > near.truth
    who, whom = near.detection[same & later], near.truth[same & later]
    leader = np.arange(len(boxes))
    starts = np.searchsorted(who, np.arange(len(boxes) + 1))
    distance = near.iou[same & later]
    for row in np.unique(who).tolist():
        here = slice(starts[row], starts[row + 1])
        first = leader[whom[here]] == whom[here]
        if first.any():
            leader[row] = whom[here][first][distance[here][first].argmin()]
    return leader


def _assigned(
    sight: np.ndarray, truth: np.ndarray, distance: np.ndarray, score: np.ndarray, num_truths: int
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy one-to-one pairs: the annotation of each sight, and how far each annotation is from its sight."""
    partner, taken = np.full(len(score), -1, np.int64), np.full(num_truths, np.inf)
    inside = distance <= GATE
    sight, truth, distance = sight[inside], truth[inside], distance[inside]
    value = score[sight] * (1 - distance / GATE)
    for pair in np.lexsort((truth, sight, -value)).tolist():
        if partner[sight[pair]] < 0 and taken[truth[pair]] == np.inf:
            partner[sight[pair]], taken[truth[pair]] = truth[pair], distance[pair]
    return partner, taken


def _hidden(boxes: np.ndarray, image: np.ndarray, annotations: Annotations) -> np.ndarray:
    regions = np.flatnonzero(annotations.ignore)
    found = overlapping_pairs(boxes, image, annotations.boxes[regions], annotations.image_index[regions])
    hidden = np.zeros(len(boxes), bool)
    hidden[found.detection[found.iod >= _HIDDEN]] = True
    return hidden
