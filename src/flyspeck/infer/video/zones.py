"""Lines and regions in a video's frames, and when the path of an object crosses them.

An object's place is the centre of its box. It has crossed when its centre is beyond the line or border by more than a quarter
of its size: the boxes of a parked object tremble by less, and are not counted again and again. Between two frames it moves on a
straight line, so nothing is missed between frames that are far apart, nor while a track is not seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flyspeck.errors import UserError, brief

Point = tuple[float, float]
_MARGIN = 0.25
"""Of an object's size: how far beyond it must be to have crossed."""
_LARGEST = 20_000_000  # bytes of a file with regions


def margin_of(box: Sequence[float]) -> float:
    """How far an object with the box xyxy must be beyond a line to have crossed it, in pixels."""
    return _MARGIN * float(np.sqrt(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])))


class Way(Protocol):
    """What one zone remembers of one object."""

    def follow(self, point: Point, margin: float) -> list[str]:
        """Directions of the crossings on the way to `point`, in their order."""
        ...


@dataclass(frozen=True)
class CountLine:
    """A line from `start` to `end`, in pixels. Seen along it, `in` is from left to right, `out` from right to left."""

    name: str
    start: Point
    end: Point
    kind = "line"
    directions = ("in", "out")

    def begin(self, point: Point) -> LinePath:
        """What is remembered of an object that is first seen at `point`."""
        return LinePath(self, point)

    def corners(self) -> np.ndarray:
        """(2, 2) x, y."""
        return np.array([self.start, self.end])


class LinePath:
    """The path of one object past one line."""

    def __init__(self, line: CountLine, point: Point) -> None:
        (ax, ay), (bx, by) = line.start, line.end
        self._origin, self._along = (ax, ay), (bx - ax, by - ay)
        self._length = float(np.hypot(*self._along))
        self._at = point
        self._side = self._beyond = np.sign(self._distance(point))
        self._crossed_within = False

    def follow(self, point: Point, margin: float) -> list[str]:
        """See `Way.follow`."""
        before, now = self._distance(self._at), self._distance(point)
        side = np.sign(now) or self._side
        if self._side and side != self._side:
            share = before / (before - now)
            x, y = (a + share * (b - a) for a, b in zip(self._at, point, strict=True))
            where = ((x - self._origin[0]) * self._along[0] + (y - self._origin[1]) * self._along[1]) / self._length**2
            self._crossed_within = 0 <= where <= 1
        self._at, self._side = point, side
        self._beyond = self._beyond or side
        if side == self._beyond or abs(now) <= margin:
            return []
        self._beyond = side
        return ["in" if side > 0 else "out"] if self._crossed_within else []

    def _distance(self, point: Point) -> float:
        """Signed, in pixels; above 0 to the right of the line, seen along it (y points down)."""
        x, y = point[0] - self._origin[0], point[1] - self._origin[1]
        return (self._along[0] * y - self._along[1] * x) / self._length


