"""Images as windows: one small interface over arrays, image files, memory-mapped arrays and giant rasters.

A `Source` is opened, gives windows of pixels, and is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from flyspeck.data.enlarge import resample
from flyspeck.data.images import MAX_PIXELS
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How image files are opened."""

    max_pixels: int | None = MAX_PIXELS
    """Largest image that is decoded in one piece; None lifts the limit."""
    bands: tuple[int, ...] | None = None
    """Bands of a raster to read, counted from 1; None takes the first three, or the first of fewer than three."""
    value_range: tuple[float, float] | None = None
    """For rasters: values that become black and white. Needed for pixels that are neither 8 nor 16 bits unsigned."""


class Source(ABC):
    """One image, read by windows. Not thread-safe: one thread opens, reads and closes it."""

    name: str
    size: tuple[int, int]
    """(H, W) in pixels."""
    geo: GeoReference | None = None
    note: str = ""
    """How the file's values became the pixels, where that is a choice: bands and scale."""

    @abstractmethod
    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """The window as `(h, w, C)` uint8 or uint16, its own memory; resampled to `out` (h, w) where that is given.

        Raises UserError where the file is broken.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back files and memory."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ArraySource(Source):
    """An image in memory, or mapped into it: `(H, W)` or `(H, W, C)`, uint8 or uint16."""

    def __init__(self, pixels: np.ndarray, *, name: str = "array") -> None:
        if pixels.ndim not in (2, 3) or pixels.dtype not in (np.uint8, np.uint16) or 0 in pixels.shape:
            raise UserError(
                f"an image must be (H, W) or (H, W, C) of uint8 or uint16, not {pixels.shape} of {pixels.dtype}",
                where=name,
                fix="convert it first",
            )
        self.name, self.size = name, (pixels.shape[0], pixels.shape[1])
        self._pixels: np.ndarray | None = pixels if pixels.ndim == 3 else pixels[:, :, None]

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        if self._pixels is None:
            raise ValueError(f"{self.name} is closed")
        return resample(np.array(self._pixels[y1:y2, x1:x2]), out)

    def close(self) -> None:
        """See `Source.close`."""
        self._pixels = None
