"""What decoding an image takes in memory, by its header alone."""

from __future__ import annotations

from PIL import Image

PACKED = 100
"""Pixels a byte beyond which an expensive image is taken for a bomb; photographs have 1 to 10, blank scans some tens."""
EXPENSIVE = 2.5
"""Bytes of memory for every pixel of the limit, from which an image is expensive: 500 MB at 200 megapixels."""
_COPIES = {"1": 2, "L": 2, "P": 8, "I;16": 6, "I;16L": 6, "I;16B": 6, "I;16N": 6, "I": 10, "F": 8}
"""Bytes a pixel by Pillow's mode, the arrays that are made of it included; of other modes 7, with transparency 12."""


def bytes_each(image: Image.Image) -> float:
    """Bytes of memory for a pixel of an image that Pillow opened, until it is an array; nothing is decoded."""
    if image.format == "JPEG2000":  # OpenJPEG computes in 32 bits
        return 4 * len(image.getbands()) + 8
    return 12 if image.has_transparency_data else _COPIES.get(image.mode, 7)


def is_bomb(pixels: int, bytes_each: float, *, held: int, max_pixels: int) -> bool:
    """Whether a file of `held` bytes would become an expensive image of more pixels than are packed so: a few kilobytes that
    would become gigabytes.
    """
    return pixels * bytes_each > EXPENSIVE * max_pixels and pixels > PACKED * held
