"""Images as networks take them: padded to sides that divide by what the detector asks for. NumPy only.

What it asks for is `Detector.divisor`, and the same number in an exported file; training, evaluation and prediction all pad
to it. A detector of one image size (SSD) asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flyspeck.data.padding import padded_side
from flyspeck.types import Detections

Fill = Sequence[float]
"""What pads: a value for each band, or one for all, in units of 8 bits."""
BLACK: Fill = (0.0,)
Space = tuple[tuple[int, int], tuple[int, int]]
"""Rows above and below, columns left and right."""


def padded(window: np.ndarray, *, divisor: int, smallest: int = 1, fill: Fill = BLACK) -> np.ndarray:
    """A window (H, W, C) with `fill` at the bottom and the right, see `padded_side`; the same array if it needs none."""
    height, width = window.shape[:2]
    bottom, right = (padded_side(side, divisor=divisor, smallest=smallest) - side for side in (height, width))
    return extended(window, ((0, bottom), (0, right)), fill)


def extended(window: np.ndarray, space: Space, fill: Fill = BLACK) -> np.ndarray:
    """A window (H, W, C) with `space` rows and columns before and behind it; the same array if that is none.

    `fill`: one value for all bands, or one each, in units of 8 bits: of 16-bit windows the same share of the range.
    """
    (top, bottom), (left, right) = space
    if not (top or bottom or left or right):
        return window
    height, width, bands = window.shape
    whole = np.empty((top + height + bottom, left + width + right, bands), window.dtype)
    whole[:] = np.round(np.multiply(fill, 1 if window.dtype == np.uint8 else 257)).astype(window.dtype)
    whole[top : top + height, left : left + width] = window
    return whole


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
