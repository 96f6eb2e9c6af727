"""Where an image lies on Earth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeoReference:
    """Where a raster lies on Earth."""

    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): x_map = a * x + b * y + c, y_map = d * x + e * y + f for pixel corners (x, y)."""
    crs: str | None
    """The coordinate system as `EPSG:n` or WKT; None where the file does not say."""