@dataclass(frozen=True)
class CountRegion:
    """A region inside `rings`, polygons in pixels; a ring within another is a hole."""

    name: str
    rings: tuple[tuple[Point, ...], ...]
    kind = "region"
    directions = ("enter", "exit")

    def begin(self, point: Point) -> RegionPath:
        """What is remembered of an object that is first seen at `point`; one that is inside then has not entered."""
        return RegionPath(self, point)

    def corners(self) -> np.ndarray:
        """(N, 2) x, y of all rings."""
        return np.concatenate([np.array(ring) for ring in self.rings])

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of every edge, (N, 2) each."""
        rings = [np.array(ring) for ring in self.rings]
        return np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])

    def holds(self, point: Point) -> bool:
        """Whether a point is inside: a ray from it meets the rings an odd number of times."""
        (x1, y1), (x2, y2) = (ends.T for ends in self.edges())
        spans = (y1 > point[1]) != (y2 > point[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x1 + (point[1] - y1) / (y2 - y1) * (x2 - x1)
        return bool((spans & (point[0] < at)).sum() % 2)

    def depth(self, point: Point) -> float:
        """Distance of a point from the nearest edge, in pixels."""
        start, end = self.edges()
        along = end - start
        share = ((np.array(point) - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-12)
        nearest = start + np.clip(share, 0, 1)[:, None] * along
        return float(np.hypot(*(nearest - point).T).min())


class RegionPath:
    """The path of one object into and out of one region."""

    def __init__(self, region: CountRegion, point: Point) -> None:
        self._region, self._at = region, point
        self.inside = region.holds(point)

    def follow(self, point: Point, margin: float) -> list[str]:
        """See `Way.follow`."""
        found = []
        cuts = [0.0, *self._meetings(point), 1.0]
        places = [tuple(a + share * (b - a) for a, b in zip(self._at, point, strict=True)) for share in cuts]
        for begin, end in pairwise(places):
            middle = ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
            inside = self._region.holds(middle)
            if inside == self.inside:
                continue
            deepest = max(self._region.depth((place[0], place[1])) for place in (middle, end))
            if deepest > margin:
                self.inside = inside
                found.append("enter" if inside else "exit")
        self._at = point
        return found

    def _meetings(self, point: Point) -> list[float]:
        """Where on the way to `point` the border is met, from 0 to 1."""
        start, end = self._region.edges()
        way, along = np.subtract(point, self._at), end - start
        across = way[0] * along[:, 1] - way[1] * along[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            off = start - self._at
            on_way = (off[:, 0] * along[:, 1] - off[:, 1] * along[:, 0]) / across
            on_edge = (off[:, 0] * way[1] - off[:, 1] * way[0]) / across
            meets = (across != 0) & (on_way > 0) & (on_way < 1) & (on_edge >= 0) & (on_edge <= 1)
        return sorted(set(on_way[meets].tolist()))


Zone = CountLine | CountRegion


def parse_line(text: str, number: int) -> CountLine:
    """`x1,y1,x2,y2` or `x1,y1,x2,y2:name`; without a name it is `line N`. Raises UserError."""
    points, name = _points(text, where="--count-line", example="0,240,640,240:gate")
    if len(points) != 2:
        raise UserError(
            f"'{text}' has not two points", where="--count-line", fix="write x1,y1,x2,y2 or x1,y1,x2,y2:name"
        )
    if points[0] == points[1]:
        raise UserError(f"'{text}' has no length", where="--count-line", fix="give two different points")
    return CountLine(name or f"line {number}", points[0], points[1])


def parse_regions(text: str, number: int) -> list[CountRegion]:
    """`x1,y1,x2,y2,x3,y3,...` with or without `:name`, or a GeoJSON file of polygons in pixels. Raises UserError."""
    if Path(text).suffix.lower() in (".geojson", ".json"):
        return _read_regions(Path(text))
    points, name = _points(text, where="--count-region", example="10,10,90,10,90,90,10,90:pond")
    return [_region(name or f"region {number}", [points], where="--count-region")]


def parse_zones(lines: Sequence[str], regions: Sequence[str]) -> list[Zone]:
    """All that is asked for, each with a name of its own. Raises UserError."""
    zones: list[Zone] = [parse_line(text, number) for number, text in enumerate(lines, start=1)]
    for number, text in enumerate(regions, start=1):
        zones += parse_regions(str(text), number)
    names = [(zone.kind, zone.name) for zone in zones]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two are called '{twice[1]}'", where=f"--count-{twice[0]}", fix="give each a name of its own")
    return zones


def remarks_on(zones: Sequence[Zone], size: tuple[int, int]) -> list[str]:
    """A line for each zone that no object in a frame of `size` (H, W) can cross."""
    high, wide = size
    out = []
    for zone in zones:
        (x1, y1), (x2, y2) = zone.corners().min(axis=0), zone.corners().max(axis=0)
        if x2 < 0 or y2 < 0 or x1 > wide or y1 > high:
            out.append(f"the {zone.kind} '{zone.name}' lies outside of the frames of {wide}x{high} px (width x height)")
    return out


def _points(text: str, *, where: str, example: str) -> tuple[list[Point], str]:
    numbers, _, name = text.partition(":")
    try:
        values = [float(part) for part in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) < 4 or len(values) % 2 or not np.isfinite(values).all():
        raise UserError(f"'{text}' is no list of points", where=where, fix=f"for example {example}")
    return list(zip(values[::2], values[1::2], strict=True)), name.strip()


def _region(name: str, rings: Sequence[Sequence[Point]], *, where: object) -> CountRegion:
    closed = []
    for ring in rings:
        points = [(float(x), float(y)) for x, y in ring]
        points = points[:-1] if len(points) > 1 and points[0] == points[-1] else points
        x, y = np.array(points).T if points else (np.zeros(0), np.zeros(0))
        area = abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2 if len(points) > 2 else 0.0
        if not area > 0:
            raise UserError(
                f"the region '{name}' has no area", where=where, fix="give three points or more, not on a line"
            )
        closed.append(tuple(points))
    return CountRegion(name, tuple(closed))


def _read_regions(path: Path) -> list[CountRegion]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError("is too large for a list of regions", where=path)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, fix="check the path") from None
    except (ValueError, RecursionError):
        raise UserError("is no GeoJSON", where=path, fix="give polygons in pixels of the frame") from None
    found = []
    for number, feature in enumerate(_features(content), start=1):
        geometry, about = feature.get("geometry", feature), feature.get("properties")
        kind, rings = (
            (geometry.get("type"), geometry.get("coordinates")) if isinstance(geometry, dict) else (None, None)
        )
        name = about.get("name") if isinstance(about, dict) else None
        name = str(name) if name is not None else path.stem if number == 1 else f"{path.stem} {number}"
        if kind not in ("Polygon", "MultiPolygon"):
            raise UserError(f"feature {number} is {brief(kind)}, no polygon", where=path, fix="give polygons in pixels")
        try:
            parts: Any = [rings] if kind == "Polygon" else rings
            points = [[(float(p[0]), float(p[1])) for p in ring] for part in parts for ring in part]
        except (TypeError, ValueError, IndexError, KeyError):
            raise UserError(f"the coordinates of feature {number} are none", where=path) from None
        if not points or not all(np.isfinite(ring).all() for ring in points):
            raise UserError(f"the coordinates of feature {number} are none", where=path)
        found.append(_region(name, points, where=path))
    if not found:
        raise UserError("holds no polygon", where=path)
    return found


def _features(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict):
        parts = content.get("features") if content.get("type") == "FeatureCollection" else [content]
        return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return []
