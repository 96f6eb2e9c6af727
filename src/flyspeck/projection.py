"""Coordinate systems of maps, and points from one into another. The extra `geo` (pyproj) does the geodesy.

Points are always (x, y), that is (longitude, latitude) in degrees for geographic systems, whatever order the authority names.
No grid is fetched: pyproj's network access is switched off.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from flyspeck.errors import UserError, missing_extra

WGS84 = "EPSG:4326"


def _pyproj() -> Any:
    try:
        import pyproj
        import pyproj.network
    except ImportError:
        raise missing_extra("pyproj", "geo") from None
    pyproj.network.set_network_enabled(active=False)
    return pyproj


def known_crs(name: str, *, where: str = "--crs") -> str:
    """A coordinate system as this package writes it: `EPSG:n` where it has a number, else its WKT.

    Takes what PROJ takes: `EPSG:25832`, `OGC:CRS84`, WKT, PROJJSON. Raises UserError for what PROJ does not know, and for systems
    without two horizontal axes (heights, geocentric ones).
    """
    pyproj = _pyproj()
    try:
        crs = pyproj.CRS.from_user_input(name)
    except pyproj.exceptions.CRSError:
        raise UserError(f"no coordinate system '{name}'", where=where, fix="for example EPSG:4326") from None
    if len(crs.axis_info) != 2 or not (crs.is_geographic or crs.is_projected):
        raise UserError(f"'{name}' has no two horizontal axes", where=where, fix="for example EPSG:4326")
    code = crs.to_epsg()
    if code is None and crs.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True):
        return WGS84
    return f"EPSG:{code}" if code else str(crs.to_wkt())


@lru_cache(maxsize=32)
def _transformer(source: str, target: str) -> Any:
    pyproj = _pyproj()
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise UserError(f"no way from {source[:40]} to {target[:40]} ({error})", where="--crs") from error


def transformed(points: np.ndarray, source: str, target: str) -> np.ndarray:
    """`(..., 2)` points (x, y) of the system `source` in `target`, float64; not finite where the projection has no answer.

    Raises UserError for a system that PROJ does not know, and without the extra `geo`.
    """
    points = np.asarray(points, np.float64)
    if source == target:
        return points
    # A transformer belongs to one thread at a time; pyproj keeps one of its own for each.
    x, y = _transformer(source, target).transform(points[..., 0].ravel(), points[..., 1].ravel())
    return np.stack([x, y], axis=-1).reshape(points.shape)


def is_geographic(crs: str) -> bool:
    """Whether its axes are degrees of longitude and latitude."""
    return bool(_pyproj().CRS.from_user_input(crs).is_geographic)


def unwrapped(points: np.ndarray) -> np.ndarray:
    """`(..., n, 2)` longitudes and latitudes of outlines without the jump at the antimeridian.

    Within an outline, longitudes are within 180 degrees of the first one's, and may so be beyond ±180.
    """
    first = points[..., :1, 0]
    longitude = first + (points[..., 0] - first + 180) % 360 - 180
    # Exact where there is no jump: the sum above rounds.
    longitude = np.where(np.abs(points[..., 0] - first) <= 180, points[..., 0], longitude)
    return np.stack([longitude, points[..., 1]], axis=-1)


def project_json(crs: str) -> dict[str, Any]:
    """The system as PROJJSON, as GeoParquet holds it."""
    return dict(_pyproj().CRS.from_user_input(crs).to_json_dict())


def metres_per_pixel(transform: tuple[float, ...], crs: str, size: tuple[int, int]) -> tuple[float, float] | None:
    """Metres on the ground across and down one pixel at the centre of a raster of `size` (H, W), on the ellipsoid of WGS 84.

    `transform` is that of a `GeoReference`. So a degree is as long as it is there, feet are feet, and what a projection stretches
    (Web Mercator) is taken back. None where the centre has no longitude and latitude.
    """
    geod = _pyproj().Geod(ellps="WGS84")
    height, width = size
    x, y, step = width / 2, height / 2, max(1.0, min(height, width) / 4)
    a, b, c, d, e, f = transform
    ends = np.array([[x - step, y], [x + step, y], [x, y - step], [x, y + step]])
    placed = np.stack([a * ends[:, 0] + b * ends[:, 1] + c, d * ends[:, 0] + e * ends[:, 1] + f], 1)
    lon, lat = transformed(placed, crs, WGS84).T
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and (np.abs(lat) <= 90).all()):
        return None
    _, _, across = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, down = geod.inv(lon[2], lat[2], lon[3], lat[3])
    across, down = float(across) / (2 * step), float(down) / (2 * step)
    return (across, down) if across > 0 and down > 0 else None
