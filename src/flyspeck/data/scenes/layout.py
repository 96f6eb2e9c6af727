"""Who stands where: the plan of a scene, with exact boxes, before a single pixel is painted.

Sizes follow TinyPerson's (Yu et al., WACV 2020; mean and SD of sqrt(area) 18.0 ± 17.4 px, 73 % at most 20 px): every
scene draws the usual size of its main class, and the flying height follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as B
from flyspeck.data.scenes import objects
from flyspeck.data.scenes.camera import Camera, Sensor, sample_sensor
from flyspeck.data.scenes.field import Farmland, sample_farmland
from flyspeck.data.scenes.ground import Light, Terrain, sample_light
from flyspeck.data.scenes.objects import BOAT, CAR, PERSON, Drawing, Thing, draw_plan, sample_colours, usual_size
from flyspeck.data.scenes.road import LANE, Streets, sample_streets
from flyspeck.data.scenes.sea import Sea, sample_sea

KINDS = ("sea", "field", "road")
SMALLEST = 2.0  # px; what is smaller is left out of the scene
# The usual size in pixels of a scene's main class: log-normal from afar, and some scenes from close by. (share, median,
# log SD) of both were fitted so that all boxes together have TinyPerson's mean, SD and share of at most 20 px; the test
# holds them to it.
_FAR_AND_NEAR = ((0.88, 10.0, 0.7), (0.12, 38.0, 0.5))
_REFERENCE_AREA = 640 * 512


@dataclass(frozen=True)
class ScenePlan:
    """Everything about a scene but its pixels."""

    kind: str
    camera: Camera
    light: Light
    sensor: Sensor
    terrain: Terrain
    drawings: tuple[Drawing, ...]
    """Things to paint, far ones first, those of the ignored crowds among them."""
    wakes: tuple[Thing, ...]
    """Boats under way."""
    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels, clipped to the image; objects first, then ignore regions."""
    labels: np.ndarray
    """(N,) int64; -1 for ignore regions."""
    ignore: np.ndarray
    """(N,) bool."""
    smears: tuple[tuple[int, int, int, int], ...]
    """Blurred patches, each under an ignore region."""


@dataclass(frozen=True)
class _Spots:
    """Candidate places for one class."""

    xy: np.ndarray
    heading: np.ndarray
    poses: tuple[str, ...]

    def __add__(self, other: _Spots) -> _Spots:
        return _Spots(
            np.concatenate([self.xy, other.xy]), np.concatenate([self.heading, other.heading]), self.poses + other.poses
        )


def _nowhere() -> _Spots:
    return _Spots(np.zeros((0, 2)), np.zeros(0), ())


