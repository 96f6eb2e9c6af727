"""What the objects of a data set ask of a detector: finest stride, anchors, tiles. Rules of thumb, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.errors import counted

CELLS = 1.5
"""Cells of the finest map that a small object should span."""
TILE = (512, 640)
"""Tile (height, width) of the TinyPerson benchmark."""


@dataclass(frozen=True)
class Implied:
    """What follows from the objects' sizes, with the reasons in plain words."""

    stride: int
    """Stride of the finest feature map."""
    levels: str
    """Five pyramid levels from there, as a recipe has them: `model.levels`."""
    anchor_base: float
    """Side of the smallest anchor, px; each further level doubles it, with a step of sqrt(2) between."""
    anchor_ratios: tuple[float, ...]
    """Heights over widths of the anchors."""
    anchor_recall: float
    """Share of the objects that some anchor, put on their centre, covers with IoU 0.5 or more."""
    tile: tuple[int, int] | None
    """(height, width) of tiles to cut; None where the images are small enough."""
    overlap: int
    """Pixels that the tiles should overlap by."""
    max_detections: int
    """Detections to allow an image."""
    reasons: dict[str, str]
    """Why, by field."""


def fit_anchors(boxes: np.ndarray, stride: float) -> tuple[float, tuple[float, ...]]:
    """Anchor side in px and ratios (height over width) for `boxes` (N, 4) on a finest map of `stride`.

    The side is the 25th percentile of the sizes, between one and three strides. The ratios are the 15th, 50th and 85th
    percentiles, without those that are less than 1.3 times the one before.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    base = float(np.clip(np.quantile(bx.size(boxes), 0.25), stride, 3 * stride))
    ratios: list[float] = []
    for ratio in np.quantile(sides[:, 1] / sides[:, 0], [0.15, 0.5, 0.85]):
        if not ratios or ratio / ratios[-1] >= 1.3:
            ratios.append(round(float(ratio), 2))
    return base, tuple(ratios)


def anchor_recall(boxes: np.ndarray, shapes: np.ndarray, threshold: float = 0.5) -> float:
    """Share of `boxes` (N, 4) that an anchor of `shapes` (S, 2) width, height, on the same centre, covers with that IoU."""
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
    shared = np.minimum(sides, shapes[None]).prod(2)
    overlap = shared / (sides.prod(2) + shapes.prod(1)[None] - shared)
    return float((overlap.max(1) >= threshold).mean())


def imply(annotations: Annotations) -> Implied | None:
    """What the objects ask for; None where there is no object with an area."""
    objects = annotations.boxes[~annotations.ignore]
    objects = objects[bx.area(objects) > 0]
    if not len(objects):
        return None
    sizes = bx.size(objects)
    quarter = float(np.quantile(sizes, 0.25))
    stride = int(2 ** np.clip(np.floor(np.log2(max(quarter / CELLS, 1.0))), 1, 4))
    base, ratios = fit_anchors(objects, stride)
    shapes = np.array(
        [
            (base * 2 ** (step / 2) / ratio**0.5, base * 2 ** (step / 2) * ratio**0.5)
            for step in range(10)
            for ratio in ratios
        ]
    )
    recall = anchor_recall(objects, shapes)
    most = int(np.bincount(annotations.image_index, minlength=1).max())
    reasons = {
        "stride": f"three quarters of the objects are {quarter:.1f} px or more in size; at stride {stride} those span"
        f" {quarter / stride:.1f} cells or more (a small object should span {CELLS})",
        "anchors": f"from {base:.1f} px, doubling each of five levels with a step between, height/width"
        f" {', '.join(f'{r:g}' for r in ratios)}: {recall:.0%} of the objects find one with IoU 0.5 or more on their centre",
        "max_detections": f"the fullest image has {counted(most, 'box')}",
    }
    tile, overlap, reasons["tile"] = _tiles(annotations, objects)
    cap = int(max(100, np.ceil(most * 1.5 / 100) * 100))
    return Implied(stride, _levels(stride), round(base, 2), ratios, round(recall, 4), tile, overlap, cap, reasons)


def _levels(stride: int) -> str:
    """`1-5` for a finest stride of 2."""
    first = stride.bit_length() - 1
    return f"{first}-{first + 4}"


def _tiles(annotations: Annotations, objects: np.ndarray) -> tuple[tuple[int, int] | None, int, str]:
    """Tile size, overlap and the reason."""
    sides = (objects[:, 2:] - objects[:, :2]).max(1)
    long = float(np.quantile(sides, 0.99))
    overlap = int(min(np.ceil(long / 10) * 10, min(TILE) // 4))
    known = annotations.sizes[(annotations.sizes > 0).all(1)]
    if not len(known):
        return None, overlap, "the sizes of the images are not known"
    height, width = (int(v) for v in known.max(0))
    megapixels = float(known.prod(1).max()) / 1e6
    if megapixels <= 1.0:
        return (
            None,
            overlap,
            f"the images are at most {width}x{height} px ({megapixels:.2f} megapixels): no tiles needed",
        )
    reason = (
        f"images of up to {width}x{height} px ({megapixels:.1f} megapixels) go through tiles of {TILE[1]}x{TILE[0]} px;"
        f" an overlap of {overlap} px shows 99 % of the objects (up to {long:.0f} px long) whole in some tile"
    )
    return TILE, overlap, reason if overlap >= long else f"{reason}, as far as a quarter of the tile allows"
