"""Where the tiles of an image lie, and which boxes a tile's border has cut.

Along each side the tiles are as few as the overlap allows and evenly spread, so neighbours share *at least* the overlap
asked for. It follows that an object whose sides fit into the overlap lies whole in some tile: the seam rule of
`flyspeck.infer.merge` rests on that.

Rectangles are integer (x1, y1, x2, y2) pixels of the whole image, half-open; sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flyspeck.data.enlarge import Enlarge, described_enlargement
from flyspeck.data.tiling import corners
from flyspeck.errors import UserError

MOST_TILES = 1_000_000
"""Of one image: what is kept of each tile takes about a kilobyte."""


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


def planned(
    size: tuple[int, int],
    enlarge: Enlarge,
    tile: tuple[int, int] | None,
    overlap: tuple[int, int],
    *,
    most_pixels: int | None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """The tiles `(T, 4)` of an image of `size` (H, W), in its own pixels, and the (h, w) at which the model sees each.

    `tile` and `overlap` are in pixels that the model sees; without a tile, the image is one. When shrinking, tiles start on
    pixels that the model sees: at a scale of 1/k all tiles then sample the image in the same phase, and an object of two seen
    pixels looks the same in both of its tiles. Raises UserError for more tiles than are planned at once, and for an image of more
    than `most_pixels` that is to be seen whole.
    """
    seen, scale = enlarge.size(size), enlarge.scale(size)
    _refuse(size, size if enlarge.squeeze is not None else seen, seen, tile, overlap, most_pixels)
    if tile is None:
        return np.array([[0, 0, size[1], size[0]]], np.int64), seen
    if enlarge.squeeze is not None:
        return grid(size, tile, overlap), enlarge.squeeze
    if scale <= 1:
        seen_frames = grid(seen, tile, overlap)
        limit = np.array([size[1], size[0]] * 2)
        frames = np.minimum(np.round(seen_frames / scale), limit).astype(np.int64)
        last = seen_frames[:, 2:] == (seen[1], seen[0])  # what rounding left over belongs to the last tiles
        frames[:, 2:] = np.where(last, limit[:2], frames[:, 2:])
        return frames, (int(seen_frames[0, 3]), int(seen_frames[0, 2]))
    side = [max(1, int(t / scale)) for t in tile]
    # Rounded up, so that what fits into the overlap at the model's scale still does.
    shared = [min(s - 1, int(np.ceil(o / scale))) for o, s in zip(overlap, side, strict=True)]
    frames = grid(size, (side[0], side[1]), (shared[0], shared[1]))
    return frames, (round(frames[0, 3] * scale), round(frames[0, 2] * scale))


def _refuse(
    size: tuple[int, int],
    whole: tuple[int, int],
    seen: tuple[int, int],
    tile: tuple[int, int] | None,
    overlap: tuple[int, int],
    most: int | None,
) -> None:
    """Raises UserError for an image of more tiles than are planned at once, or too large to be seen whole."""
    if tile is None:
        area = max(size[0] * size[1], seen[0] * seen[1])
        if most is not None and area > most:
            raise UserError(
                f"{area / 1e6:,.0f} megapixels are over the limit of {most / 1e6:g} for one piece",
                fix="give a --tile, or raise --max-megapixels",
            )
        return
    sides = zip(whole, tile, overlap, strict=True)
    count = math.prod(max(1, -(-(side - shared) // max(1, t - shared))) for side, t, shared in sides)
    if count > MOST_TILES:
        raise UserError(
            f"{size[1]}x{size[0]} pixels would be {count:,} tiles, over the limit of {MOST_TILES:,} for one image",
            fix="give a larger --tile or less --overlap, a --scale below 1, or parts of the image",
        )
