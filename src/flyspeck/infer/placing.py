"""What a job asks of the places of its images: the coordinate system of results, the region to look at, metres a pixel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.region import Region
from flyspeck.infer.resolution import ResolutionRule


@dataclass(frozen=True)
class Placed:
    """One image's place."""

    geo: GeoReference | None = None
    """Of the image, with the system that results are written in."""
    region: Region | None = None
    factor: float = 1.0
    """How many times as large the image is to be seen, so that its ground resolution is the training's."""
    said: str = ""
    """Of its ground resolution."""

    def meets(self, tiles: np.ndarray) -> np.ndarray:
        """`(T,)` bool: the tiles `(T, 4)`, in pixels, that are to be run."""
        return np.ones(len(tiles), bool) if self.region is None else self.region.meets(tiles, self.geo)

    def holds(self, boxes: np.ndarray) -> np.ndarray:
        """`(N,)` bool: the boxes `(N, 4)`, in pixels, that are to be kept."""
        return np.ones(len(boxes), bool) if self.region is None else self.region.holds(boxes, self.geo)


@dataclass(frozen=True)
class Placing:
    """For every image of a job; None asks for nothing."""

    crs: str | None = None
    """The coordinate system of map results, as `flyspeck.projection.known_crs` writes it."""
    region: Region | None = None
    resolution: ResolutionRule = field(default_factory=ResolutionRule)

    def of(self, geo: GeoReference | None, size: tuple[int, int], *, name: str) -> Placed:
        """The place of the image `name` of `size` (H, W). Raises UserError where it lacks what is asked for."""
        if self.region is not None:
            lack = self.region.needs(geo)
            if lack:
                fix = 'give a georeferenced image, or polygons in pixels (\'"frame": "pixels"\')'
                raise UserError(f"{lack} (--roi {self.region.name})", where=name, fix=fix)
        factor, said = self.resolution.of(geo, size, name=name)
        if self.crs is None:
            return Placed(geo, self.region, factor, said)
        if geo is None or geo.crs is None:
            lack = "has no georeference" if geo is None else "does not say its coordinate system"
            raise UserError(f"{lack}, so that --crs cannot be followed", where=name, fix="leave out --crs")
        return Placed(replace(geo, asked=self.crs), self.region, factor, said)
