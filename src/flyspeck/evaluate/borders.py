"""Does cutting images into tiles cost objects? Recall as a function of the distance to the next tile border."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import APInputs, prepare
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import APProtocol

EDGES = (0.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, float("inf"))


def border_distance(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,) pixels from the centre of each box to the nearest tile border inside the image; inf where there is none.

    `boxes` (N, 4) and `tiles` (T, 4) are xyxy in the frame of the image of (height, width) `size`. A side of a tile that is
    the image's own edge is no border; a side counts where the box lies beside it, not beyond its ends.
    """
    distance = np.full(len(boxes), np.inf)
    middle = box_algebra.center(boxes)
    height, width = size
    for axis, limit in ((0, width), (1, height)):
        along = 1 - axis
        lines = np.concatenate([tiles[:, axis], tiles[:, axis + 2]])
        low, high = np.tile(tiles[:, along], 2), np.tile(tiles[:, along + 2], 2)
        inner = (lines > 0) & (lines < limit)
        for line, start, stop in np.unique(np.stack([lines, low, high], 1)[inner], axis=0):
            beside = (middle[:, along] >= start) & (middle[:, along] <= stop)
            distance = np.where(beside, np.minimum(distance, np.abs(middle[:, axis] - line)), distance)
    return distance


def border_rows(
    annotations: Annotations,
    detections: DetectionTable,
    tiles: Mapping[Any, np.ndarray],
    protocol: APProtocol,
    *,
    iou: float = 0.5,
    edges: tuple[float, ...] = EDGES,
    inputs: APInputs | None = None,
) -> list[dict[str, Any]]:
    """Recall of the objects whose centre is `from` to `to` pixels from the nearest tile border, for every bin.

    `tiles` gives (T, 4) xyxy for each image id. Images that are not in it take no part.
    """
    inputs = prepare(annotations, detections, protocol) if inputs is None else inputs
    distance = np.full(annotations.num_boxes, np.nan)
    for index, image_id in enumerate(annotations.image_ids.tolist()):
        if image_id in tiles:
            rows = annotations.of_image(index)
            height, width = annotations.sizes[index].tolist()
            distance[rows] = border_distance(annotations.boxes[rows], tiles[image_id], (height, width))
    apart = distance[inputs.truths.row]
    rows = []
    for area in protocol.bins:
        outcome = inputs.outcomes[area.name, iou]
        taken = np.zeros(len(inputs.truths.row), bool)
        taken[outcome.truth[outcome.hit]] = True
        for low, high in pairwise(edges):
            # Objects with no border in sight (inf) belong to the last range.
            chosen = outcome.counted & (apart >= low) & ((apart < high) | np.isinf(high) & np.isinf(apart))
            total = int(chosen.sum())
            value = float(taken[chosen].mean()) if total else -1.0
            rows.append({"area": area.name, "iou": iou, "from": low, "to": high, "n_gt": total, "value": value})
    return rows


def wholes_by_tile_name(content: Mapping[str, Any], annotations: Annotations, folder: Path) -> dict[str, Any]:
    """Ids of the whole images, by their own names and by the names that the tiles in `content` have them under.

    A tile names its whole image as the ground truth does (the benchmarks' files), by a path that leads from `folder`, where
    the tile file lies, to the same file, or by the id in `whole` (both: `flyspeck data tile`).
    """
    ids = dict(zip(annotations.file_names, annotations.image_ids.tolist(), strict=True))
    by_path = {os.path.abspath(annotations.root / name): image_id for name, image_id in ids.items()}
    known = set(ids.values())
    for image in content["images"]:
        name = image["file_name"]
        if name in ids:
            continue
        image_id = by_path.get(os.path.abspath(folder / name), image.get("whole"))
        if isinstance(image_id, int | str) and image_id in known:
            ids[name] = image_id
    return ids


def tiles_of_corner_file(
    content: Mapping[str, Any], annotations: Annotations, folder: Path = Path()
) -> dict[Any, np.ndarray]:
    """Tiles of each image id, from a COCO json of tiles (see `wholes_by_tile_name`) with `corner`s."""
    ids = wholes_by_tile_name(content, annotations, folder)
    tiles: dict[Any, list[list[float]]] = {}
    for image in content["images"]:
        if image["file_name"] in ids:
            tiles.setdefault(ids[image["file_name"]], []).append(image["corner"])
    return {image_id: np.array(corners, np.float64).reshape(-1, 4) for image_id, corners in tiles.items()}
