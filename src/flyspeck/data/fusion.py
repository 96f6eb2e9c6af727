"""The statistical fusion factor S-α: how strongly deep levels should speak in a feature pyramid, counted from the data set.

Paper: Gong et al., "Effective Fusion Factor in FPN for Tiny Object Detection", WACV 2021, Eq. 2 and Algorithm 1.
Facts from the authors' released code: a 0/1 vector marks anchors (two objects that share their best anchor count once), the
factors are clamped to [0.2, 2] and rounded to three decimals. The paper's plain ratio is `raw=True`, objects instead of
anchors are `count="objects"`.

Every object goes to the one anchor of all levels with the highest IoU, the first on ties; no threshold, no clipping, no
forward pass. Order of anchors: level, row, column, shape. An anchor's centre is `((column + ½)·stride, (row + ½)·stride)`.

How the search stays near each box. The overlap of a box and an anchor along one axis is
`min(w_box, w_anchor, (w_box + w_anchor)/2 - |distance of the centres|)`: a trapezoid over the anchor's position, and IoU
grows with the product of both axes' overlaps. So for one anchor shape the best column and the best row are found apart, in
closed form: the first grid position on the trapezoid's plateau, or one of the two beside its peak. Three columns by three
rows around it are evaluated in float64 with the same expression a full search would use, so that ties are ties.

Deviation: a box that no anchor touches (no area, or far outside) is left out and reported; the released code would mark
the very first anchor for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError

Count = Literal["anchors", "objects"]
CLAMP = (0.2, 2.0)
"""The released code's bounds of a factor."""
_CHUNK = 16384
_NEIGHBOURS = np.array([-1, 0, 1])


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one pyramid level: the same shapes at every position of a grid."""

    stride: int
    """Image pixels per position."""
    shapes: np.ndarray
    """(S, 2) float64 width and height in pixels, in the order the head uses."""

    def grid(self, sizes: np.ndarray) -> np.ndarray:
        """Positions `(..., 2)` (rows, columns) on images of `sizes` `(..., 2)` (height, width): rounded up."""
        return -(-np.asarray(sizes, dtype=np.int64) // self.stride)


@dataclass(frozen=True)
class Matches:
    """Which objects claim which locations: one row per pair."""

    box: np.ndarray
    """(P,) int64 row of the box."""
    level: np.ndarray
    """(P,) int64 pyramid level, 0 the finest."""
    location: np.ndarray
    """(P,) int64 number of the anchor or point among all levels of its image."""


Assignment = Callable[[np.ndarray, np.ndarray], Matches]
"""`(boxes (N, 4) xyxy pixels, sizes (N, 2) height and width of each box's image) -> Matches`."""


@dataclass(frozen=True)
class FusionStatistics:
    """Counts per level and the factors that follow from them."""

    levels: tuple[str, ...]
    """Names of the levels, finest first: `P2`, `P3`, …"""
    counts: tuple[int, ...]
    """Marked anchors (or objects) per level."""
    factors: tuple[float, ...]
    """α of each top-down edge, finest first: α_2^3, α_3^4, α_4^5."""
    edges: tuple[str, ...]
    """Names of the edges in the same order: `a23`, `a34`, `a45`."""
    unmatched: int = 0
    """Boxes that no anchor touches; not counted."""


def anchor_shapes(size: float, ratios: Sequence[float], octaves: int = 1) -> np.ndarray:
    """Shapes `(len(ratios)·octaves, 2)` (width, height) of area `(size·2^(k/octaves))²`; a ratio is height over width.

    Ratio-major, octave-minor, as in RetinaNet's implementations.
    """
    scales = size * 2.0 ** (np.arange(octaves) / octaves)
    root = np.sqrt(np.asarray(ratios, dtype=np.float64))
    width, height = (1 / root)[:, None] * scales, root[:, None] * scales
    return np.stack([width, height], -1).reshape(-1, 2)


def anchor_levels(
    strides: Sequence[int], sizes: Sequence[float], *, ratios: Sequence[float] = (1.0,), octaves: int = 1
) -> tuple[AnchorLevel, ...]:
    """One level per stride, with `anchor_shapes(size, ratios, octaves)` at every position."""
    if len(strides) != len(sizes):
        raise UserError(
            f"{len(sizes)} anchor sizes for {len(strides)} strides", fix="give one anchor size per stride, finest first"
        )
    if min(strides) < 1 or min(sizes) <= 0 or min(ratios) <= 0 or octaves < 1:
        raise UserError(
            f"strides {list(strides)}, anchors {list(sizes)}, ratios {list(ratios)}, octaves {octaves}",
            fix="all of them must be positive",
        )
    return tuple(AnchorLevel(s, anchor_shapes(a, ratios, octaves)) for s, a in zip(strides, sizes, strict=True))


def axis_overlap(distance: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Length shared by two intervals of lengths `a` and `b` whose centres are `distance` ≥ 0 apart; broadcasts."""
    return np.minimum(np.minimum(a, b), (a + b) / 2 - distance).clip(min=0)


