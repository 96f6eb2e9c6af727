"""What a job asks of the places of its images: the coordinate system of its results, and the region to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.region import Region


@dataclass(frozen=True)
class Placed:
    """One image's place."""

    geo: GeoReference | None = None
    """Of the image, with the system that results are written in."""
    region: Region | None = None

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

    def of(self, geo: GeoReference | None, *, name: str) -> Placed:
        """The place of the image `name`. Raises UserError where it has none that what is asked for could be told of."""
        if self.region is not None:
            lack = self.region.needs(geo)
            if lack:
                fix = 'give a georeferenced image, or polygons in pixels (\'"frame": "pixels"\')'
                raise UserError(f"{lack} (--roi {self.region.name})", where=name, fix=fix)
        if self.crs is None:
            return Placed(geo, self.region)
        if geo is None or geo.crs is None:
            lack = "has no georeference" if geo is None else "does not say its coordinate system"
            raise UserError(f"{lack}, so that --crs cannot be followed", where=name, fix="leave out --crs")
        return Placed(replace(geo, asked=self.crs), self.region)
