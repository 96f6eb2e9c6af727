"""The pixels of a decoded Pillow image as an array, in little memory."""

from __future__ import annotations

import numpy as np
from PIL import Image

AT_ONCE = 1 << 22
"""Pixels."""


def copied(image: Image.Image) -> np.ndarray:
    """The pixels of a decoded image as an array of its own; strip by strip, as Pillow would copy a large one three times."""
    rows = max(1, AT_ONCE // max(1, image.width))
    if image.height <= rows:
        return np.array(image)  # asarray of a Pillow image is read-only
    first = np.asarray(image.crop((0, 0, image.width, 1)))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
