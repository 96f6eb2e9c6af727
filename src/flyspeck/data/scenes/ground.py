"""The ground seen straight from above: a map in metres that the terrains paint and the camera then looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from flyspeck.data.scenes.camera import Camera
from flyspeck.data.scenes.noise import Field, blend, fractal, smoothstep


@dataclass(frozen=True)
class Ground:
    """A raster of the ground: rows go towards the camera, columns to the right."""

    height: int
    width: int
    scale: float
    """Pixels per metre."""
    origin: tuple[float, float]
    """(X, Y) in metres of the top-left corner."""

    @property
    def x(self) -> Field:
        """X of the pixel centres in metres, `(1, W)`."""
        return (self.origin[0] + (np.arange(self.width, dtype=np.float32) + 0.5) / self.scale)[None].astype(np.float32)

    @property
    def y(self) -> Field:
        """Y of the pixel centres in metres, `(H, 1)`."""
        return (self.origin[1] - (np.arange(self.height, dtype=np.float32) + 0.5) / self.scale)[:, None].astype(
            np.float32
        )

    def rotated(self, angle: float) -> tuple[Field, Field]:
        """Coordinates `(H, W)` along and across the direction `angle` (radians from +X), in metres."""
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return self.x * c + self.y * s, self.y * c - self.x * s

    def rows_columns(self, points: np.ndarray) -> np.ndarray:
        """Ground points `(N, 2)` in metres to (row, column), float."""
        return np.stack([(self.origin[1] - points[:, 1]) * self.scale, (points[:, 0] - self.origin[0]) * self.scale], 1)

    def noise(self, rng: np.random.Generator, cell: float, finest: float = 0.0, gain: float = 0.55) -> Field:
        """Fractal noise whose coarsest cell is `cell` metres and whose finest is `finest` metres (0: one pixel)."""
        coarsest = min(max(cell * self.scale, 1.0), 2.0 * max(self.height, self.width))
        return fractal(rng, self.height, self.width, coarsest=coarsest, finest=max(finest * self.scale, 1.0), gain=gain)


@dataclass(frozen=True)
class Light:
    """The sun."""

    azimuth: float
    """Direction in which shadows fall, radians from +X."""
    reach: float
    """Length of a shadow per height (the cotangent of the sun's elevation)."""
    depth: float
    """Share of light that a shadow takes, [0, 1)."""

    @property
    def offset(self) -> np.ndarray:
        """Ground displacement (X, Y) of the shadow of a point one metre up."""
        return self.reach * np.array([np.cos(self.azimuth), np.sin(self.azimuth)])


def sample_light(rng: np.random.Generator) -> Light:
    """From a high summer sun to an overcast sky."""
    overcast = rng.random() < 0.25
    depth = rng.uniform(0.05, 0.15) if overcast else rng.uniform(0.3, 0.6)
    return Light(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.35, 1.7)), float(depth))


Colour = tuple[int, int, int]
Solid = tuple[np.ndarray, Colour]
"""A convex body: the points (N, 3) whose hull it is, in metres, and its colour."""


class Terrain(ABC):
    """One kind of ground: knows where its parts lie, and can paint them."""

    @abstractmethod
    def plants(self) -> Trees:
        """What grows on it and hides what is behind."""

    @abstractmethod
    def buildings(self) -> list[list[Solid]]:
        """The parts of each house, in drawing order."""

    @abstractmethod
    def paint(self, ground: Ground, light: Light, rng: np.random.Generator) -> np.ndarray:
        """The map, `(3, H, W)` float32 grey levels in [0, 255]."""


