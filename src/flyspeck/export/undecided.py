"""What a detector itself gives when its cuts move by what rounding moves: a box that then comes or goes hangs on a last digit.

Boxes are suppressed where they stand, and `tiny` suppression moves them afterwards, so that two boxes which were left for an
overlap of 0.4999 may lie upon each other in the end: what is given does not tell that their overlap was at the threshold. So the
detector is asked again, with its thresholds a little higher and a little lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from flyspeck import one_object
from flyspeck.export.parity import IOU
from flyspeck.models.detector import Detector
from flyspeck.types import Detections


def asked_again(detector: Detector, look: Callable[[], list[Detections]]) -> list[list[Detections]]:
    """What `look`, which uses the detector, gives with its cuts lower and higher; nothing where no overlap suppresses."""
    rule = detector.head.suppression
    if rule.method == "none" or rule.soft is not None:
        return []
    found = []
    for by in (-IOU, IOU):
        with moved_cuts(detector, by):
            found.append(look())
    return found


@contextmanager
def moved_cuts(detector: Detector, by: float) -> Iterator[None]:
    """The detector with the overlaps moved at which a box is suppressed, or is one object with a better one."""
    rule = detector.head.suppression
    detector.head.suppression = replace(rule, iou=rule.iou + by)
    try:
        with one_object.bound_moved(by):
            yield
    finally:
        detector.head.suppression = rule
