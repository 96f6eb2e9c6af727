"""Field: parcels with crop rows, meadows and bare soil, hedges, trees, and a track between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck.data.scenes.ground import Ground, Light, Solid, Terrain, Trees, scatter_trees
from flyspeck.data.scenes.noise import blend, smoothstep

# colour of the ground and of the crop that stands on it in rows
_PARCELS = (
    ((92, 78, 58), (86, 116, 56)),
    ((122, 100, 74), (104, 126, 62)),
    ((138, 128, 78), (172, 160, 96)),
    ((70, 96, 46), (92, 124, 58)),
    ((110, 88, 66), (98, 78, 58)),
    ((98, 118, 64), (112, 134, 74)),
    ((182, 162, 106), (196, 178, 120)),
)


@dataclass(frozen=True)
class Farmland(Terrain):
    """Parcels in a rotated grid; every length in metres."""

    angle: float
    """Direction of the grid, radians."""
    edges_u: np.ndarray
    edges_v: np.ndarray
    """Ascending parcel borders along and across the grid's direction."""
    soil: np.ndarray
    crop: np.ndarray
    """(parcels, 3) colours."""
    row_spacing: np.ndarray
    """(parcels,) metres between rows."""
    row_turn: np.ndarray
    """(parcels,) direction of the rows relative to the grid, radians."""
    row_strength: np.ndarray
    """(parcels,) 0 for a meadow, 1 for open rows."""
    track_at: float
    """Across-coordinate of the track's middle."""
    track_width: float
    trees: Trees

    def track_points(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Ground points (N, 2) at distances `along` the track and `across` its middle."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        v = self.track_at + across
        return np.stack([along * c - v * s, along * s + v * c], 1)

    def plants(self) -> Trees:
        """Trees and bushes."""
        return self.trees

    def buildings(self) -> list[list[Solid]]:
        """No house stands in a field."""
        return []

    def paint(self, ground: Ground, light: Light, rng: np.random.Generator) -> np.ndarray:
        """Parcels, rows, tractor lines, hedges, the track, trees."""
        u, v = ground.rotated(self.angle)
        wander = ground.noise(rng, 14.0, 1.0)
        iu = np.searchsorted(self.edges_u.astype(np.float32), u + 0.25 * wander)
        iv = np.searchsorted(self.edges_v.astype(np.float32), v + 0.25 * wander)
        parcel = iu * (len(self.edges_v) + 1) + iv
        turn = self.row_turn[parcel]
        across = v * np.cos(turn).astype(np.float32) - u * np.sin(turn).astype(np.float32)
        spacing = self.row_spacing[parcel]
        # rows fade into an even tone where they are finer than the raster can show
        visible = np.clip(self.row_spacing * ground.scale / 3.0 - 0.7, 0, 1).astype(np.float32)
        texture = ground.noise(rng, 6.0, gain=0.8)
        rows = np.sin((across + 0.05 * texture) * (2 * np.pi / spacing)) * (self.row_strength * visible)[parcel]
        growth = ground.noise(rng, 45.0, 3.0)
        share = np.clip(0.5 + 0.5 * rows + 0.16 * growth + 0.16 * texture, 0, 1).astype(np.float32)
        canvas = np.empty((3, *share.shape), np.float32)
        for channel, (soil, crop) in enumerate(zip(self.soil.T, self.crop.T, strict=True)):
            np.multiply((crop - soil).astype(np.float32)[parcel], share, out=canvas[channel])
            canvas[channel] += soil.astype(np.float32)[parcel]
        tram = np.abs(np.mod(across, 18.0) - 9.0)
        lines = (smoothstep(0.28, 0.1, np.abs(tram - 0.9)) * (self.row_strength * 0.55)[parcel]).astype(np.float32)
        blend(canvas, (112, 96, 74), lines * np.float32(min(1.0, ground.scale / 3)))
        self._paint_borders(canvas, u, v, texture)
        self._paint_track(canvas, v, texture, wander)
        canvas *= 1 + np.float32(0.05) * texture
        self.trees.paint_shadows(canvas, ground, light)
        return canvas

    def _paint_borders(self, canvas: np.ndarray, u: np.ndarray, v: np.ndarray, texture: np.ndarray) -> None:
        """Grass margins between parcels."""
        for coordinate, edges in ((u, self.edges_u), (v, self.edges_v)):
            nearest = np.full(coordinate.shape, np.inf, np.float32)
            for edge in edges:
                np.minimum(nearest, np.abs(coordinate - np.float32(edge)), out=nearest)
            if len(edges):
                blend(canvas, (84, 100, 54), smoothstep(1.5, 0.5, nearest + 0.35 * texture) * np.float32(0.8))

    def _paint_track(self, canvas: np.ndarray, v: np.ndarray, texture: np.ndarray, wander: np.ndarray) -> None:
        """A dirt track: two pale ruts and a grassy middle."""
        offset = np.abs(v - np.float32(self.track_at) + 0.3 * wander)
        half = self.track_width / 2
        blend(canvas, (152, 132, 102), smoothstep(half, half - 0.6, offset + 0.2 * texture) * 0.9)
        blend(canvas, (98, 104, 62), smoothstep(0.55, 0.2, offset + 0.12 * texture) * 0.6)


def sample_farmland(rng: np.random.Generator, area: tuple[float, float, float, float]) -> Farmland:
    """Farmland over the ground rectangle `area`."""
    x1, y1, x2, y2 = area
    reach = float(np.hypot(x2 - x1, y2 - y1)) / 2 * 1.3
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    angle = float(rng.uniform(0, np.pi))
    c, s = np.cos(angle), np.sin(angle)
    u0, v0 = float(middle @ [c, s]), float(middle @ [-s, c])
    edges_u = u0 - reach + np.cumsum(rng.uniform(60, 220, 60))
    edges_v = v0 - reach + np.cumsum(rng.uniform(28, 110, 80))
    edges_u, edges_v = edges_u[edges_u < u0 + reach], edges_v[edges_v < v0 + reach]
    parcels = (len(edges_u) + 1) * (len(edges_v) + 1)
    kinds = rng.integers(0, len(_PARCELS), parcels)
    tint = rng.uniform(0.82, 1.12, (parcels, 1))
    soil = np.array([_PARCELS[k][0] for k in kinds], np.float64) * tint
    crop = np.array([_PARCELS[k][1] for k in kinds], np.float64) * tint
    if len(edges_v):
        track_at = float(edges_v[np.argmin(np.abs(edges_v - v0))])
    else:
        track_at = v0 + float(rng.uniform(-0.3, 0.3) * reach)
    density = rng.choice([0.0003, 0.001, 0.0026], p=[0.4, 0.4, 0.2])
    count = int(min(120, rng.poisson(density * (x2 - x1) * (y2 - y1))))
    return Farmland(
        angle=angle,
        edges_u=edges_u,
        edges_v=edges_v,
        soil=soil,
        crop=crop,
        row_spacing=np.exp(rng.uniform(np.log(0.6), np.log(3.2), parcels)).astype(np.float32),
        row_turn=(rng.integers(0, 2, parcels) * (np.pi / 2)).astype(np.float32),
        row_strength=rng.choice([0.0, 0.25, 0.7, 1.0], parcels, p=[0.3, 0.25, 0.25, 0.2]).astype(np.float32),
        track_at=track_at,
        track_width=float(rng.uniform(3.0, 5.0)),
        trees=scatter_trees(rng, area, count=count, radius=(1.2, 4.2), clumped=0.75),
    )