@dataclass(frozen=True)
class Trees:
    """Crowns scattered over the ground: (N, 3) rows of X, Y and radius in metres; a crown's middle is 1.3 radii up."""

    crowns: np.ndarray
    hue: tuple[float, float, float]

    def discs(self, camera: Camera) -> np.ndarray:
        """The crowns in the image: (N, 3) rows of x, y and radius in pixels."""
        x, y, radius = self.crowns.T
        height = 1.3 * radius
        centre = camera.project(np.stack([x, y, height], 1))
        return np.concatenate([centre, (radius * camera.focal / camera.depth(y, height))[:, None]], 1)

    def paint_shadows(self, canvas: np.ndarray, ground: Ground, light: Light) -> None:
        """Darken the map `(3, H, W)` where the crowns' shadows fall, in place."""
        for x, y, radius in self.crowns:
            centre = np.array([[x, y]]) + light.offset * radius * 1.3
            row, column = ground.rows_columns(centre)[0]
            window = _crown(row, column, radius * ground.scale, (ground.height, ground.width), x + y)
            if window is not None:
                rows, columns, alpha, _, _, _ = window
                canvas[:, rows, columns] *= 1 - np.float32(light.depth) * alpha

    def paint_crowns(self, image: np.ndarray, camera: Camera, light: Light) -> None:
        """Paint lumpy domes lit from the sun's side onto the image `(3, H, W)`, far ones first, in place."""
        discs = self.discs(camera)
        for index in np.argsort(discs[:, 1], kind="stable"):
            (column, row, radius), (x, y, _) = discs[index], self.crowns[index]
            window = _crown(row, column, radius, image.shape[1:], x * 3 - y)
            if window is None:
                continue
            rows, columns, alpha, dx, dy, lumps = window
            # the sun stands opposite to the shadow; image rows grow downwards while Y grows away
            lit = -(dx * np.float32(np.cos(light.azimuth)) - dy * np.float32(np.sin(light.azimuth))) - 0.25 * dy
            shade = 0.86 + lit * np.float32(0.25 + 0.4 * light.depth) + 0.2 * lumps
            shade = np.clip(shade, 0.25, 1.5) * np.float32(0.85 + 0.3 * (abs(x * 7.31 + y * 3.17) % 1.0))
            blend(image[:, rows, columns], np.asarray(self.hue, np.float32)[:, None, None] * shade, alpha)


# One lumpy texture serves all crowns; a window picked by the crown's place keeps them unlike.
_LUMPS = fractal(np.random.default_rng(7), 512, 512, coarsest=16, finest=2, gain=0.8)


def _crown(
    row: float, column: float, radius: float, shape: tuple[int, ...], pick: float
) -> tuple[slice, slice, Field, Field, Field, Field] | None:
    """The window of a crown: rows, columns, its alpha, the offsets from its middle in radii, and its lumps."""
    top, bottom = max(int(row - 1.4 * radius), 0), min(int(row + 1.4 * radius) + 2, shape[0])
    left, right = max(int(column - 1.4 * radius), 0), min(int(column + 1.4 * radius) + 2, shape[1])
    if top >= bottom or left >= right:
        return None
    dy = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - np.float32(row)) / np.float32(radius)
    dx = (np.arange(left, right, dtype=np.float32)[None] + 0.5 - np.float32(column)) / np.float32(radius)
    # the texture is stretched with the crown, so that a tree has leaves of one size whatever the flying height
    zoom = 40.0
    rows = ((dy + 4 + abs(pick) % 6) * zoom).astype(int) % 512
    columns = ((dx + 4 + abs(pick) * 3 % 6) * zoom).astype(int) % 512
    lumps = _LUMPS[rows, columns]
    alpha = smoothstep(1.06, 0.84, np.sqrt(dx * dx + dy * dy) + 0.13 * lumps)
    return slice(top, bottom), slice(left, right), alpha, dx, dy, lumps


NO_TREES = Trees(np.zeros((0, 3)), (0.0, 0.0, 0.0))


def scatter_trees(
    rng: np.random.Generator,
    area: tuple[float, float, float, float],
    *,
    count: int,
    radius: tuple[float, float],
    clumped: float,
) -> Trees:
    """`count` crowns within `area` (x1, y1, x2, y2), a share `clumped` of them around a few common places."""
    x1, y1, x2, y2 = area
    points = np.stack([rng.uniform(x1, x2, count), rng.uniform(y1, y2, count)], 1)
    if count:
        places = points[rng.integers(0, count, max(1, count // 14))]
        follow = rng.random(count) < clumped
        near = places[rng.integers(0, len(places), count)] + rng.normal(0, 3.2 * radius[1], (count, 2))
        points[follow] = near[follow]
    radii = rng.uniform(*radius, count)
    hue = tuple((np.array([62.0, 88.0, 48.0]) * rng.uniform(0.6, 1.15) + rng.normal(0, 5, 3)).tolist())
    return Trees(np.concatenate([points, radii[:, None]], 1), hue)  # type: ignore[arg-type]
