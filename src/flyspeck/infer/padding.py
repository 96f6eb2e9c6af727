"""Images as networks take them: padded to sides that divide by what the detector asks for. NumPy only.

What it asks for is `Detector.divisor`, and the same number in an exported file; training, evaluation and prediction all pad
to it. A detector of one image size (SSD) asks for nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flyspeck.data.padding import padded_side
from flyspeck.types import Detections


def padded(window: np.ndarray, *, divisor: int, smallest: int = 1) -> np.ndarray:
    """A window (H, W, C) with zeros at the bottom and the right, see `padded_side`; the same array if it needs none."""
    height, width = window.shape[:2]
    bottom, right = (padded_side(side, divisor=divisor, smallest=smallest) - side for side in (height, width))
    return np.pad(window, ((0, bottom), (0, right), (0, 0))) if bottom or right else window


def within(found: Detections, size: tuple[int, int]) -> Detections:
    """Detections of a padded window in the frame of the window, of `size` (H, W): clipped, and gone where nothing is left."""
    height, width = size
    boxes = found.boxes.copy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    # What is not a number stays, for those to see who ask.
    keep = ~((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
    if found.image_size == size and keep.all():
        return found
    return replace(found, boxes=boxes, image_size=size)[keep]
