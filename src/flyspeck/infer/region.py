"""A region of interest: polygons out of a file, and which tiles and detections of an image lie in it.

GeoJSON follows RFC 7946: WGS 84, longitude first. The `crs` member of the 2008 specification is honoured. Polygons in pixels say
so with `"frame": "pixels"` (as a member of the file, or a property of every feature). GeoPackage and Shapefile are read where
geopandas is there (extra `geoparquet`).

Whether a detection lies inside is decided in the region's own coordinate system: its centre is transformed there, so that the
edges of a polygon are the straight lines that its file means. A centre on an edge is inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError, brief, counted, missing_extra
from flyspeck.geo import GeoReference
from flyspeck.projection import WGS84, is_geographic, known_crs, transformed, unwrapped

_AREAS = ("Polygon", "MultiPolygon")
_TILES_AT_ONCE = 10_000
_LAYERS = (b"SQLite format 3\0", b"\0\0\x27\x0a")
"""How a GeoPackage and a Shapefile begin. Nothing else is handed to GDAL, whose other drivers may fetch what a file names."""


@dataclass(frozen=True)
class Region:
    """Polygons with holes, in one coordinate system."""

    shape: Any
    """A valid shapely polygon or multipolygon."""
    crs: str | None
    """None: pixels of the image."""
    name: str = "region"
    notes: tuple[str, ...] = ()
    """What was mended, a line each."""

    @property
    def degrees(self) -> bool:
        """Whether x is a longitude, so that places 360 apart are one."""
        return self.crs is not None and is_geographic(self.crs)

    def needs(self, geo: GeoReference | None) -> str:
        """Why an image cannot be placed in the region; empty where it can."""
        if self.crs is None:
            return ""
        if geo is None:
            return "has no georeference, and the region is in map coordinates"
        return "" if geo.crs is not None else "does not say its coordinate system, which the region needs"

    def meets(self, tiles: np.ndarray, geo: GeoReference | None) -> np.ndarray:
        """`(T,)` bool: tiles `(T, 4)`, in pixels, that may have a point inside. Never False for one that has."""
        kept = np.ones(len(tiles), bool)
        for start in range(0, len(tiles), _TILES_AT_ONCE):
            part = slice(start, start + _TILES_AT_ONCE)
            kept[part] = self._meets(tiles[part].astype(np.float64), geo)
        return kept

    def holds(self, boxes: np.ndarray, geo: GeoReference | None) -> np.ndarray:
        """`(N,)` bool: boxes `(N, 4)`, in pixels, whose centre is inside."""
        import shapely

        x, y = self._own(boxes[:, :2].astype(np.float64) / 2 + boxes[:, 2:].astype(np.float64) / 2, geo).T
        inside = np.zeros(len(boxes), bool)
        known = np.isfinite(x) & np.isfinite(y)
        for turn in self._turns():
            inside[known] |= shapely.intersects_xy(self.shape, x[known] + turn, y[known])
        return inside

    def _meets(self, tiles: np.ndarray, geo: GeoReference | None) -> np.ndarray:
        import shapely

        outlines = self._own(_outlines(tiles), geo)
        if self.degrees:
            outlines = unwrapped(outlines)
        sure = np.isfinite(outlines).all((1, 2))
        if self.degrees:  # round a pole, or half the globe: no outline to speak of
            sure &= np.ptp(np.where(np.isfinite(outlines[..., 0]), outlines[..., 0], 0), axis=1) < 170
            sure &= np.abs(outlines[:, 0, 0] - outlines[:, -1, 0]) < 1
        meets = np.ones(len(tiles), bool)
        found = np.zeros(int(sure.sum()), bool)
        for turn in self._turns():
            found |= shapely.intersects(self.shape, shapely.polygons(outlines[sure] + [turn, 0.0]))
        meets[sure] = found
        return meets

    def _own(self, points: np.ndarray, geo: GeoReference | None) -> np.ndarray:
        if self.crs is None:
            return points
        assert geo is not None
        assert geo.crs is not None
        return transformed(geo.on_map(points), geo.crs, self.crs)

    def _turns(self) -> tuple[float, ...]:
        return (0.0, -360.0, 360.0) if self.degrees else (0.0,)


def _outlines(tiles: np.ndarray) -> np.ndarray:
    """Closed outlines `(T, n, 2)` of tiles that are a little larger, with points between the corners.

    Their edges are no straight lines in another system; what is lost between two points is far less than the margin.
    """
    side = max(float((tiles[:, 2:] - tiles[:, :2]).max(initial=1)), 1.0)
    margin = 1 + 0.005 * side
    x1, y1, x2, y2 = (tiles + margin * np.array([-1, -1, 1, 1])).T
    share = np.linspace(0, 1, int(np.clip(side / 128, 8, 64)), endpoint=False)
    corners = np.stack([np.stack(p, 1) for p in ((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))], 1)
    steps = corners[:, :-1, None] + share[:, None] * (corners[:, 1:, None] - corners[:, :-1, None])
    return np.concatenate([steps.reshape(len(tiles), -1, 2), corners[:, :1]], 1)


def read_region(path: Path, *, where: str = "--roi") -> Region:
    """The polygons of a file. Raises UserError for a file without polygons, or whose coordinates cannot be its system's."""
    try:
        import shapely
    except ImportError:
        raise missing_extra("shapely", "geo") from None
    if not path.is_file():
        raise UserError(f"no such file: {path}", where=where, fix="give a GeoJSON file of polygons")
    with path.open("rb") as file:
        head = file.read(16)
    shapes, crs = _from_layers(path) if head.startswith(_LAYERS) else _from_geojson(path)
    polygons = [shape for shape in shapes if not shape.is_empty]
    if not polygons:
        raise UserError("holds no polygon", where=path, fix="a region is of polygons")
    notes = []
    broken = sum(not shape.is_valid for shape in polygons)
    if broken:
        crossed = counted(broken, "polygon that crosses itself was", "polygons that cross themselves were")
        notes.append(f"{path.name}: {crossed} mended (shapely.make_valid)")
        polygons = [shape if shape.is_valid else _areas(shapely.make_valid(shape)) for shape in polygons]
    whole = shapely.union_all(polygons)
    if crs == WGS84:
        x1, y1, x2, y2 = whole.bounds
        if not (-360 <= x1 <= x2 <= 360 and -90 <= y1 <= y2 <= 90):
            raise UserError(
                f"coordinates of {x1:.10g},{y1:.10g} to {x2:.10g},{y2:.10g} are no degrees",
                where=path,
                fix="GeoJSON is in WGS 84: write it in EPSG:4326, or name its system in a `crs` member, or `frame` pixels",
            )
    shapely.prepare(whole)
    return Region(whole, crs, path.name, tuple(notes))


