"""Windows as training and evaluation show them to a network: padded to whole cells of its coarse maps. NumPy only.

Anchors and points follow the ratio of image to map. Where a side is no multiple of a map's stride, that map's last cell is
only partly covered, the ratio is off, and boxes shift, the more the further they lie from the origin.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flyspeck.types import Detections

MULTIPLE = 32
"""What batches are padded to in training and evaluation (`data.loading.collate`)."""


def padded(window: np.ndarray) -> np.ndarray:
    """A window (H, W, C) with zeros at the bottom and the right, up to multiples of 32; the same array if it has them."""
    height, width = window.shape[:2]
    bottom, right = -height % MULTIPLE, -width % MULTIPLE
    return np.pad(window, ((0, bottom), (0, right), (0, 0))) if bottom or right else window


def within(found: Detections, size: tuple[int, int]) -> Detections:
    """Detections of a padded window in the frame of the window, of `size` (H, W): clipped, and gone where all is padding."""
    if found.image_size == size:
        return found
    height, width = size
    boxes = found.boxes.copy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return replace(found, boxes=boxes, image_size=size)[keep]
