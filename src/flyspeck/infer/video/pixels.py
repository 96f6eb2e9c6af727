"""A decoded frame as a viewer sees it: upright, 8 bits, three channels.

Phones store a video as the sensor sees it, and say in a matrix how a player has to turn or mirror it. Transparency is laid on
black, as it is of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_MATRIX = 36  # bytes: nine numbers of 32 bits
_LEAST = 0.9  # of a matrix's entries relative to their length: what is further from a quarter turn is none


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become upright ones: first transposed, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    """Top and bottom change places."""
    flip_columns: bool = False
    """Left and right change places."""

    @staticmethod
    def of(frame: Any) -> Orientation | None:
        """That of a frame of PyAV; None where its matrix is none of the eight quarter turns and mirrorings."""
        data = next((bytes(part) for part in frame.side_data if part.type.name == "DISPLAYMATRIX"), b"")
        if len(data) < _MATRIX:
            return Orientation()
        return Orientation.from_matrix(np.frombuffer(data[:_MATRIX], np.int32))

    @staticmethod
    def from_matrix(matrix: np.ndarray) -> Orientation | None:
        """Of nine numbers a, b, u, c, d, v, x, y, w: a pixel (p, q) is shown at (a p + c q + x, b p + d q + y)."""
        a, b, _, c, d = matrix[:5].astype(float).tolist()
        length = float(np.hypot(a, b))
        if length == 0:
            return None
        if min(abs(a), abs(d)) > _LEAST * length:
            return Orientation(False, d < 0, a < 0)
        if min(abs(b), abs(c)) > _LEAST * length:
            return Orientation(True, b < 0, c < 0)
        return None

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(H, W) as shown of a stored (H, W)."""
        return (stored[1], stored[0]) if self.transpose else stored

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """`(H, W, C)` as stored to `(H', W', C)` as shown; contiguous."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1])


def rgb(frame: Any) -> np.ndarray:
    """A frame of PyAV as stored: (H, W, 3) uint8, whatever its pixel format; transparency laid on black."""
    if not any(part.is_alpha for part in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    pixels = frame.to_ndarray(format="rgba")
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)
