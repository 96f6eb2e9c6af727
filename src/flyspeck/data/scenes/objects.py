"""Persons, cars and boats: small solids in metres, projected by the camera and drawn supersampled.

A thing is a list of coloured convex parts, each the hull of a few points in space, so one description looks right from any
tilt: a person is two shoulders and a head from above and a standing figure from the side. The box is the extent of the
projected parts, exactly; shadows, towels, splashes and wakes lie outside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from flyspeck.data.scenes.camera import Camera
from flyspeck.data.scenes.ground import Colour, Light, Solid

CLASSES = ("person", "boat", "car")
PERSON, BOAT, CAR = range(3)

_SKINS = ((224, 182, 152), (198, 150, 118), (150, 104, 76), (104, 72, 54), (236, 198, 170))
_HAIR = ((38, 30, 26), (70, 50, 36), (120, 92, 58), (24, 22, 24), (190, 160, 110), (214, 210, 204))
_CLOTH = (
    (206, 44, 44), (238, 238, 236), (32, 38, 52), (44, 92, 178), (236, 188, 52), (58, 132, 84), (230, 120, 50),
    (150, 70, 140), (120, 126, 132), (240, 150, 170), (70, 190, 200), (96, 60, 44),
)  # fmt: skip
_TROUSERS = ((40, 48, 70), (30, 30, 34), (88, 80, 70), (60, 78, 110), (150, 138, 116), (104, 104, 108))
_PAINT = (
    (236, 236, 234), (238, 238, 240), (186, 190, 194), (128, 132, 138), (30, 32, 36), (44, 48, 56), (150, 28, 34),
    (34, 66, 126), (196, 42, 38), (84, 112, 140), (212, 176, 60), (60, 92, 70), (168, 152, 128),
)  # fmt: skip
_HULLS = (
    (240, 240, 236),
    (232, 236, 240),
    (222, 222, 214),
    (176, 46, 40),
    (40, 70, 120),
    (128, 90, 58),
    (232, 190, 70),
    (70, 74, 78),
)
_DECKS = ((206, 186, 150), (190, 196, 200), (150, 112, 74), (226, 226, 222), (96, 100, 108))


@dataclass(frozen=True)
class Thing:
    """One object on the ground."""

    label: int
    x: float
    y: float
    heading: float
    """Radians from +X."""
    pose: str = "standing"
    """person: standing, swimming, lying; car: car, van, truck; boat: motor, open, sail, ship."""
    size: float = 1.0
    """Factor on the usual size."""
    colours: tuple[Colour, ...] = field(default=((200, 200, 200),) * 4)


@dataclass(frozen=True)
class Drawing:
    """A projected thing: convex parts in image pixels, each by points that it is the hull of, in drawing order."""

    parts: tuple[tuple[np.ndarray, Colour], ...]
    under: tuple[tuple[np.ndarray, tuple[int, int, int, int]], ...]
    """Shadows, towels and splashes below it, with their opacity."""

    @property
    def box(self) -> np.ndarray:
        """The extent `(4,)` xyxy of the parts, not clipped to the image."""
        points = np.concatenate([part for part, _ in self.parts])
        return np.concatenate([points.min(0), points.max(0)])


def sample_colours(rng: np.random.Generator, label: int) -> tuple[Colour, ...]:
    """Four colours for the parts of a thing of class `label`."""

    def pick(palette: tuple[Colour, ...]) -> Colour:
        base = np.array(palette[int(rng.integers(len(palette)))], np.float64) * rng.uniform(0.85, 1.08)
        r, g, b = np.clip(base + rng.normal(0, 4, 3), 0, 255).astype(int)
        return int(r), int(g), int(b)

    if label == PERSON:
        return pick(_SKINS), pick(_HAIR), pick(_CLOTH), pick(_TROUSERS)
    if label == CAR:
        return (pick(_PAINT),) * 4
    return pick(_HULLS), pick(_DECKS), pick(_CLOTH), pick(_HULLS)


_ANGLES = np.linspace(0, 2 * np.pi, 9)[:-1]
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


@cache  # of a few dozen shapes; nobody writes into them
def _disc(x: float, y: float, z: float, rx: float, ry: float) -> np.ndarray:
    """A level ellipse of 8 points, `(8, 3)`."""
    return np.concatenate([_CIRCLE * (rx, ry) + (x, y), np.full((8, 1), z)], 1)


@cache
def _ball(x: float, y: float, z: float, r: float) -> np.ndarray:
    """Two crossed circles, whose hull looks round from every side, `(16, 3)`."""
    upright = np.stack([x + r * _CIRCLE[:, 0], np.full(8, y), z + r * _CIRCLE[:, 1]], 1)
    return np.concatenate([_disc(x, y, z, r, r), upright])


@cache
def _slab(x1: float, x2: float, half: float, z: float) -> np.ndarray:
    """A level rectangle with cut corners, `(8, 3)`; `x` runs along the thing's heading."""
    c = min(0.22 * half, 0.15 * (x2 - x1))
    xs = [x1 + c, x2 - c, x2, x2, x2 - c, x1 + c, x1, x1]
    ys = [-half, -half, -half + c, half - c, half, half, half - c, -half + c]
    return np.stack([xs, ys, np.full(8, z)], 1)


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