def best_anchor(boxes: np.ndarray, sizes: np.ndarray, levels: Sequence[AnchorLevel]) -> Matches:
    """The anchor of highest IoU for each box, the first on ties (Algorithm 1's MatchGT).

    `boxes` (N, 4) xyxy pixels, not clipped; `sizes` (N, 2) (height, width) of the image each box is in. Boxes with IoU 0
    everywhere are missing from the result.
    """
    parts = [
        _best_of_chunk(boxes[i : i + _CHUNK], sizes[i : i + _CHUNK], levels, i) for i in range(0, len(boxes), _CHUNK)
    ]
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Matches(nothing, nothing, nothing)
    return Matches(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("box", "level", "location")))


def _best_of_chunk(boxes: np.ndarray, sizes: np.ndarray, levels: Sequence[AnchorLevel], first_row: int) -> Matches:
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    best = np.zeros(len(boxes))
    location, level_of, start = (np.zeros(len(boxes), np.int64) for _ in range(3))
    for number, level in enumerate(levels):
        rows, columns = level.grid(sizes).T
        iou, position = _best_of_level(centers, sides, level, rows, columns)
        better = iou > best  # strictly: on ties the finer level, which comes first, keeps the box
        best, level_of = np.where(better, iou, best), np.where(better, number, level_of)
        location = np.where(better, start + position, location)
        start = start + rows * columns * len(level.shapes)
    found = np.flatnonzero(best > 0)
    return Matches(found + first_row, level_of[found], location[found])