def _choose(rng: np.random.Generator, count: int, names: tuple[str, ...], shares: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(names[i] for i in rng.choice(len(names), count, p=shares))


def _clusters(
    rng: np.random.Generator, count: int, area: tuple[float, float, float, float], spread: float
) -> np.ndarray:
    """Points in groups of a few: `(count, 2)` metres, `spread` the SD within a group."""
    x1, y1, x2, y2 = area
    groups = max(1, count // int(rng.integers(3, 12)))
    centres = np.stack([rng.uniform(x1, x2, groups), rng.uniform(y1, y2, groups)], 1)
    return centres[rng.integers(0, groups, count)] + rng.normal(0, spread, (count, 2))


def _sea_spots(
    rng: np.random.Generator, sea: Sea, label: int, count: int, area: tuple[float, float, float, float]
) -> _Spots:
    if label == CAR:
        return _nowhere()
    loose = _clusters(rng, count * 3, area, 5.0 if label == PERSON else 25.0)
    uniform = np.stack([rng.uniform(area[0], area[2], count * 5), rng.uniform(area[1], area[3], count * 5)], 1)
    xy = rng.permutation(np.concatenate([loose, uniform]))
    depth = sea.depth_from_shore(xy[:, 0], xy[:, 1])
    if label == BOAT:
        xy = xy[depth > 6]
        lined = rng.random() < 0.35  # at anchor, all boats swing the same way
        heading = rng.normal(sea.wind, 0.15, len(xy)) if lined else rng.uniform(0, 2 * np.pi, len(xy))
        return _Spots(xy, heading, _choose(rng, len(xy), ("motor", "open", "sail", "ship"), (0.46, 0.34, 0.12, 0.08)))
    if sea.has_shore:
        # most people are on the sand near the water or bathing close to it
        likely = np.where(depth < 0, np.exp(depth / 22.0), np.exp(-depth / 16.0)) + 0.03
        keep = (rng.random(len(xy)) < likely) & ((depth < -1.2) | (depth > 0.8))
        xy, depth = xy[keep], depth[keep]
    dry = np.where(rng.random(len(xy)) < 0.6, "standing", "lying")
    poses = tuple(str(p) for p in np.where(depth < 0, dry, "swimming"))
    return _Spots(xy, rng.uniform(0, 2 * np.pi, len(xy)), poses)


def _field_spots(
    rng: np.random.Generator, farm: Farmland, label: int, count: int, area: tuple[float, float, float, float]
) -> _Spots:
    if label == BOAT:
        return _nowhere()
    reach = np.hypot(area[2] - area[0], area[3] - area[1]) / 2
    along, on_track = rng.uniform(-reach, reach, count * 4), rng.random(count * 4) < (0.75 if label == CAR else 0.3)
    across = np.where(on_track, rng.normal(0, 0.5, count * 4), rng.normal(0, 14.0, count * 4))
    track = farm.track_points(along, across)
    heading = (
        farm.angle
        + rng.choice([0, np.pi], len(track))
        + np.where(on_track, rng.normal(0, 0.05, len(track)), rng.normal(0, 0.6, len(track)))
    )
    spots = _Spots(track, heading, _choose(rng, len(track), ("car", "van", "truck"), (0.6, 0.25, 0.15)))
    if label == PERSON:
        loose = _clusters(rng, count * 6, area, 4.0)
        heading = rng.uniform(0, 2 * np.pi, len(loose) + len(track))
        spots = _Spots(np.concatenate([track, loose]), heading, ("standing",) * len(heading))
    order = rng.permutation(len(spots.xy))
    return _Spots(spots.xy[order], spots.heading[order], tuple(spots.poses[i] for i in order))


def _road_spots(
    rng: np.random.Generator, streets: Streets, label: int, count: int, area: tuple[float, float, float, float]
) -> _Spots:
    if label == BOAT:
        return _nowhere()
    reach = np.hypot(area[2] - area[0], area[3] - area[1]) / 2
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for road in streets.roads:
        along = rng.uniform(-reach, reach, count * 4)
        if label == CAR:
            lane = rng.integers(0, road.lanes, len(along)) - road.lanes / 2 + 0.5
            xy, heading = road.points(along, lane * LANE + rng.normal(0, 0.18, len(along)))
            # right-hand traffic: what lies left of the middle comes the other way
            parts.append((xy, heading + np.where(lane > 0, np.pi, 0) + rng.normal(0, 0.025, len(along))))
            continue
        side = rng.choice([-1, 1], len(along))
        path = side * (road.half + np.maximum(road.pavement, 1.2) * rng.uniform(0.1, 0.9, len(along)))
        if road.crossings:
            crossing = rng.random(len(along)) < 0.3
            along = np.where(crossing, rng.choice(road.crossings, len(along)) + rng.normal(0, 0.9, len(along)), along)
            path = np.where(crossing, rng.uniform(-road.half, road.half, len(along)), path)
        xy, heading = road.points(along, path)
        parts.append((xy, rng.uniform(0, 2 * np.pi, len(along))))
    if label == CAR:
        parts += [_bays(rng, lot) for lot in streets.lots]
    else:
        loose = _clusters(rng, count * 2, area, 4.0)
        loose = loose[streets.clearance(loose) > 0.5]
        parts.append((loose, rng.uniform(0, 2 * np.pi, len(loose))))
    xy, heading = np.concatenate([p for p, _ in parts]), np.concatenate([h for _, h in parts])
    order = rng.permutation(np.flatnonzero(~streets.under_roof(xy)))
    poses = ("standing",) * len(order)
    if label == CAR:
        poses = _choose(rng, len(order), ("car", "van", "truck"), (0.8, 0.13, 0.07))
    return _Spots(xy[order], heading[order], poses)


def _bays(rng: np.random.Generator, lot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parked cars of a lot (X, Y, angle, half length, half width): places and headings."""
    x, y, angle, a, b = lot
    along = np.arange(-np.floor(a / 2.6), np.floor(a / 2.6)) * 2.6 + 2.6
    rows = np.concatenate([row + np.array([2.9, -2.9]) for row in np.arange(-b, b + 5.5, 11.0)])
    rows = rows[np.abs(rows) < b - 2.4]
    u, v = (grid.ravel() for grid in np.meshgrid(along, rows))
    taken = (rng.random(len(u)) < rng.uniform(0.3, 0.95)) & (np.abs(u) < a - 1.3)
    u, v = u[taken] + rng.normal(0, 0.1, taken.sum()), v[taken] + rng.normal(0, 0.15, taken.sum())
    c, s = np.cos(angle), np.sin(angle)
    xy = np.stack([x + u * c - v * s, y + u * s + v * c], 1)
    return xy, angle + np.pi / 2 + rng.choice([0, np.pi], len(u)) + rng.normal(0, 0.03, len(u))


def _spots(
    rng: np.random.Generator, terrain: Terrain, label: int, count: int, area: tuple[float, float, float, float]
) -> _Spots:
    if isinstance(terrain, Sea):
        return _sea_spots(rng, terrain, label, count, area)
    if isinstance(terrain, Farmland):
        return _field_spots(rng, terrain, label, count, area)
    assert isinstance(terrain, Streets)
    return _road_spots(rng, terrain, label, count, area)


class _Placer:
    """Puts things into a scene one by one, keeping boxes apart and inside the image."""

    def __init__(self, camera: Camera, light: Light, terrain: Terrain) -> None:
        self.camera, self.light = camera, light
        self.crowns = terrain.plants().discs(camera)
        houses = [objects.building(parts, camera).box for parts in terrain.buildings()]
        self.houses = np.array(houses).reshape(-1, 4)
        self.things: list[Thing] = []
        self.drawings: list[Drawing] = []
        self.boxes = np.zeros((0, 4))

    def hidden(self, box: np.ndarray) -> bool:
        """Whether a tree or a house stands in the line of sight to `box`, or right behind it."""
        nearest = np.clip(self.crowns[:, :2], box[:2], box[2:]) - self.crowns[:, :2]
        if (np.hypot(nearest[:, 0], nearest[:, 1]) < self.crowns[:, 2]).any():
            return True
        return bool((B.intersection(box[None], self.houses) > 0).any())

    def place(
        self,
        rng: np.random.Generator,
        label: int,
        spots: _Spots,
        count: int,
        *,
        overlap: float,
        largest: float,
        keep_out: np.ndarray,
    ) -> None:
        """Place up to `count` things; `overlap` is the largest share of the smaller box that may be covered."""
        left = count
        level = np.concatenate([spots.xy, np.zeros((len(spots.xy), 1))], 1)
        centres = self.camera.project(level) / (self.camera.width, self.camera.height)
        for index in np.flatnonzero(((centres >= 0) & (centres < 1)).all(1)):
            if left == 0:
                return
            (x, y), heading, pose = spots.xy[index], spots.heading[index], spots.poses[index]
            thing = Thing(
                label,
                float(x),
                float(y),
                float(heading),
                pose,
                float(rng.uniform(0.85, 1.15)),
                sample_colours(rng, label),
            )
            drawing = draw_plan(thing, self.camera, self.light)
            whole = drawing.box
            box = B.clip(whole, self.camera.height, self.camera.width)
            size = float(B.size(box))
            if not SMALLEST <= size <= largest or B.area(box) < 0.5 * B.area(whole) or (box[2:] - box[:2]).min() < 1.0:
                continue
            if self.hidden(box):
                continue
            shared = B.intersection(box[None], self.boxes)[0] / np.minimum(B.area(box), B.area(self.boxes)).clip(
                min=1e-9
            )
            if (shared > overlap).any() or (B.intersection(box[None], keep_out)[0] > 0).any():
                continue
            self.things.append(thing)
            self.drawings.append(drawing)
            self.boxes = np.concatenate([self.boxes, box[None]])
            left -= 1


def _sample_camera(rng: np.random.Generator, main: int, height: int, width: int) -> Camera:
    """The flying height that gives the main class a size drawn from the distribution above."""
    tilt = (
        float(rng.uniform(0.35, 0.85))
        if main == PERSON
        else float(rng.choice([rng.uniform(0.02, 0.2), rng.uniform(0.2, 0.85)]))
    )
    _, median, spread = _FAR_AND_NEAR[int(rng.random() > _FAR_AND_NEAR[0][0])]
    size = float(np.exp(rng.normal(np.log(median * (1.0 if main == PERSON else 1.25)), spread)))
    size = min(max(size, 3.0), 60.0 if main == PERSON else 120.0)
    focal = float(rng.uniform(1.2, 2.0)) * max(height, width)
    return Camera(height, width, size / usual_size(main, tilt), tilt, focal)


def _crowd_size(rng: np.random.Generator, height: int, width: int, density: float) -> int:
    """How many objects: alone, some, or a crowd; grows with the image's area."""
    mode = rng.choice(3, p=[0.25, 0.5, 0.25])
    count = (rng.uniform(1, 4), rng.uniform(5, 30), np.exp(rng.uniform(np.log(30), np.log(110))))[mode]
    return max(1, int(count * density * height * width / _REFERENCE_AREA))


_MAIN_SHARES = {"sea": (0.55, 0.45, 0.0), "field": (0.6, 0.0, 0.4), "road": (0.4, 0.0, 0.6)}


def plan_scene(rng: np.random.Generator, *, height: int, width: int, kind: str, density: float = 1.0) -> ScenePlan:
    """Plan a scene of `kind`: camera, light, terrain, things with their boxes, ignore regions."""
    main = int(rng.choice(3, p=_MAIN_SHARES[kind]))
    camera = _sample_camera(rng, main, height, width)
    light = sample_light(rng)
    area = camera.footprint()
    if kind == "sea":
        shore = rng.random() < (0.75 if main == PERSON else 0.2)
        terrain: Terrain = sample_sea(rng, area, shore=shore)
    else:
        terrain = sample_farmland(rng, area) if kind == "field" else sample_streets(rng, area, light)
    placer = _Placer(camera, light, terrain)
    crowd = _place_crowd(rng, placer, terrain) if rng.random() < 0.16 else np.zeros((0, 4))
    members = len(placer.things)
    count = _crowd_size(rng, height, width, density)
    dense = 0.5 if count > 40 else 0.25
    largest = 0.45 * min(height, width)
    order = [main] + [k for k in (PERSON, BOAT, CAR) if k != main]
    for label in order:
        wanted = count if label == main else int(rng.integers(0, max(2, count // 3)))
        spots = _spots(rng, terrain, label, max(wanted, 4), area)
        # people may stand close together; cars and boats keep a gap
        placer.place(
            rng, label, spots, wanted, overlap=dense if label == PERSON else 0.06, largest=largest, keep_out=crowd
        )
    boxes, labels = placer.boxes[members:], np.array([t.label for t in placer.things[members:]], np.int64)
    smears: list[tuple[int, int, int, int]] = []
    if rng.random() < 0.12 and len(boxes):
        smears, hidden = _smear(rng, boxes, height, width)
        boxes, labels = boxes[~hidden], labels[~hidden]
    regions = np.concatenate([crowd, np.array(smears, np.float64).reshape(-1, 4)])
    far_first = np.argsort([-t.y for t in placer.things], kind="stable")
    moving = [t for t in placer.things if t.label == BOAT and t.pose != "sail" and rng.random() < 0.45]
    return ScenePlan(
        kind=kind,
        camera=camera,
        light=light,
        sensor=sample_sensor(rng),
        terrain=terrain,
        drawings=tuple(placer.drawings[i] for i in far_first),
        wakes=tuple(moving),
        boxes=np.concatenate([boxes, regions]),
        labels=np.concatenate([labels, np.full(len(regions), -1)]),
        ignore=np.arange(len(boxes) + len(regions)) >= len(boxes),
        smears=tuple(smears),
    )


def _place_crowd(rng: np.random.Generator, placer: _Placer, terrain: Terrain) -> np.ndarray:
    """A dense crowd too small to tell apart: its people are drawn, and one ignore region `(1, 4)` covers them."""
    camera = placer.camera
    at = camera.unproject(np.array([[rng.uniform(0.1, 0.9) * camera.width, rng.uniform(0.05, 0.5) * camera.height]]))[0]
    local = camera.focal / float(camera.depth(at[1:2])[0])
    size = usual_size(PERSON, camera.tilt) * local
    if not 1.2 <= size <= 9.0:
        return np.zeros((0, 4))
    count = int(rng.integers(35, 110))
    spread = 0.42 * np.sqrt(count)  # about one person per square metre in the middle
    around = (at[0] - 2 * spread, at[1] - 2 * spread, at[0] + 2 * spread, at[1] + 2 * spread)
    spots = _spots(rng, terrain, PERSON, count * 2, around)
    near = np.linalg.norm((spots.xy - at) / (1.6, 1.0), axis=1) < 2 * spread if len(spots.xy) else np.zeros(0, bool)
    chosen = np.flatnonzero(near)[:count]
    if len(chosen) < 20:
        return np.zeros((0, 4))
    drawn = []
    for i in chosen:
        (x, y), heading = spots.xy[i], spots.heading[i]
        thing = Thing(
            PERSON,
            float(x),
            float(y),
            float(heading),
            spots.poses[i],
            float(rng.uniform(0.85, 1.15)),
            sample_colours(rng, PERSON),
        )
        drawing = draw_plan(thing, camera, placer.light)
        if placer.hidden(drawing.box):
            continue
        placer.things.append(thing)
        placer.drawings.append(drawing)
        drawn.append(drawing.box)
    if not drawn:
        return np.zeros((0, 4))
    extent = np.array(drawn)
    placer.boxes = np.concatenate([placer.boxes, extent])
    region = np.concatenate([extent[:, :2].min(0) - 1, extent[:, 2:].max(0) + 1])
    return B.clip(region, camera.height, camera.width)[None]


def _smear(
    rng: np.random.Generator, boxes: np.ndarray, height: int, width: int
) -> tuple[list[tuple[int, int, int, int]], np.ndarray]:
    """A blurred patch over one object and its neighbours, and which boxes it hides (touches), `(N,)` bool."""
    box = boxes[int(rng.integers(len(boxes)))]
    pad = rng.uniform(0.5, 2.0) * B.size(box) + 4
    x1, y1, x2, y2 = (int(v) for v in B.clip(np.round(box + pad * np.array([-1, -1, 1, 1])), height, width))
    hidden = np.ones(len(boxes), bool)
    for _ in range(8):  # grow until no box is half in the patch
        patch = np.array([[x1, y1, x2, y2]], np.float64)
        hidden = B.intersection(patch, boxes)[0] > 0
        grown = np.concatenate([np.floor(boxes[hidden, :2].min(0)), np.ceil(boxes[hidden, 2:].max(0))])
        union = (min(x1, int(grown[0])), min(y1, int(grown[1])), max(x2, int(grown[2])), max(y2, int(grown[3])))
        if union == (x1, y1, x2, y2):
            break
        x1, y1, x2, y2 = union
    hidden = B.intersection(np.array([[x1, y1, x2, y2]], np.float64), boxes)[0] > 0
    if (x2 - x1) * (y2 - y1) > 0.2 * height * width:
        return [], np.zeros(len(boxes), bool)
    return [(x1, y1, x2, y2)], hidden