Decal = tuple[np.ndarray, tuple[int, int, int, int]]


def _person(thing: Thing) -> tuple[list[Solid], list[Decal], float]:
    skin, hair, cloth, trousers = thing.colours
    if thing.pose == "swimming":
        parts = [(_disc(-0.12, 0, 0.02, 0.16, 0.25), skin if thing.size < 1 else cloth)]
        parts += [
            (np.concatenate([_disc(0.05, s * 0.22, 0.02, 0.06, 0.06), _disc(0.38, s * 0.34, 0.02, 0.05, 0.05)]), skin)
            for s in (-1, 1)
        ]
        parts += [(_ball(0.06, 0, 0.14, 0.13), hair)]
        splash = [
            (_disc(-0.3 - 0.22 * k, 0.1 * (-1) ** k, 0, 0.3 - 0.05 * k, 0.2), (232, 240, 244, 45)) for k in range(3)
        ]
        return parts, splash, 0.15
    if thing.pose == "lying":
        legs = np.concatenate([_disc(-0.78, 0.0, 0.08, 0.05, 0.13), _disc(-0.1, 0, 0.12, 0.1, 0.17)])
        body = np.concatenate([_disc(-0.1, 0, 0.15, 0.1, 0.17), _disc(0.45, 0, 0.18, 0.1, 0.23)])
        towel = np.array([[-1.0, -0.48, 0], [-1.0, 0.48, 0], [0.95, 0.48, 0], [0.95, -0.48, 0]])
        return [(legs, skin), (body, cloth), (_ball(0.7, 0, 0.14, 0.11), hair)], [(towel, (*trousers, 235))], 0.2
    stride = 0.16
    parts: list[Solid] = []
    for side in (-1, 1):
        foot, hip = _disc(side * stride, side * 0.09, 0.0, 0.09, 0.06), _disc(0, side * 0.09, 0.86, 0.09, 0.09)
        parts.append((np.concatenate([foot, hip]), trousers))
    for side in (-1, 1):
        shoulder, hand = _disc(0, side * 0.21, 1.38, 0.06, 0.06), _disc(side * -0.16, side * 0.27, 0.85, 0.05, 0.05)
        parts.append((np.concatenate([shoulder, hand]), skin if sum(cloth) % 2 else _shade(cloth, 0.9)))
    parts.append((np.concatenate([_disc(0, 0, 0.82, 0.13, 0.17), _disc(0, 0, 1.42, 0.12, 0.22)]), cloth))
    parts.append((_ball(0, 0, 1.6, 0.125), hair if sum(hair) % 3 else skin))
    return parts, [], 1.7


_CARS = {"car": (4.3, 1.78, 0.78, 1.45), "van": (5.2, 1.98, 1.0, 2.1), "truck": (7.5, 2.35, 1.1, 2.9)}


