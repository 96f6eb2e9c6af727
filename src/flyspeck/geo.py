"""Where an image lies on Earth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GeoReference:
    """Where a raster lies on Earth."""

    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): x_map = a * x + b * y + c, y_map = d * x + e * y + f for pixel corners (x, y)."""
    crs: str | None
    """The coordinate system as `EPSG:n` or WKT; None where the file does not say."""
    asked: str | None = None
    """The coordinate system in which results are to be written; None: `crs`."""

    @property
    def written(self) -> str | None:
        """The coordinate system of what is written."""
        return self.asked or self.crs

    def on_map(self, points: np.ndarray) -> np.ndarray:
        """`(..., 2)` points (x, y) in pixels, corners counted from 0, as map coordinates in `crs`; float64."""
        a, b, c, d, e, f = self.transform
        x, y = points[..., 0].astype(np.float64), points[..., 1].astype(np.float64)
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
