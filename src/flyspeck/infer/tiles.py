"""Where the tiles of an image lie, and which boxes a tile's border has cut.

Along each side the tiles are as few as the overlap allows and evenly spread, so neighbours share *at least* the overlap
asked for. It follows that an object whose sides fit into the overlap lies whole in some tile: the seam rule of
`flyspeck.infer.merge` rests on that.

Rectangles are integer (x1, y1, x2, y2) pixels of the whole image, half-open; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flyspeck.data.enlarge import described_enlargement
from flyspeck.data.tiling import corners
from flyspeck.errors import UserError


def grid(size: tuple[int, int], tile: tuple[int, int], overlap: int | tuple[int, int]) -> np.ndarray:
    """The tiles `(T, 4)` int64 that cover an image, row by row (`flyspeck.data.tiling.corners`, rule `flyspeck`).

    `size`, `tile` and, when not a single number, `overlap` are (height, width) in pixels. A tile is never larger than the
    image; all tiles of one image have the same size. Raises `UserError` when the overlap leaves no room to advance.
    """
    return corners("flyspeck", size, tile, overlap)


def is_cut(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int], tolerance: float = 1.0) -> np.ndarray:
    """Which boxes touch a border of their tile that is not the image's: `(N,)` bool.

    `boxes` (N, 4) and `tiles` (N, 4) or (4,) in the frame of the image of `size` (H, W). A detector's box of a cut object
    ends at the border give or take its own error, hence the `tolerance` in pixels.
    """
    tiles = np.broadcast_to(tiles, boxes.shape)
    low = (boxes[:, :2] <= tiles[:, :2] + tolerance) & (tiles[:, :2] > 0)
    high = (boxes[:, 2:] >= tiles[:, 2:] - tolerance) & (tiles[:, 2:] < np.array([size[1], size[0]]))
    return np.any(low | high, axis=1)


def refuse_larger(tile: tuple[int, int], largest: tuple[int, int] | None) -> None:
    """Raises UserError for a tile (H, W) that a model of one size, `largest`, cannot take; None takes all."""
    if largest is not None and (tile[0] > largest[0] or tile[1] > largest[1]):
        sides = "x".join(map(str, largest))
        raise UserError(
            f"tiles of {tile[0]}x{tile[1]} for a model that takes {sides}", where="tile", fix=f"give {sides} or less"
        )


def default_tiles(
    tile: tuple[int, int] | None, overlap: int | None, description: Mapping[str, Any], *, whole: bool = False
) -> tuple[tuple[int, int] | None, int]:
    """The tile (height, width) and overlap in pixels: what was asked for, else what the training saw.

    A model that squeezes its images saw whole ones; its tiles are in pixels of the image, and each is squeezed. An overlap that
    is not given holds the 99th percentile of the training objects' sides, where the weights say it; else 64 px.
    It is at most half a tile.
    """
    if whole or (tile is None and described_enlargement(description).squeeze is not None):
        if overlap is not None:
            raise UserError("an overlap without tiles", where="overlap", fix="leave it out, or give a tile")
        return None, 0
    if tile is None:
        if "training_size" not in description:
            raise UserError(
                "the weights do not say which size they were trained at",
                where="tile",
                fix="give a tile (height, width)",
            )
        height, width = description["training_size"]
        tile = (int(height), int(width))
    if overlap is None:
        overlap = min(int(description.get("object_side_99", 64)) + 4, min(tile) // 2)
    return tile, overlap
