"""Metres on the ground that a pixel covers, of the images of a training: stated, or out of GeoTIFFs and DOTA's headers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import tiff_header
from flyspeck.projection import metres_per_pixel

KEY = "metres_per_pixel"
"""Of descriptions of runs, weights and exported files, and of `Annotations.image_extra`."""
_LOOKED_AT = 256


@dataclass(frozen=True)
class GroundResolution:
    """Metres a pixel of the images that a detector learnt from, in pixels of the files."""

    median: float
    lowest: float
    highest: float
    images: int
    """Images that say it; 0 where it was stated for all."""

    @staticmethod
    def of(description: Mapping[str, Any]) -> GroundResolution | None:
        """As a description has it; None where it says nothing of the kind."""
        told = description.get(KEY)
        return None if told is None else GroundResolution(**told)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a description."""
        return asdict(self)

    def words(self) -> str:
        """`0.1 m a pixel`, `0.08 to 0.3 m a pixel (median 0.1)`."""
        if self.highest <= 1.005 * self.lowest:
            return f"{self.median:.3g} m a pixel"
        return f"{self.lowest:.3g} to {self.highest:.3g} m a pixel (median {self.median:.3g})"


def measured_ground(table: Annotations, *, stated: float | None = None) -> GroundResolution | None:
    """Of the images of a training set, up to 256 of them; `stated` takes their place. None where nothing says it."""
    if stated is not None:
        return GroundResolution(stated, stated, stated, images=0)
    rows = (
        np.unique(np.linspace(0, len(table) - 1, min(len(table), _LOOKED_AT)).round().astype(int)) if len(table) else []
    )
    if KEY in table.image_extra:
        found = [float(value) for value in table.image_extra[KEY][rows] if np.isfinite(value) and value > 0]
    elif find_spec("rasterio") is None or find_spec("pyproj") is None:
        return None
    else:
        found = [value for row in rows if (value := _of_file(table.path(int(row)))) is not None]
    if not found:
        return None
    values = np.array(found)
    return GroundResolution(float(np.median(values)), float(values.min()), float(values.max()), images=len(found))


def _of_file(path: Path) -> float | None:
    """Of a GeoTIFF; None for whatever has no place in a coordinate system."""
    import rasterio
    import rasterio.errors

    try:
        header = tiff_header(path)
        if header is None or not header.placed:
            return None
        # No files beside it are looked at: they may lead elsewhere.
        quiet = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO")
        with warnings.catch_warnings(), quiet:
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                if file.crs is None or file.transform.is_identity:
                    return None
                metres = metres_per_pixel(tuple(file.transform)[:6], file.crs.to_wkt(), (file.height, file.width))
    except (OSError, ValueError, rasterio.errors.RasterioError):  # the loader tells of a broken file
        return None
    return None if metres is None else float(np.sqrt(metres[0] * metres[1]))
