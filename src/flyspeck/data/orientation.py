"""Upright images: the orientation that a camera notes, from EXIF, XMP or TIFF."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` turned as the EXIF orientation 1-8 asks (any other value counts as 1), contiguous."""
    if orientation in (5, 6, 7, 8):  # the file's rows are the image's columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def exif_orientation(image: Image.Image) -> int:
    """Orientation 1-8 from the image's EXIF or XMP block; 1 where there is none or the block is broken."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block raises anything, and is no reason to refuse sound pixels
        return 1


def png_orientation(image: Image.Image, path: Path) -> int:
    """Orientation of a PNG without decoding it: its EXIF chunk may stand behind the pixels, so the chunks are walked."""
    exif = Image.Image.getexif(image)
    if _ORIENTATION in exif:
        return exif[_ORIENTATION]
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                late = Image.Exif()
                late.load(b"Exif\0\0" + file.read(length))
                return late.get(_ORIENTATION, 1)
            file.seek(length + 4, 1)
    return 1