def _car(thing: Thing) -> tuple[list[Solid], list[Decal], float]:
    length, width, waist, top = _CARS[thing.pose]
    paint, glass, tyre = thing.colours[0], (42, 50, 60), (26, 26, 28)
    a, b = length / 2, width / 2
    low = [(np.concatenate([_slab(-a, a, b, 0.25), _slab(-a, a, b, waist)]), _shade(paint, 0.66))]
    low.insert(
        0,
        (np.concatenate([_slab(-a * 0.95, a * 0.95, b * 0.94, 0.0), _slab(-a * 0.95, a * 0.95, b * 0.94, 0.3)]), tyre),
    )
    low.append((_slab(-a, a, b, waist), paint))
    if thing.pose == "truck":
        box = np.concatenate([_slab(-a, a * 0.5, b, waist), _slab(-a, a * 0.5, b, top)])
        cab = np.concatenate([_slab(a * 0.58, a, b * 0.95, waist), _slab(a * 0.62, a * 0.92, b * 0.9, top * 0.8)])
        return (
            [*low, (cab, _shade(paint, 0.55)), (box, (150, 150, 148)), (_slab(-a, a * 0.5, b, top), (222, 222, 218))],
            [],
            top,
        )
    front, back = (0.36, -0.82) if thing.pose == "car" else (0.62, -0.96)
    cabin = np.concatenate(
        [_slab(a * back, a * front, b * 0.9, waist), _slab(a * (back + 0.2), a * (front - 0.34), b * 0.76, top)]
    )
    roof = _slab(a * (back + 0.2), a * (front - 0.34), b * 0.76, top)
    return [*low, (cabin, glass), (roof, _shade(paint, 1.06))], [], top


_BOATS = {"motor": (6.0, 0.36), "open": (4.2, 0.34), "sail": (8.0, 0.3), "ship": (16.0, 0.27)}


def _boat(thing: Thing) -> tuple[list[Solid], list[Decal], float]:
    length, slim = _BOATS[thing.pose]
    hull, deck, canvas, cabin = thing.colours
    a, b = length / 2, length * slim / 2
    outline = np.array(
        [
            [-a, -b * 0.8],
            [0.1 * a, -b],
            [0.65 * a, -b * 0.62],
            [a, 0],
            [0.65 * a, b * 0.62],
            [0.1 * a, b],
            [-a, b * 0.8],
        ]
    )
    board = 0.09 * length if thing.pose != "ship" else 0.12 * length

    def level(scale: float, z: float) -> np.ndarray:
        return np.concatenate([outline * scale, np.full((len(outline), 1), z)], 1)

    parts: list[Solid] = [
        (np.concatenate([level(0.9, 0.0), level(1.0, board)]), _shade(hull, 0.72)),
        (level(1.0, board), hull),
    ]
    parts.append((level(0.8, board * 0.9), deck if thing.pose != "open" else _shade(deck, 0.7)))
    tall = board
    if thing.pose == "open":
        parts += [
            (np.concatenate([_disc(k * a, 0, board, 0.16, 0.2), _disc(k * a, 0, board + 0.5, 0.12, 0.18)]), canvas)
            for k in (-0.35, 0.2)
        ]
    elif thing.pose == "sail":
        tall = 1.15 * length
        lean = 0.16 * length
        sail = np.array([[0.15 * a, 0, board + 0.4], [-0.85 * a, lean, board + 0.5], [0.12 * a, 0.03 * length, tall]])
        jib = np.array(
            [[0.95 * a, 0, board], [0.22 * a, lean * 0.6, board + 0.5], [0.15 * a, 0.03 * length, tall * 0.85]]
        )
        parts += [(sail, (246, 245, 240)), (jib, (232, 232, 228))]
    else:
        start, end = (-0.3, 0.25) if thing.pose == "motor" else (-0.75, -0.2)
        tall = board + (0.13 if thing.pose == "motor" else 0.2) * length
        house = np.concatenate(
            [_slab(start * a, end * a, b * 0.62, board), _slab(start * a, end * a * 0.7, b * 0.52, tall)]
        )
        parts += [(house, (60, 72, 84)), (_slab(start * a, end * a * 0.7, b * 0.52, tall), _shade(cabin, 1.05))]
    return parts, [], tall if thing.pose != "sail" else 0.4 * tall