def _areas(shape: Any) -> Any:
    """The areal parts of what `make_valid` gives."""
    import shapely

    parts = [part for part in shapely.get_parts(shape, return_index=False) if part.geom_type in _AREAS]
    return shapely.union_all(parts)


def _from_geojson(path: Path) -> tuple[list[Any], str | None]:
    from shapely.geometry import shape

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not GeoJSON ({error})", where=path, fix="give a GeoJSON file of polygons") from None
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise UserError("not GeoJSON: no object with a type", where=path, fix="give a GeoJSON file of polygons")
    shapes, frames = [], set()
    try:
        for geometry, frame in _geometries(content):
            if geometry.get("type") not in _AREAS:
                raise UserError(f"holds a {brief(geometry.get('type'))}", where=path, fix="a region is of polygons")
            with np.errstate(invalid="ignore"):
                polygon = shape(geometry)
            shapes.append(_flat(polygon, path))
            frames.add(frame)
    except UserError:
        raise
    except Exception as error:  # shapely fails with anything on coordinates that are none
        raise UserError(f"its coordinates are no polygon's ({error})", where=path, fix="write it again") from None
    if len(frames) > 1:
        raise UserError("polygons in pixels beside others", where=path, fix="write two files")
    if "pixels" in (content.get("frame"), *frames):
        return shapes, None
    return shapes, _named_crs(content, path)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _flat(polygon: Any, path: Path) -> Any:
    import shapely

    flat = shapely.force_2d(polygon)
    if not np.isfinite(shapely.get_coordinates(flat)).all():
        raise UserError("a coordinate is not finite", where=path, fix="write it again")
    return flat


def _geometries(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Every geometry, with the `frame` that its feature states."""
    kind = content.get("type")
    if kind == "FeatureCollection":
        for feature in content["features"]:
            yield from _geometries(feature)
    elif kind == "Feature":
        frame = (content.get("properties") or {}).get("frame")
        for geometry, _ in _geometries(content["geometry"]) if content.get("geometry") else ():
            yield geometry, "pixels" if frame == "pixels" else None
    elif kind == "GeometryCollection":
        for geometry in content["geometries"]:
            yield from _geometries(geometry)
    else:
        yield content, None


def _named_crs(content: dict[str, Any], path: Path) -> str:
    """The system of GeoJSON's 2008 `crs` member; WGS 84 without one."""
    if "crs" not in content:
        return WGS84
    member = content["crs"]
    properties = member.get("properties") if isinstance(member, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    if not isinstance(name, str):
        raise UserError(
            "its `crs` member names no coordinate system", where=path, fix="name one, or leave it out for WGS 84"
        )
    return known_crs(name, where=str(path))


def _from_layers(path: Path) -> tuple[list[Any], str | None]:
    try:
        import geopandas
    except ImportError:
        raise missing_extra("geopandas", "geoparquet") from None
    try:
        table = geopandas.read_file(path, engine="pyogrio")
    except Exception as error:
        raise UserError(f"cannot be read ({error})", where=path, fix="write the polygons as GeoJSON") from error
    if table.crs is None:
        raise UserError("does not say its coordinate system", where=path, fix="set it, or write GeoJSON")
    shapes = [_flat(shape, path) for shape in table.geometry if shape is not None]
    other = next((shape.geom_type for shape in shapes if shape.geom_type not in _AREAS), None)
    if other is not None:
        raise UserError(f"holds a {other}", where=path, fix="a region is of polygons")
    return shapes, known_crs(table.crs.to_wkt(), where=str(path))
