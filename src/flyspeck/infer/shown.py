"""How a model is shown an image where nobody says it: as was measured to be best, where its file says so, else as it was trained.

`flyspeck auto` measures, with the trained detector, whether images go whole or in tiles, and at which scale, and notes the best
in the weights (`Showing`); an exported file takes the note over. So `flyspeck predict --model` needs no option to show images
as they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flyspeck.data.enlarge import Enlarge, described_enlargement
from flyspeck.errors import UserError
from flyspeck.infer.tiles import default_tiles

KEY = "predict"
"""Of the entry in what a model's file says of itself."""
_STEP = 32
"""Sides of tiles for whole images are multiples of it: what a network pads to anyway."""


@dataclass(frozen=True)
class Showing:
    """Tiles and scale; whole images are tiles that the images fit into, so that larger ones than were measured stay bounded."""

    tile: tuple[int, int]
    """(height, width) in pixels that the network sees."""
    overlap: int
    """Of neighbouring tiles, in the same pixels."""
    scale: float
    """Pixels that the network sees for one of the file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the entry `KEY` of a description."""
        return {"tile": list(self.tile), "overlap": self.overlap, "scale": self.scale}

    @staticmethod
    def of(description: Mapping[str, Any]) -> Showing | None:
        """That of a model, from what its file says of itself; None where nothing was measured."""
        return None if description.get(KEY) is None else Showing.read(description[KEY])

    @staticmethod
    def read(content: Mapping[str, Any]) -> Showing:
        """What `to_dict` gave. Raises UserError for what cannot be."""
        try:
            height, width = (int(side) for side in content["tile"])
            found = Showing((height, width), int(content["overlap"]), float(content["scale"]))
        except (KeyError, TypeError, ValueError):
            found = None
        if found is None or not (0 <= found.overlap < min(found.tile) and 0 < found.scale < 1e4):
            raise UserError(
                f"the model's file says in a way that cannot be how it shows images: {str(content)[:80]}",
                where=KEY,
                fix="copy or export it again",
            )
        return found

    @staticmethod
    def in_tiles(description: Mapping[str, Any], scale: float) -> Showing:
        """Tiles of the training's size at another scale; their overlap holds the objects as large as they are there."""
        tile, overlap = default_tiles(None, None, _at_scale(description, scale))
        assert tile is not None  # only squeezed images have none, and those have no scale
        return Showing(tile, overlap, scale)

    @staticmethod
    def whole(description: Mapping[str, Any], scale: float, largest: tuple[int, int]) -> Showing:
        """Images of up to `largest` (H, W) pixels of the file whole."""
        height, width = (_holding(side, scale) for side in largest)
        _, overlap = default_tiles((height, width), None, _at_scale(description, scale))
        return Showing((height, width), overlap, scale)

    def within(self, size: tuple[int, int], description: Mapping[str, Any]) -> Showing:
        """The same for a model that takes windows of `size` (H, W) at most."""
        tile = (min(self.tile[0], size[0]), min(self.tile[1], size[1]))
        _, overlap = default_tiles(tile, None, _at_scale(description, self.scale))
        return Showing(tile, min(self.overlap, overlap), self.scale)

    def batch(self, most: int, description: Mapping[str, Any]) -> int:
        """Of at most so many tiles in a pass, as many as have no more pixels than so many of the training's."""
        height, width = description.get("training_size", self.tile)
        return max(1, min(most, most * int(height) * int(width) // (self.tile[0] * self.tile[1])))


def _holding(side: int, scale: float) -> int:
    """The side of a tile, as the network sees it, into which `side` pixels of a file fit."""
    found = -(-max(1, round(side * scale)) // _STEP) * _STEP
    while int(found / scale) < side:  # as `tiles.planned` has it
        found += _STEP
    return found


def _at_scale(description: Mapping[str, Any], scale: float) -> Mapping[str, Any]:
    """The description as if the training's objects had been seen at that scale."""
    trained = described_enlargement(description)
    if "object_side_99" not in description or trained.squeeze is not None or trained.short_side is not None:
        return description
    return {**description, "object_side_99": description["object_side_99"] * scale / trained.factor}


def shown_enlargement(description: Mapping[str, Any], *, scale: float | None = None) -> Enlarge:
    """How large the network is to see images: by a given `scale`, else by the model's own `Showing`, else as in training.

    Raises UserError for a scale that is none, and as `data.enlarge.described_enlargement` does.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise UserError(f"a scale of {scale:g}", where="scale", fix="give a number above 0, such as 0.5")
    showing = Showing.of(description)
    if scale is None and showing is not None:
        return Enlarge(showing.scale)
    return described_enlargement(description, scale=scale)


def shown_batch(batch_size: int, tile: tuple[int, int] | None, description: Mapping[str, Any]) -> int:
    """Tiles in a pass: `batch_size`; fewer where the model's own tiles, for whole images, are larger than the training's."""
    showing = Showing.of(description)
    return batch_size if showing is None or tile != showing.tile else showing.batch(batch_size, description)


def shown_tiles(
    tile: tuple[int, int] | None, overlap: int | None, description: Mapping[str, Any], *, whole: bool = False
) -> tuple[tuple[int, int] | None, int]:
    """The tile (height, width) and overlap in pixels: what was asked for, else the model's own `Showing`, else as in training.

    Raises UserError as `tiles.default_tiles` does.
    """
    showing = Showing.of(description)
    if showing is None or whole:
        return default_tiles(tile, overlap, description, whole=whole)
    if tile is None:
        return showing.tile, showing.overlap if overlap is None else overlap
    return default_tiles(tile, overlap, _at_scale(description, showing.scale))
