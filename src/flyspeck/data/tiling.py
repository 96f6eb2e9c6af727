"""Tiles: where a big image is cut, and what becomes of its annotations there. NumPy only.

Sizes are (height, width) and overlaps (y, x) in pixels, corners x1, y1, x2, y2 as everywhere. Tiles are listed row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.policy import TINYBENCHMARK, CutPolicy, cut_boxes
from flyspeck.errors import UserError, nearest


def _even_starts(length: int, tile: int, overlap: int) -> tuple[np.ndarray, int]:
    """Fewest tiles that overlap by at least `overlap`, spread evenly."""
    tile = min(tile, length)
    overlap = min(overlap, tile - 1)
    count = _pieces(length, tile, overlap)
    return np.arange(count) * (length - tile) // max(1, count - 1), tile


def _tov_starts(length: int, tile: int, overlap: int) -> tuple[np.ndarray, int]:
    """TOV's tiles at run time: a start every `tile - overlap`, the last ones moved back inside."""
    starts = np.arange(0, max(1, length - overlap), tile - overlap)
    return np.where(starts > 0, np.minimum(length - tile, starts), 0), min(tile, length)


def _pieces(length: int, tile: int, overlap: int) -> int:
    """Fewest tiles of `tile` pixels that cover `length` with at least `overlap`."""
    return max(1, -(-(length - overlap) // (tile - overlap)))


def _benchmark_spans(length: int, tile: int, overlap: int, count: int, fixed_size: bool) -> np.ndarray:
    """TinyBenchmark's `SplitImage`: (count, 2) start and end; moved back inside (`use_fix_size`) or clipped."""
    starts = np.arange(count) * (tile - overlap)
    ends = starts + tile
    if fixed_size:
        starts = np.maximum(starts - np.maximum(ends - length, 0), 0)
        ends = starts + tile
    return np.stack([starts, np.minimum(ends, length)], 1)


def _flyspeck(length: int, tile: int, overlap: int, pieces: int, fixed_size: bool) -> np.ndarray:
    starts, tile = _even_starts(length, tile, overlap)
    return np.stack([starts, starts + tile], 1)


def _tov(length: int, tile: int, overlap: int, pieces: int, fixed_size: bool) -> np.ndarray:
    starts, tile = _tov_starts(length, tile, overlap)
    return np.stack([starts, starts + tile], 1)


def _by_size(length: int, tile: int, overlap: int, pieces: int, fixed_size: bool) -> np.ndarray:
    return _benchmark_spans(length, tile, overlap, _pieces(length, tile, overlap), fixed_size)


def _by_pieces(length: int, tile: int, overlap: int, pieces: int, fixed_size: bool) -> np.ndarray:
    tile = -(-(length + (pieces - 1) * overlap) // pieces)
    return _benchmark_spans(length, tile, overlap, pieces, fixed_size)


RULES: dict[str, Callable[[int, int, int, int, bool], np.ndarray]] = {
    "flyspeck": _flyspeck,
    "tinybenchmark_split_by_size": _by_size,
    "tinybenchmark_split_by_pieces": _by_pieces,
    "tov_cropped_tiles": _tov,
}


def corners(
    rule: str,
    image_size: tuple[int, int],
    size: tuple[int, int] = (512, 640),
    overlap: int | tuple[int, int] = 50,
    *,
    pieces: tuple[int, int] = (2, 2),
    fixed_size: bool = True,
) -> np.ndarray:
    """Tile corners `(T, 4)` int64 x1, y1, x2, y2 of an image, by one of four rules.

    `flyspeck`: the fewest tiles of `size` that overlap by at least `overlap`, spread evenly. `tinybenchmark_split_by_size`: a
    start every `size - overlap`, the last tiles moved back inside, or clipped if not `fixed_size` (TinyBenchmark,
    `split_and_merge_image.py`). `tinybenchmark_split_by_pieces`: `pieces` (rows, columns) tiles, of the size that this takes;
    `size` is not read. `tov_cropped_tiles`: the tiles of TOV_mmdetection at run time (`rtest_time_aug.py`).

    `image_size`, `size` are (height, width), `overlap` one number or (y, x). An image smaller than a tile gives one tile of its
    own size. Raises UserError for an unknown rule or an overlap that is not below the tile's size.
    """
    if rule not in RULES:
        raise UserError(f"unknown tile rule '{rule}'", fix=nearest(rule, RULES))
    overlaps = (overlap, overlap) if isinstance(overlap, int) else overlap
    by_pieces = rule == "tinybenchmark_split_by_pieces"
    if min(image_size) < 1:
        raise UserError(f"an image of {image_size[1]}x{image_size[0]} px cannot be tiled", fix="give its true size")
    for tile, shared, count in zip(size, overlaps, pieces, strict=True):
        if count < 1 or shared < 0 or (not by_pieces and not 0 <= shared < tile):
            tiles = f"{pieces[1]}x{pieces[0]} tiles" if by_pieces else f"tiles of {size[1]}x{size[0]} px"
            what = f"{tiles} cannot overlap by {overlaps[1]}x{overlaps[0]} px"
            raise UserError(what, fix="give an overlap from 0 to below the tile's size, and 1 piece or more")
    rows, columns = (
        RULES[rule](image_size[axis], size[axis], overlaps[axis], pieces[axis], fixed_size) for axis in range(2)
    )
    y, x = np.repeat(rows, len(columns), 0), np.tile(columns, (len(rows), 1))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).astype(np.int64)


def tile_annotations(
    annotations: Annotations,
    *,
    rule: str = "flyspeck",
    size: tuple[int, int] = (512, 640),
    overlap: int | tuple[int, int] = 50,
    pieces: tuple[int, int] = (2, 2),
    fixed_size: bool = True,
    policy: CutPolicy | None = None,
    first_id: int = 1,
) -> Annotations:
    """The annotations cut into the tiles of `corners`: each tile is an image of the table that is returned.

    Boxes are in the frame of their tile. `policy` decides on the partial ones; None is the rule's own: `TINYBENCHMARK` for
    TinyBenchmark's two, `CutPolicy()` for the others; but for TinyBenchmark's own policy, shares are those of what the image
    shows of a box. `image_extra` gets `corner` (T, 4) and `whole`, the id of the image that a tile was cut from; `file_names`
    are those of the whole images, as in the benchmarks' corner files. Images and boxes are numbered from `first_id` (the
    benchmark: 0, an id that COCO-style evaluators never match; so 1 here).

    `area` shrinks with the visible share, `size` and `height` follow the cut box, other geometry (`polygon`, `vis_bbox`,
    `xywh`) is left out. Raises UserError where the size of an image is not known.
    """
    if policy is None:
        policy = TINYBENCHMARK if rule.startswith("tinybenchmark") else CutPolicy()
    unknown = np.flatnonzero((annotations.sizes < 1).any(1))
    if len(unknown):
        name = annotations.file_names[int(unknown[0])]
        raise UserError(
            "its size is not known, so it cannot be tiled", where=name, fix="put the images beside the annotations"
        )
    all_corners, whole, rows, tile_of, cut, ignored = [], [], [], [], [], []
    for index, here in enumerate(annotations):
        height, width = (int(v) for v in annotations.sizes[index])
        # What lies outside the image is in no tile, and nothing that a cut has taken; TinyBenchmark counts it all the same.
        whole_boxes = (
            annotations.boxes[here] if policy == TINYBENCHMARK else bx.clip(annotations.boxes[here], height, width)
        )
        for corner in corners(rule, (height, width), size, overlap, pieces=pieces, fixed_size=fixed_size):
            boxes, remains, ignore = cut_boxes(whole_boxes, annotations.ignore[here], tuple(corner), policy)
            rows.append(here.start + np.flatnonzero(remains))
            tile_of.append(np.full(len(rows[-1]), len(whole)))
            cut.append(boxes[remains])
            ignored.append(ignore[remains])
            all_corners.append(corner)
            whole.append(index)
    return _cut_table(
        annotations,
        whole=np.array(whole, dtype=np.int64),
        tile_corners=_joined(all_corners, np.int64).reshape(-1, 4),
        rows=_joined(rows, np.int64),
        tile_of=_joined(tile_of, np.int64),
        boxes=_joined(cut, np.float64).reshape(-1, 4),
        ignore=_joined(ignored, bool),
        first_id=first_id,
    )


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _cut_table(
    annotations: Annotations,
    *,
    whole: np.ndarray,
    tile_corners: np.ndarray,
    rows: np.ndarray,
    tile_of: np.ndarray,
    boxes: np.ndarray,
    ignore: np.ndarray,
    first_id: int,
) -> Annotations:
    """The table of T tiles of the images `whole` (T,), with the cut `boxes` of the original `rows` in the tiles `tile_of`."""
    before = annotations.select_boxes(rows, image_index=tile_of)
    full = bx.area(before.boxes)
    share = np.divide(bx.area(boxes), full, out=np.ones(len(rows)), where=full > 0)
    extra = {name: column for name, column in before.extra.items() if name not in ("polygon", "vis_bbox", "xywh")}
    if "size" in extra:
        extra["size"] = np.sqrt(before.area * share)
    if "height" in extra:
        extra["height"] = np.where(share < 1, boxes[:, 3] - boxes[:, 1], extra["height"])
    count = len(whole)
    image_extra = {name: column[whole] for name, column in annotations.image_extra.items()}
    return replace(
        before,
        image_ids=np.arange(first_id, first_id + count),
        file_names=tuple(annotations.file_names[index] for index in whole),
        sizes=np.stack([tile_corners[:, 3] - tile_corners[:, 1], tile_corners[:, 2] - tile_corners[:, 0]], 1),
        boxes=boxes,
        labels=np.where(ignore, -1, before.labels),
        area=before.area * share,
        ignore=ignore,
        box_ids=np.arange(first_id, first_id + len(rows)),
        extra=extra,
        image_extra={**image_extra, "corner": tile_corners, "whole": annotations.image_ids[whole]},
    )


def drop_crowded(annotations: Annotations, max_objects: int) -> Annotations:
    """The images with at most `max_objects` annotations, ignore regions included (TinyPerson leaves out those above 200)."""
    counts = np.bincount(annotations.image_index, minlength=len(annotations))
    return annotations.select_images(counts <= max_objects)