def _best_of_level(
    centers: np.ndarray, sides: np.ndarray, level: AnchorLevel, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Highest IoU `(N,)` of each box on one level and the first anchor (row, column, shape order) that reaches it."""
    column, shared_x = _best_positions(centers[:, 0], sides[:, 0], level.shapes[:, 0], level.stride, columns)
    row, shared_y = _best_positions(centers[:, 1], sides[:, 1], level.shapes[:, 1], level.stride, rows)
    shared = shared_y[..., :, None] * shared_x[..., None, :]  # (N, S, 3 rows, 3 columns)
    total = sides.prod(-1)[:, None] + level.shapes.prod(-1)
    iou = shared / (total[..., None, None] - shared)
    shape = np.arange(len(level.shapes))[:, None, None]
    cell = row[..., :, None] * columns[:, None, None, None] + column[..., None, :]
    order = (cell * len(level.shapes) + shape).reshape(len(centers), -1)
    iou = iou.reshape(len(centers), -1)
    best = iou.max(1)
    return best, np.where(iou == best[:, None], order, np.iinfo(np.int64).max).min(1)


def _best_positions(
    center: np.ndarray, side: np.ndarray, anchor_side: np.ndarray, stride: int, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Grid positions `(N, S, 3)` along one axis that hold the first best one, and their overlaps with the box.

    The plateau of the overlap reaches `|side - anchor_side| / 2` to both sides of the box's centre. Its first grid position
    is the first best one; where no position lies on it, the best one is that position or the one before. The neighbours
    also cover the last bit of the division.
    """
    plateau = np.abs(side[:, None] - anchor_side) / 2
    first = np.ceil((center[:, None] - plateau) / stride - 0.5)
    last = (count - 1)[:, None, None]
    first = first.clip(0, last[..., 0]).astype(np.int64)
    position = (first[..., None] + _NEIGHBOURS).clip(0, last)
    distance = np.abs((position + 0.5) * stride - center[:, None, None])
    return position, axis_overlap(distance, side[:, None, None], anchor_side[:, None])


def point_ranges(strides: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """FCOS's regression ranges of Adap-FCOS derived from the strides: (-1, 4s], (4s, 8s], … up to infinity."""
    bounds = [-1.0, *(4.0 * s for s in strides[:-1]), np.inf]
    return tuple(pairwise(bounds))


def assigned_points(
    boxes: np.ndarray,
    sizes: np.ndarray,
    strides: Sequence[int],
    *,
    ranges: Sequence[tuple[float, float]] | None = None,
    radius: float = 1.5,
) -> Matches:
    """The points of an anchor-free head (FCOS) that each box would claim if it were alone in its image.

    A point at `((column + ½)·stride, (row + ½)·stride)` belongs to a box when it lies inside it, less than `radius` strides
    from its centre along both axes, and its longest distance to a side is in the level's range `(low, high]`. Every box is
    in one chunk of the grid around its centre, so only that is looked at.
    """
    ranges = point_ranges(strides) if ranges is None else ranges
    steps = np.arange(-int(np.ceil(radius)) - 1, int(np.ceil(radius)) + 2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    start = np.zeros(len(boxes), np.int64)
    for number, (stride, (low, high)) in enumerate(zip(strides, ranges, strict=True)):
        rows, columns = (-(-np.asarray(sizes, dtype=np.int64) // stride)).T
        column = np.floor(centers[:, 0] / stride).astype(np.int64)[:, None, None] + steps
        row = np.floor(centers[:, 1] / stride).astype(np.int64)[:, None, None] + steps[:, None]
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
        offsets = np.stack(np.broadcast_arrays(x - left, y - top, right - x, bottom - y))
        near = np.maximum(np.abs(x - centers[:, 0, None, None]), np.abs(y - centers[:, 1, None, None]))
        claimed = (offsets.min(0) > 0) & (offsets.max(0) > low) & (offsets.max(0) <= high) & (near < radius * stride)
        claimed &= (column >= 0) & (column < columns[:, None, None]) & (row >= 0) & (row < rows[:, None, None])
        box, i, j = np.nonzero(claimed)
        location = start[box] + row[box, i, 0] * columns[box] + column[box, 0, j]
        found.append((box, np.full(len(box), number), location))
        start = start + rows * columns
    box, level, location = (np.concatenate(part) for part in zip(*found, strict=True))
    return Matches(box, level, location)


def level_counts(
    annotations: Annotations,
    assign: Assignment,
    num_levels: int,
    *,
    size: tuple[int, int] | None,
    count: Count = "anchors",
) -> tuple[np.ndarray, int]:
    """Locations marked per level over all images `(num_levels,)`, or objects (`count="objects"`), and boxes unmatched.

    `size` (height, width) is what the network sees of every image; None takes each image's own. Boxes are neither scaled
    nor clipped. Ignore regions and crowds are no objects.
    """
    rows = np.flatnonzero(~(annotations.ignore | annotations.crowd))
    image, boxes = annotations.image_index[rows], annotations.boxes[rows].astype(np.float64)
    sizes = annotations.sizes if size is None else np.broadcast_to(np.asarray(size), (len(annotations), 2))
    if len(rows) and (sizes[image] <= 0).any():
        name = annotations.file_names[int(image[(sizes[image] <= 0).any(1)][0])]
        raise UserError("the size of the image is not known", where=name, fix="give the size (--size HxW)")
    matches = assign(boxes, np.asarray(sizes, dtype=np.int64)[image])
    if count == "objects":
        key = matches.box * num_levels + matches.level
    else:
        span = int(matches.location.max(initial=0)) + 1
        key = image[matches.box] * span + matches.location
    _, kept = np.unique(key, return_index=True)
    counts = np.bincount(matches.level[kept], minlength=num_levels)
    return counts, len(rows) - len(np.unique(matches.box))


def fusion_statistics(
    annotations: Annotations,
    assign: Assignment,
    strides: Sequence[float],
    *,
    size: tuple[int, int] | None,
    count: Count = "anchors",
    raw: bool = False,
    extra_levels: int = 1,
) -> FusionStatistics:
    """S-α of a data set: `level_counts` and `factors` in one value (Algorithm 1)."""
    counts, unmatched = level_counts(annotations, assign, len(strides), size=size, count=count)
    names = tuple(f"P{round(np.log2(s))}" for s in strides)
    alphas = factors(counts, levels=names, raw=raw, extra_levels=extra_levels)
    edges = tuple(f"a{low[1:]}{high[1:]}" for low, high in pairwise(names))[: len(alphas)]
    return FusionStatistics(names, tuple(int(n) for n in counts), alphas, edges, unmatched)


def fusion_facts(annotations: Annotations) -> dict[str, Any] | None:
    """S-α for the adaptive RetinaNet of the paper as plain values, or None where there is nothing to count on.

    Pyramid P2-P6, anchors of 8, 16, 32, 64, 128 px in three octaves and ratios ½, 1, 2, each image's own size.
    """
    strides, sizes = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)
    sized = annotations.select_images((annotations.sizes > 0).all(1))
    if (sized.ignore | sized.crowd).all():
        return None
    levels = anchor_levels(strides, sizes, ratios=(0.5, 1, 2), octaves=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty level shows in the counts
        found = fusion_statistics(sized, partial(best_anchor, levels=levels), strides, size=None)
    return {
        "anchors": list(sizes),
        "counts": dict(zip(found.levels, found.counts, strict=True)),
        "factors": dict(zip(found.edges, found.factors, strict=True)),
    }


def factors(
    counts: Sequence[int] | np.ndarray, *, levels: Sequence[str] = (), raw: bool = False, extra_levels: int = 1
) -> tuple[float, ...]:
    """α of each top-down edge, finest first, from counts per level (Eq. 2; Algorithm 1, lines 11-18).

    `extra_levels` coarsest levels are made from the one before without an edge (P6 from P5): their counts join it in the
    last factor, `α_4^5 = (N5 + N6) / N4`. A level with count 0 below an edge gives the factor 1 and a warning; count 0
    above it gives 0 raw. Unless `raw`, factors are clamped to [0.2, 2] and rounded to three decimals.
    """
    counts = [int(n) for n in counts]
    fused = len(counts) - extra_levels
    if fused < 2:
        raise UserError(
            f"{len(counts)} levels of which {extra_levels} have no edge: nothing is fused", fix="add levels"
        )
    names = list(levels) or [f"level {i}" for i in range(len(counts))]
    merged = [*counts[: fused - 1], sum(counts[fused - 1 :])]
    empty = [name for name, low in zip(names, merged[:-1], strict=False) if low == 0]
    if empty:
        warnings.warn(
            f"no object falls on {', '.join(empty)}: the fusion factor there is undefined, 1 is used", stacklevel=2
        )
    return tuple(_factor(low, high, raw=raw) for low, high in pairwise(merged))


def _factor(low: int, high: int, *, raw: bool) -> float:
    """α of one edge from the counts below and above it."""
    if low == 0:
        return 1.0
    alpha = high / low
    return alpha if raw else round(min(max(alpha, CLAMP[0]), CLAMP[1]), 3)