_BUILDERS = {PERSON: _person, BOAT: _boat, CAR: _car}
# usual extent in metres of each class's commonest pose, seen from a tilt t: used to choose the flying height
USUAL_METRES = {PERSON: 0.55, BOAT: 3.6, CAR: 3.1}


def usual_size(label: int, tilt: float) -> float:
    """The usual square root of the box area of a class, in metres on the ground, from `tilt` radians."""
    if label != PERSON:
        return USUAL_METRES[label]
    return float(np.sqrt(0.55 * (1.7 * np.sin(tilt) + 0.35 * np.cos(tilt))))


def draw_plan(thing: Thing, camera: Camera, light: Light) -> Drawing:
    """Project a thing: its parts, its shadow and what lies under it."""
    solids, decals, height = _BUILDERS[thing.label](thing)
    c, s = np.cos(thing.heading), np.sin(thing.heading)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) * thing.size
    groups = [points for points, _ in solids] + [points for points, _ in decals]
    space = np.concatenate(groups) @ turn + (thing.x, thing.y, 0.0)
    solid_points = sum(len(points) for points, _ in solids)
    cast = space[:solid_points].copy()
    cast[:, :2] += np.minimum(cast[:, 2:], height * thing.size) * light.offset
    cast[:, 2] = 0
    flat = camera.project(np.concatenate([space, cast]))
    polygons, start = [], 0
    for points in groups:
        polygons.append(flat[start : start + len(points)])
        start += len(points)
    parts = tuple((polygon, colour) for polygon, (_, colour) in zip(polygons, solids, strict=False))
    under: list[tuple[np.ndarray, tuple[int, int, int, int]]] = []
    under += [(polygon, colour) for polygon, (_, colour) in zip(polygons[len(solids) :], decals, strict=True)]
    opacity = int(255 * light.depth * (0.4 if thing.label == BOAT else 1.0))
    if thing.pose != "swimming":
        under.insert(len(under), (flat[start:], (8, 10, 18, opacity)))
    return Drawing(parts, tuple(under))


def building(solids: list[Solid], camera: Camera) -> Drawing:
    """Project a house, given in metres on the ground; its shadow is painted with the ground."""
    return Drawing(tuple((camera.project(points), colour) for points, colour in solids), ())


def hull(points: np.ndarray) -> np.ndarray:
    """Convex hull of `(N, 2)` points, by Andrew's monotone chain."""
    ordered = sorted(points.tolist())
    return np.array(_half_hull(ordered) + _half_hull(ordered[::-1]))


def _half_hull(ordered: list[list[float]]) -> list[list[float]]:
    """The turning points of a chain along sorted points, but its last."""
    chain: list[list[float]] = []
    size = 0
    for point in ordered:
        x, y = point
        while size > 1:
            ax, ay = chain[-2]
            bx, by = chain[-1]
            if (bx - ax) * (y - ay) > (by - ay) * (x - ax):
                break
            chain.pop()
            size -= 1
        chain.append(point)
        size += 1
    return chain[:-1]


def paint(canvas: Image.Image, drawing: Drawing) -> None:
    """Draw onto an RGB image in place, anti-aliased by supersampling a window around the thing."""
    everything = np.concatenate([p for p, _ in drawing.under] + [p for p, _ in drawing.parts])
    left, top = np.floor(everything.min(0)).astype(int) - 1
    right, bottom = np.ceil(everything.max(0)).astype(int) + 1
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, canvas.width), min(bottom, canvas.height)
    if left >= right or top >= bottom:
        return
    extent = max(right - left, bottom - top)
    factor = 8 if extent <= 24 else 4 if extent <= 120 else 2
    window = (int(left), int(top), int(right), int(bottom))
    size = ((right - left) * factor, (bottom - top) * factor)
    fine = canvas.resize(size, Image.Resampling.NEAREST, window)
    pen = ImageDraw.Draw(fine, "RGBA")  # blends what is not opaque
    shift = np.array([left, top], np.float64)
    for points, colour in (*drawing.under, *drawing.parts):
        # the pen fills pixels whose index lies inside; half a fine pixel brings indices to pixel centres
        polygon = (hull(points) - shift) * factor - 0.5
        pen.polygon(polygon.ravel().tolist(), fill=colour)
    canvas.paste(fine.reduce(factor), window[:2])
