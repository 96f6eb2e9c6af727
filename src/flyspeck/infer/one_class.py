"""One box for each place, whatever its class: for images that people look at.

Detectors suppress within a class: a boat that might be a car has a box of either, and a young detector, whose classes are still
alike, draws several on each object. Metrics want them all; the eye does not.
"""

from __future__ import annotations

import numpy as np

from flyspeck.evaluate.matching import overlapping_pairs
from flyspeck.types import Detections


def best_of_each_place(found: Detections, *, iou: float = 0.5) -> Detections:
    """`found` without the boxes that overlap by `iou` or more with a better one that stays, of any class.

    Of equal scores the first stays.
    """
    order = np.argsort(-found.scores, kind="stable")
    boxes, one = found.boxes[order].astype(np.float64), np.zeros(len(order), np.int64)
    pairs = overlapping_pairs(boxes, one, boxes, one)
    close = (pairs.iou >= iou) & (pairs.truth > pairs.detection)
    worse = pairs.truth[close]
    starts = np.searchsorted(pairs.detection[close], np.arange(len(order) + 1))
    gone = np.zeros(len(order), bool)
    for row in range(len(order)):
        if not gone[row]:
            gone[worse[starts[row] : starts[row + 1]]] = True
    return found[np.sort(order[~gone])]
