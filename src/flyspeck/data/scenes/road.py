"""Road: asphalt with lane marks, crossings, shoulders and pavements, parking lots, roofs and trees beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck.data.scenes.ground import NO_TREES, Colour, Ground, Light, Solid, Terrain, Trees, scatter_trees
from flyspeck.data.scenes.noise import Field, blend, smoothstep

LANE = 3.4  # metres
_MARK = (226.0, 226.0, 218.0)
_VERGES = ((104, 116, 72), (88, 108, 58), (134, 122, 92), (120, 118, 108))
_ROOFS = ((148, 84, 64), (126, 122, 118), (168, 160, 148), (92, 92, 98), (178, 112, 82), (196, 194, 188))


@dataclass(frozen=True)
class Road:
    """A straight or gently bent road, in metres."""

    through: tuple[float, float]
    angle: float
    """Direction, radians."""
    bend: float
    """Curvature: the middle lies at `bend * along**2` across."""
    lanes: int
    """Even: half of them each way."""
    shoulder: float
    pavement: float
    """Width of the pavement beside the shoulder; 0 for none."""
    crossings: tuple[float, ...]
    """Along-coordinates of zebra crossings."""

    @property
    def half(self) -> float:
        """Half of the asphalt's width."""
        return self.lanes * LANE / 2 + self.shoulder

    def coordinates(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Along and across coordinates of ground points; broadcasts."""
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        dx, dy = x - np.float32(self.through[0]), y - np.float32(self.through[1])
        along = dx * c + dy * s
        return along, dy * c - dx * s - np.float32(self.bend) * along * along

    def points(self, along: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ground points `(N, 2)` and the road's direction there, `(N,)` radians."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        v = across + self.bend * along**2
        xy = np.stack([self.through[0] + along * c - v * s, self.through[1] + along * s + v * c], 1)
        return xy, self.angle + np.arctan(2 * self.bend * along)


@dataclass(frozen=True)
class Streets(Terrain):
    """Roads over a verge, with roofs and trees where there is room."""

    roads: tuple[Road, ...]
    verge: tuple[float, float, float]
    asphalt: float
    """Grey level."""
    lots: np.ndarray
    """(N, 5) parking lots: X, Y, angle, half length, half width."""
    roofs: np.ndarray
    """(N, 9): X, Y, angle, half length, half width, height, and the colour's three levels."""
    trees: Trees
    sun: float
    """Direction the light comes from, radians: which slope of a roof is bright."""

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance in metres from the nearest asphalt, negative on it, `(N,)`."""
        gaps = [np.abs(road.coordinates(points[:, 0], points[:, 1])[1]) - road.half for road in self.roads]
        return np.min(gaps, 0)

    def under_roof(self, points: np.ndarray, margin: float = 1.0) -> np.ndarray:
        """Whether ground points lie under a roof or closer than `margin` to one, `(N,)` bool."""
        return _inside(points, self.roofs[:, :5], margin)

    def plants(self) -> Trees:
        """Street trees."""
        return self.trees

    def buildings(self) -> list[list[Solid]]:
        """Houses, far ones first."""
        order = np.argsort(-self.roofs[:, 1], kind="stable")
        return [_house(roof, self.sun) for roof in self.roofs[order]]

    def paint(self, ground: Ground, light: Light, rng: np.random.Generator) -> np.ndarray:
        """Verge, pavements, lots, asphalt, marks, roofs, trees."""
        texture = ground.noise(rng, 5.0, gain=0.8)
        patches = ground.noise(rng, 40.0, 3.0)
        tone = 1 + 0.09 * texture + 0.10 * patches
        canvas = np.asarray(self.verge, np.float32)[:, None, None] * tone
        blend(canvas, (142, 124, 92), smoothstep(0.9, 1.8, patches + 0.4 * texture) * 0.6)
        tar = self.asphalt * (1 + 0.035 * texture + 0.05 * patches)
        tar = np.stack([tar * 0.99, tar, tar * 1.02])
        for lot in self.lots:
            self._paint_lot(canvas, ground, lot, tar)
        coordinates = [road.coordinates(ground.x, ground.y) for road in self.roads]
        slabs = np.array([168, 164, 156], np.float32)[:, None, None] * (1 + 0.05 * texture)
        for road, (_, across) in zip(self.roads, coordinates, strict=True):
            if road.pavement:
                wide = smoothstep(road.half + road.pavement + 0.2, road.half + road.pavement, np.abs(across))
                blend(canvas, slabs, wide)
            else:
                wide = smoothstep(road.half + 1.6, road.half, np.abs(across) + 0.3 * texture)
                blend(canvas, (138, 128, 108), wide * 0.7)
        for road, (_, across) in zip(self.roads, coordinates, strict=True):
            blend(canvas, tar, smoothstep(road.half + 0.1, road.half - 0.1, np.abs(across)))
        for index, (road, (along, across)) in enumerate(zip(self.roads, coordinates, strict=True)):
            others = [c for k, (_, c) in enumerate(coordinates) if k != index]
            limits = [r.half for k, r in enumerate(self.roads) if k != index]
            self._paint_marks(canvas, road, along, across, others, limits, texture, ground.scale)
        for roof in self.roofs:
            _paint_house_shadow(canvas, ground, light, roof)
        self.trees.paint_shadows(canvas, ground, light)
        return canvas

    def _paint_lot(self, canvas: np.ndarray, ground: Ground, lot: np.ndarray, tar: np.ndarray) -> None:
        """A parking lot with its bays' lines."""
        view, along, across = _window(ground, lot)
        if view is None:
            return
        inside = _box_alpha(along, across, lot[3], lot[4], 0.15)
        rows, columns = view
        blend(canvas[:, rows, columns], tar[:, rows, columns] * 1.08, inside)
        row = np.abs(np.mod(across + lot[4], 11.0) - 5.5)  # bays of 5 m back to back, aisles between
        line = smoothstep(0.14, 0.05, np.abs(np.mod(along, 2.6) - 1.3)) * (row < 5.0) * (row > 0.3)
        blend(canvas[:, rows, columns], _MARK, (line * inside * 0.7 * min(1.0, ground.scale / 7)).astype(np.float32))

    def _paint_marks(
        self,
        canvas: np.ndarray,
        road: Road,
        along: Field,
        across: Field,
        others: list[Field],
        limits: list[float],
        texture: Field,
        scale: float,
    ) -> None:
        """Edge lines, centre line, dashes and zebra crossings; none within a junction."""
        fade = np.float32(min(1.0, scale * 0.16 / 0.7 + 0.25))  # a 16 cm line covers part of a pixel only
        soft = max(0.08, 0.5 / scale)
        wear = np.clip(0.85 + 0.15 * texture, 0.3, 1.0) * fade
        for other, limit in zip(others, limits, strict=True):
            wear = wear * (np.abs(other) > limit + 0.5)
        offset = np.abs(across)
        marks = smoothstep(soft * 2, soft * 0.5, np.abs(offset - (road.lanes * LANE / 2)))
        centre = smoothstep(soft * 2, soft * 0.5, np.abs(offset - (0.22 if road.lanes >= 4 else 0.0)))
        dashed = (np.mod(along, 9.0) < 4.0).astype(np.float32)
        marks = np.maximum(marks, centre if road.lanes >= 4 else centre * dashed)
        for k in range(1, road.lanes // 2):
            marks = np.maximum(marks, smoothstep(soft * 2, soft * 0.5, np.abs(offset - k * LANE)) * dashed)
        for crossing in road.crossings:
            near = smoothstep(1.9, 1.6, np.abs(along - np.float32(crossing)))
            bars = (np.mod(across, 1.0) < 0.5).astype(np.float32) * (offset < road.half - 0.2)
            marks = np.where(near > 0.01, near * bars, marks)
        blend(canvas, _MARK, (marks * wear * 0.85).astype(np.float32))


def _inside(points: np.ndarray, rectangles: np.ndarray, margin: float) -> np.ndarray:
    """Whether points `(N, 2)` lie in any rotated rectangle (X, Y, angle, half length, half width)."""
    inside = np.zeros(len(points), bool)
    for x, y, angle, a, b in rectangles:
        c, s = np.cos(angle), np.sin(angle)
        dx, dy = points[:, 0] - x, points[:, 1] - y
        inside |= (np.abs(dx * c + dy * s) < a + margin) & (np.abs(dy * c - dx * s) < b + margin)
    return inside


def _window(
    ground: Ground, rectangle: np.ndarray, shift: np.ndarray | None = None
) -> tuple[tuple[slice, slice] | None, Field, Field]:
    """The raster's window around a rotated rectangle, and its own coordinates there."""
    x, y, angle, a, b = (float(v) for v in rectangle[:5])
    if shift is not None:
        x, y = x + float(shift[0]), y + float(shift[1])
    radius = float(np.hypot(a, b)) + 1
    row, column = ground.rows_columns(np.array([[x, y]]))[0]
    r = radius * ground.scale
    top, bottom = max(int(row - r), 0), min(int(row + r) + 1, ground.height)
    left, right = max(int(column - r), 0), min(int(column + r) + 1, ground.width)
    if top >= bottom or left >= right:
        return None, np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
    dx, dy = ground.x[:, left:right] - np.float32(x), ground.y[top:bottom] - np.float32(y)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (slice(top, bottom), slice(left, right)), dx * c + dy * s, dy * c - dx * s


def _box_alpha(along: Field, across: Field, a: float, b: float, soft: float) -> Field:
    """1 inside a rectangle of half sides `a`, `b`, falling to 0 over `soft` metres."""
    gap = np.maximum(np.abs(along) - np.float32(a), np.abs(across) - np.float32(b))
    return smoothstep(soft, -soft, gap)


def _paint_house_shadow(canvas: np.ndarray, ground: Ground, light: Light, roof: np.ndarray) -> None:
    """The shadow of a house: its footprint swept along the light, in steps close enough to look swept."""
    steps = [_window(ground, roof, light.offset * roof[5] * step) for step in np.linspace(0, 1, 6)]
    seen = [(view, along, across) for view, along, across in steps if view is not None]
    if not seen:
        return
    top, left = (min(view[axis].start for view, _, _ in seen) for axis in (0, 1))
    bottom, right = (max(view[axis].stop for view, _, _ in seen) for axis in (0, 1))
    shade = np.zeros((bottom - top, right - left), np.float32)
    for (rows, columns), along, across in seen:
        part = shade[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        np.maximum(part, _box_alpha(along, across, roof[3], roof[4], 0.2), out=part)
    canvas[:, top:bottom, left:right] *= 1 - shade * np.float32(light.depth)


def _house(roof: np.ndarray, light_from: float) -> list[Solid]:
    """Walls and two slopes of a roof (or a flat one, where it is wide), as solids in metres."""
    x, y, angle, a, b, eaves = (float(v) for v in roof[:6])
    flat = b > 9
    ridge = eaves if flat else eaves + 0.45 * b
    c, s = np.cos(angle), np.sin(angle)

    def at(points: list[tuple[float, float, float]]) -> np.ndarray:
        p = np.array(points)
        return np.stack([x + p[:, 0] * c - p[:, 1] * s, y + p[:, 0] * s + p[:, 1] * c, p[:, 2]], 1)

    def tone(colour: np.ndarray, factor: float) -> Colour:
        r, g, b = np.clip(colour * factor, 0, 255).astype(int)
        return int(r), int(g), int(b)

    corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
    wall_colour = 0.5 * roof[6:9] + 95
    walls = at([(u, v, z) for u, v in corners for z in (0.0, eaves)])
    if flat:
        top = at([(u, v, eaves) for u, v in corners])
        inner = at([(u * 0.96, v * 0.94, eaves) for u, v in corners])
        return [(walls, tone(wall_colour, 0.7)), (top, tone(roof[6:9], 1.12)), (inner, tone(roof[6:9], 0.96))]
    lean = 0.22 * np.cos(light_from - angle - np.pi / 2)
    gable = at([(-a, -b, eaves), (-a, b, eaves), (a, -b, eaves), (a, b, eaves), (-a, 0, ridge), (a, 0, ridge)])
    south = at([(-a, -b, eaves), (a, -b, eaves), (a, 0, ridge), (-a, 0, ridge)])
    north = at([(-a, b, eaves), (a, b, eaves), (a, 0, ridge), (-a, 0, ridge)])
    slopes: list[Solid] = [(north, tone(roof[6:9], 1 + lean)), (south, tone(roof[6:9], 1 - lean))]
    if c < 0:  # the slope that faces the camera is drawn last
        slopes.reverse()
    return [(walls, tone(wall_colour, 0.75)), (gable, tone(wall_colour, 0.85)), *slopes]


def _sample_roads(rng: np.random.Generator, area: tuple[float, float, float, float]) -> tuple[Road, ...]:
    """One main road; on larger ground a crossing street and a parallel one."""
    x1, y1, x2, y2 = area
    span = min(x2 - x1, y2 - y1)
    angle = float(rng.uniform(0, np.pi))
    urban = rng.random() < 0.6
    lanes = int(rng.choice([2, 4, 6], p=[0.45, 0.4, 0.15])) if span > 30 else 2
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + rng.uniform(-0.15, 0.15, 2) * span
    bend = 0.0 if span < 120 or urban else float(rng.normal(0, 0.25 / span))

    def crossings(count: int) -> tuple[float, ...]:
        return tuple(float(v) for v in rng.uniform(-0.35, 0.35, count) * span)

    def street(through: np.ndarray, direction: float, num_lanes: int, curve: float) -> Road:
        pavement = float(rng.uniform(1.8, 3.5)) if urban else 0.0
        return Road(
            (float(through[0]), float(through[1])),
            direction,
            curve,
            num_lanes,
            float(rng.uniform(0.4, 2.2)),
            pavement,
            crossings(int(rng.integers(0, 3)) if urban else 0),
        )

    roads = [street(middle, angle, lanes, bend)]
    if span > 70 and rng.random() < 0.6:
        roads.append(street(middle + rng.uniform(-0.2, 0.2, 2) * span, angle + np.pi / 2, 2, 0.0))
    normal = np.array([-np.sin(angle), np.cos(angle)])
    gap = 70.0
    while span > 2.2 * gap and bend == 0.0 and len(roads) < 5:
        roads.append(street(middle + normal * gap * (1 if len(roads) % 2 else -1), angle, 2, 0.0))
        gap *= 1.45
    return tuple(roads)


def sample_streets(rng: np.random.Generator, area: tuple[float, float, float, float], light: Light) -> Streets:
    """Streets over the ground rectangle `area`."""
    x1, y1, x2, y2 = area
    roads = _sample_roads(rng, area)
    bare = Streets(roads, (0, 0, 0), 0, np.zeros((0, 5)), np.zeros((0, 9)), NO_TREES, 0.0)
    ground_area = (x2 - x1) * (y2 - y1)

    def beside(count: int, half: tuple[float, float, float, float], gap: float) -> np.ndarray:
        """Rectangles aligned with the main road that keep `gap` metres from the asphalt."""
        rows = np.stack(
            [
                rng.uniform(x1, x2, count),
                rng.uniform(y1, y2, count),
                np.full(count, roads[0].angle) + rng.choice([0, np.pi / 2], count),
                rng.uniform(half[0], half[1], count),
                rng.uniform(half[2], half[3], count),
            ],
            1,
        )
        kept: list[np.ndarray] = []
        for row in rows:
            radius = float(np.hypot(row[3], row[4]))
            apart = all(np.hypot(*(row[:2] - k[:2])) > radius + np.hypot(k[3], k[4]) for k in kept)
            if apart and bare.clearance(row[None, :2])[0] > radius + gap:
                kept.append(row)
        return np.array(kept).reshape(-1, 5)

    lots = (
        beside(int(min(6, rng.poisson(ground_area / 9000))), (10, 24, 8, 16), 1.0)
        if rng.random() < 0.5
        else np.zeros((0, 5))
    )
    town = rng.random() < 0.6
    roofs = beside(int(min(60, ground_area / 420)) if town else int(rng.integers(0, 3)), (5, 13, 4, 11), 3.5)
    if len(lots) and len(roofs):
        roofs = roofs[~_inside(roofs[:, :2], lots, 14.0)]
    colours = np.array([_ROOFS[int(k)] for k in rng.integers(0, len(_ROOFS), len(roofs))], np.float64).reshape(-1, 3)
    roofs = np.concatenate(
        [roofs, rng.uniform(3, 10, (len(roofs), 1)), colours * rng.uniform(0.8, 1.1, (len(roofs), 1))], 1
    )
    trees = scatter_trees(
        rng, area, count=int(min(140, rng.poisson(ground_area / 260))), radius=(1.2, 3.8), clumped=0.5
    )
    clear = (bare.clearance(trees.crowns[:, :2]) > trees.crowns[:, 2] + 0.5) & ~_inside(
        trees.crowns[:, :2], roofs[:, :5], 2
    )
    clear &= ~_inside(trees.crowns[:, :2], lots, 2.0)
    return Streets(
        roads=roads,
        verge=_VERGES[int(rng.integers(len(_VERGES)))],
        asphalt=float(rng.uniform(78, 128)),
        lots=lots,
        roofs=roofs,
        trees=Trees(trees.crowns[clear], trees.hue),
        sun=light.azimuth + np.pi,
    )
