"""Detections of tiles put back on whole images the way TinyBenchmark and huicv do it before they evaluate.

The rule: shift by the tile's corner, corners in float32, one NMS at 0.5 over all tiles of an image and all classes, widths
counted with one pixel more; what is left stays in input order. For detecting, `flyspeck.infer` has a better merge; this one
exists so that published numbers can be met.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.borders import wholes_by_tile_name
from flyspeck.evaluate.coco_results import checked_columns, load_results
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import overlapping_pairs


def merge_tile_results(
    dt: Path, corners: Path, annotations: Annotations, *, kernel: str = "cpu", any_score: bool = False
) -> DetectionTable:
    """Read tile results `dt` and the tile list `corners` (COCO json with `corner`s), merge onto `annotations`' images."""
    if kernel not in ("cpu", "cuda"):
        raise UserError(f"no merge kernel '{kernel}'", where="--merge-kernel", fix="cpu or cuda")
    try:
        tiles = json.loads(corners.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid json: {error}", where=corners, fix="give the COCO json of the tiles") from None
    try:
        wholes = wholes_by_tile_name(tiles, annotations, corners.parent)
    except (KeyError, TypeError, AttributeError):
        what = "not a tile file (its images have no file_name)"
        raise UserError(what, where=corners, fix="give the COCO json of the tiles, with corners") from None
    results = load_results(dt)
    checked_columns(results, dt, any_score=any_score)
    merged = merge_tiles(results, tiles, kernel=kernel, wholes=wholes, where=str(dt))  # pyright: ignore
    return DetectionTable.from_coco(merged, annotations, any_score=any_score)


def merge_tiles(
    results: Sequence[dict[str, Any]],
    tiles: Mapping[str, Any],
    *,
    kernel: Literal["cpu", "cuda"] = "cpu",
    threshold: float = 0.5,
    wholes: Mapping[str, Any] | None = None,
    where: str = "detections",
) -> list[dict[str, Any]]:
    """COCO results on whole images from COCO results on tiles.

    `tiles` is a tile file as an object: its `images` have `file_name` of the whole image and `corner` x1, y1, x2, y2.
    `wholes` gives the id of each whole image by file name; by default the file's `old_images` do (huicv takes those of the
    whole-image ground truth). `kernel`: the CPU kernel suppresses at an overlap of `threshold`, CUDA's above it.
    """
    corner, whole_of = _tile_table(tiles, wholes)
    by_tile: dict[Any, list[dict[str, Any]]] = {}
    for number, result in enumerate(results):
        if result.get("image_id") not in corner:
            raise UserError(
                f"detection {number} is on tile {result.get('image_id')!r}, which the tile file does not have",
                where=where,
                fix="give the tile file that the detections were made on",
            )
        by_tile.setdefault(result["image_id"], []).append(result)
    merged: list[dict[str, Any]] = []
    for whole, members in whole_of.items():
        mine = [(tile, result) for tile in members for result in by_tile.get(tile, [])]
        if not mine:
            continue
        xywh = np.array([result["bbox"] for _, result in mine], np.float64).reshape(-1, 4)
        shift = np.stack([corner[tile][:2] for tile, _ in mine])
        start = xywh[:, :2] + shift
        boxes = np.concatenate([start, start + xywh[:, 2:]], 1).astype(np.float32)
        scores = np.array([result["score"] for _, result in mine], np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        for row in np.flatnonzero(suppressed(boxes, scores, threshold, strict=kernel == "cuda") == 0).tolist():
            box = [*boxes[row, :2].tolist(), *sides[row].tolist()]
            merged.append({**mine[row][1], "image_id": whole, "bbox": box})
    return merged


def _tile_table(
    tiles: Mapping[str, Any], wholes: Mapping[str, Any] | None
) -> tuple[dict[Any, Any], dict[Any, list[Any]]]:
    """Corner of each tile id, and the tile ids of each whole image's id in file order."""
    try:
        images = tiles["images"]
        if wholes is None:
            wholes = {image["file_name"]: image["id"] for image in tiles["old_images"]}
        corner = {image["id"]: np.asarray(image["corner"], np.float64)[[0, 1, 2, 3]] for image in images}
        names = {image["id"]: image["file_name"] for image in images}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"not a tile file ({type(error).__name__}: {error})",
            where="--merge-from",
            fix="tiles need file_name and corner",
        ) from None
    whole_of: dict[Any, list[Any]] = {whole: [] for whole in wholes.values()}
    for tile, name in names.items():
        if name not in wholes:
            raise UserError(
                f"tile {tile!r} is of '{name}', which is no whole image", where="--merge-from", fix="check --gt"
            )
        whole_of[wholes[name]].append(tile)
    bare = [whole for whole, members in whole_of.items() if not members]
    if bare:
        raise UserError(
            f"{len(bare)} whole images have no tile, the first is {bare[0]!r}",
            where="--merge-from",
            fix="give the tile file of this ground truth",
        )
    return corner, whole_of


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, *, strict: bool, pixel: float = 1.0
) -> np.ndarray:
    """(N,) bool: boxes that NMS removes; `boxes` (N, 4) xyxy, class-agnostic, equal scores in row order.

    Vectorised: in each round the boxes without an undecided better neighbour are kept and remove their worse ones.
    """
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    one = np.zeros(len(scores), np.int64)
    pairs = overlapping_pairs(boxes, one, boxes, one, pixel=pixel)
    keep = (pairs.iou > threshold) if strict else (pairs.iou >= threshold)
    keep &= rank[pairs.detection] < rank[pairs.truth]
    better, worse = pairs.detection[keep], pairs.truth[keep]
    removed, decided = np.zeros(len(scores), bool), np.zeros(len(scores), bool)
    while not decided.all():
        waiting = np.zeros(len(scores), bool)
        waiting[worse[~decided[better]]] = True
        chosen = ~decided & ~waiting
        decided |= chosen
        removed[worse[chosen[better]]] = True
        decided |= removed
    return removed
