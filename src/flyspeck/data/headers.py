"""What the header of an image file says: size, bands, values. No pixel is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flyspeck.data import images

_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageHeader:
    """Of one image file."""

    size: tuple[int, int]
    """(H, W), upright."""
    bands: int
    """As `read_image` gives them: without alpha."""
    dtype: str
    """uint8, uint16, int16, float32; another one where the file cannot be read."""
    alpha: bool = False
    """Whether transparency comes with the bands."""
    coloured: bool = False
    """Whether the first three bands are red, green and blue."""
    value_range: tuple[float, float] | None = None
    """Lowest and highest value that the metadata allows, where they say less than the type does."""
    pages: int = 1
    """Images in the file, frames of an animation or pages of one size, of which the first is read."""
    nodata: float | None = None
    """The value that stands for "nothing here", where a TIFF names one."""

    @property
    def kind(self) -> str:
        """`4 bands of uint16`."""
        return f"{self.bands} band{'s' * (self.bands > 1)} of {self.dtype}"


def read_header(path: Path | str, *, decoded: int | None = images.MAX_PIXELS) -> ImageHeader:
    """The header of an image file; errors as for `read_image`. `decoded`: the largest HEIF or JPEG XL, as they are decoded."""
    path = Path(path)
    size = images.read_size(path)
    if path.suffix.lower() == ".npy":
        array = images.open_array(path)
        return ImageHeader(size, array.shape[2], array.dtype.name)
    tags = images.tiff_header(path)
    if tags is not None and not tags.plain:
        dtype = "float32" if tags.dtype.startswith("float") else tags.dtype
        bands = tags.samples - (tags.alpha is not None)
        alpha = tags.alpha is not None
        return ImageHeader(size, bands, dtype, alpha, tags.coloured, tags.value_range, nodata=tags.nodata)
    with images.opened(path, decoded=decoded) as image:
        mapped = tags is not None and tags.palette is not None
        bands = 1 if not mapped and (image.mode in _GREY or images.packing(image).startswith("LA")) else 3
        return ImageHeader(
            size,
            bands,
            "uint8" if mapped else _dtype(image),
            image.has_transparency_data,
            bands == 3,
            tags.value_range if tags is not None else _significant(path) if image.format == "PNG" else None,
            1 if tags is not None and tags.mask_page == 1 else _pages(image),
            None if tags is None else tags.nodata,
        )


def _pages(image: Image.Image) -> int:
    """Frames or pages; neither the smaller copies that a TIFF may hold, nor the second view or preview of a camera's MPO."""
    if image.format not in ("GIF", "WEBP", "PNG", "TIFF"):
        return 1
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format != "TIFF":
        return count
    size = image.size
    image.seek(1)
    return count if image.size == size else 1


def _dtype(image: Image.Image) -> str:
    if image.mode.startswith("I") or ";16" in images.packing(image):
        return "uint16"
    return "float32" if image.mode == "F" else "uint8"


def _significant(path: Path) -> tuple[float, float] | None:
    """By a PNG's sBIT chunk, which says how many of 16 bits hold something; None where it is not there."""
    with path.open("rb") as file:
        start = file.read(4096)
    at = 8
    while at + 8 <= len(start):
        length, kind = struct.unpack(">I4s", start[at : at + 8])
        if kind == b"sBIT" and start[24] == 16:  # IHDR's depth
            most = max(start[at + 8 : at + 8 + min(length, 3)], default=16)
            return (0.0, float(2**most - 1)) if 8 < most < 16 else None
        if kind in (b"IDAT", b"PLTE"):
            break
        at += length + 12
    return None
