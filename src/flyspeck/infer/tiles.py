"""Where the tiles of a picture lie, and which boxes a tile's border has cut.

Along each side the tiles are as few as the overlap allows and evenly spread, so neighbours share *at least* the overlap
asked for. It follows that an object whose sides fit into the overlap lies whole in some tile: the seam rule of
`flyspeck.infer.merge` rests on that.

Rectangles are integer (x1, y1, x2, y2) pixels of the whole picture, half-open; sizes are (height, width).
"""

from __future__ import annotations

import numpy as np

from flyspeck.errors import UserError


def starts(length: int, tile: int, overlap: int) -> np.ndarray:
    """First pixels `(n,)` int64 of the tiles along a side of `length` pixels, ascending.

    n = ceil((length - overlap) / (tile - overlap)), evenly spread with the last tile flush with the end; a side that is
    not longer than a tile gives one tile.
    """
    if length <= tile:
        return np.zeros(1, np.int64)
    count = -(-(length - overlap) // (tile - overlap))
    # Integer arithmetic: floor keeps every gap at most ceil(span / (count - 1)) <= tile - overlap.
    return np.arange(count, dtype=np.int64) * (length - tile) // (count - 1)


def grid(size: tuple[int, int], tile: tuple[int, int], overlap: int | tuple[int, int]) -> np.ndarray:
    """The tiles `(T, 4)` int64 that cover a picture, row by row.

    `size`, `tile` and, when not a single number, `overlap` are (height, width) in pixels. A tile is never larger than the
    picture; all tiles of one picture have the same size. Raises `UserError` when the overlap leaves no room to advance.
    """
    overlap_yx = (overlap, overlap) if isinstance(overlap, int) else overlap
    check(tile, overlap_yx)
    height, width = min(tile[0], size[0]), min(tile[1], size[1])
    y, x = starts(size[0], tile[0], overlap_yx[0]), starts(size[1], tile[1], overlap_yx[1])
    corners = np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)
    return np.concatenate([corners, corners + (width, height)], axis=1)


def check(tile: tuple[int, int], overlap: tuple[int, int]) -> None:
    """Raise `UserError` for a tile or an overlap, both (height, width), that cannot cover a picture."""
    for name, side, shared in (("height", tile[0], overlap[0]), ("width", tile[1], overlap[1])):
        if side < 1:
            raise UserError(f"a tile's {name} of {side} px", where="tile", fix="give at least 1 px")
        if not 0 <= shared < side:
            raise UserError(
                f"an overlap of {shared} px does not fit a tile's {name} of {side} px",
                where="overlap",
                fix=f"choose 0 to {side - 1}, at least the size of the largest object to find",
            )


def is_cut(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int], tolerance: float = 1.0) -> np.ndarray:
    """Which boxes touch a border of their tile that is not the picture's: `(N,)` bool.

    `boxes` (N, 4) and `tiles` (N, 4) or (4,) in the frame of the picture of `size` (H, W). A detector's box of a cut object
    ends at the border give or take its own error, hence the `tolerance` in pixels.
    """
    tiles = np.broadcast_to(tiles, boxes.shape)
    low = (boxes[:, :2] <= tiles[:, :2] + tolerance) & (tiles[:, :2] > 0)
    high = (boxes[:, 2:] >= tiles[:, 2:] - tolerance) & (tiles[:, 2:] < np.array([size[1], size[0]]))
    return (low | high).any(axis=1)
