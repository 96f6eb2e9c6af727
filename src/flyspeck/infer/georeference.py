"""Where a raster lies on Earth, by what GDAL says of it; and which signs of it a file bears where GDAL is not there to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import tiff_header
from flyspeck.geo import GeoReference

_WORLD = {
    **{ending: (".tfw", ".tifw", ".tiffw") for ending in (".tif", ".tiff")},
    ".png": (".pgw", ".pngw"),
    **{ending: (".jgw", ".jpgw", ".jpegw") for ending in (".jpg", ".jpeg", ".jpe")},
    **{ending: (".j2w", ".jp2w", ".jpw") for ending in (".jp2", ".j2k", ".jpx")},
    ".bmp": (".bpw", ".bmpw"),
}
_ANY_WORLD = (".wld",)
_OFF = 1.0  # pixels that control points may be off one affine transform


@dataclass(frozen=True)
class Place:
    """What GDAL says of a raster's place."""

    geo: GeoReference | None = None
    remark: str = ""
    """What is to be known of it."""
    lost: str = ""
    """Why it has a place and `geo` is None all the same."""


def place_of(file: Any) -> Place:
    """Of an open rasterio data set: by its transform, or else its ground control points."""
    transform, crs = file.transform, _named(file.crs)
    points, system = file.gcps
    if not transform.is_identity:
        numbers = tuple(float(number) for number in tuple(transform)[:6])
        if not np.isfinite(numbers).all() or _flat(numbers):
            said = ", ".join(f"{number:g}" for number in numbers)
            return Place(lost=f"its transform ({said}) is singular")
        remark = "" if crs else "placed on a map, but the file does not say in which coordinate system"
        return Place(GeoReference(numbers, crs), remark)  # type: ignore[arg-type]
    if points:
        return _by_points(points, _named(system) or crs)
    if file.rpcs is not None:
        return Place(lost="it is placed by a camera model (RPC), which flat coordinates cannot follow")
    return Place() if crs is None else Place(lost="it names a coordinate system, but says of no pixel where it lies")


def _named(crs: Any) -> str | None:
    """`EPSG:n`, or WKT where the system has no number."""
    if not crs:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


def _flat(numbers: tuple[float, ...]) -> bool:
    """Whether a transform maps the plane onto a line or a point."""
    a, b, _, d, e, _ = numbers
    return abs(a * e - b * d) <= 1e-12 * (abs(a) + abs(b)) * (abs(d) + abs(e)) or not (
        abs(a) + abs(b) + abs(d) + abs(e)
    )


def _by_points(points: Any, crs: str | None) -> Place:
    """The affine transform through control points (least squares), if they follow one."""
    pixels = np.array([[point.col, point.row, 1.0] for point in points])
    places = np.array([[point.x, point.y] for point in points])
    middle = places.mean(axis=0)  # coordinates of millions of metres lose digits in squares
    solved, _, rank, _ = np.linalg.lstsq(pixels, places - middle, rcond=None)
    if rank < 3:
        return Place(lost=f"its {len(points)} control points lie on a line")
    (a, d), (b, e), (c, f) = solved.tolist()
    numbers = (a, b, c + float(middle[0]), d, e, f + float(middle[1]))
    if _flat(numbers):
        return Place(lost="its control points give a singular transform")
    apart = pixels @ solved - (places - middle)
    off = float(np.abs(np.linalg.solve(np.array([[a, b], [d, e]]), apart.T)).max())
    if off > _OFF:
        return Place(lost=f"its {len(points)} control points lie up to {off:.1f} px off one affine transform")
    said = f"placed by {len(points)} control points" + (f", off by at most {off:.2f} px" if off > 1e-3 else "")
    return Place(GeoReference(numbers, crs), said if crs else f"{said}; the file does not say the coordinate system")


def world_files(path: Path) -> list[Path]:
    """The world files that lie beside an image."""
    endings = (*_WORLD.get(path.suffix.lower(), ()), *_ANY_WORLD)
    found = (path.with_suffix(case) for ending in endings for case in (ending, ending.upper()))
    return [beside for beside in found if beside.is_file()]


def metadata_beside(path: Path) -> Path | None:
    """GDAL's `.aux.xml` of an image."""
    beside = path.with_name(path.name + ".aux.xml")
    return beside if beside.is_file() else None


def mask_beside(path: Path) -> Path | None:
    """The mask `.msk` of an image."""
    beside = path.with_name(path.name + ".msk")
    return beside if beside.is_file() else None


def signs_of_place(path: Path) -> str:
    """What says that a file lies on Earth, for people, found without GDAL; "" where nothing does."""
    worlds = world_files(path)
    if worlds:
        return f"the world file {worlds[0].name}"
    beside = metadata_beside(path)
    if beside is not None:
        text = beside.read_text(encoding="utf-8", errors="replace")
        if "<GeoTransform" in text or "<GCPList" in text or "<SRS" in text:
            return beside.name
    header = tiff_header(path)
    if header is not None:
        return "its GeoTIFF tags" if header.placed else ""
    with path.open("rb") as file:
        start = file.read(65536)
    if start[4:8] == b"jP  " and any(sign in start for sign in (b"gml.", b"\xb1\x4b\xf8\xbd\x08\x3d\x4b\x43")):
        return "its JPEG 2000 boxes"
    return ""
