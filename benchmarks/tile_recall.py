"""Whether a larger tile loses objects: `python benchmarks/tile_recall.py MODEL ANNOTATIONS [--tiles 256x320,512x640,off]`.

Recall of the annotated objects (IoU 0.5, same class, detections of a score of at least 0.3, each for one object) by the size of
the tiles, with the counts an image (proposals, candidates, detections) fixed as they were before 0.2, and growing with the
input (`flyspeck.models.counts`). The processor time of each, and of the whole image over tiles without overlap that cover it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.boxes import iou
from flyspeck.cli.values import parse_size
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.infer.load import load_model
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.tiles import default_tiles
from flyspeck.types import Detections

SCORE = 0.3


def matched(found: Detections, objects: np.ndarray, labels: list[str]) -> int:
    """Objects (N, 4) that a detection of their class covers with an IoU of 0.5; each detection, best first, takes one."""
    free = np.ones(len(objects), bool)
    for row in np.argsort(-found.scores):
        if found.scores[row] < SCORE or not free.any():
            continue
        same = np.array([label == found.classes[found.labels[row]] for label in labels])
        overlap = np.where(free & same, iou(found.boxes[row : row + 1], objects)[0], 0)
        if len(overlap) and overlap.max() >= 0.5:
            free[overlap.argmax()] = False
    return int((~free).sum())


def recall(predictor: Predictor, table: Annotations, rows: list[int]) -> tuple[float, float, int]:
    """(recall, seconds of the processor, tiles that were full) over images of the table."""
    hit, total, full = 0, 0, 0
    start = time.process_time()
    results = [next(iter(predictor.stream([table.path(row)]))) for row in rows]
    seconds = time.process_time() - start
    for row, result in zip(rows, results, strict=True):
        if result.problem is not None:
            raise result.problem
        mine = (table.image_index == row) & (table.labels >= 0) & ~table.ignore
        objects, labels = table.boxes[mine], [table.classes[label] for label in table.labels[mine]]
        known = [i for i, label in enumerate(labels) if label in result.detections.classes]
        hit += matched(result.detections, objects[known], [labels[i] for i in known])
        total, full = total + len(known), full + result.num_full
    return hit / total, seconds, full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument(
        "--tiles", default="", help="HxW with commas between; default: 1, 1.5 and 2 times the training's, and off"
    )
    parser.add_argument("--limit", type=int, default=40, help="images, evenly spread")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    table = read_annotations(asked.annotations)
    rows = np.unique(np.linspace(0, len(table) - 1, min(asked.limit, len(table))).round().astype(int)).tolist()
    network, told = load_model(asked.model, device="cpu")
    height, width = told["training_size"]
    names = (
        asked.tiles.split(",")
        if asked.tiles
        else [f"{int(height * k)}x{int(width * k)}" for k in (1, 1.5, 2)] + ["off"]
    )
    area = network.detector.counts_area
    lines: list[dict[str, Any]] = []
    for name in [*names, f"{height}x{width} without overlap"]:
        bare = name.endswith("overlap")
        size = None if name == "off" else parse_size(name.split()[0], where="--tiles")
        sides, shared = default_tiles(size, 0 if bare else None, told, whole=name == "off")
        line: dict[str, Any] = {"tile": name}
        for counts in ("fixed", "area"):
            network.detector.counts_area = area if counts == "area" else None
            seer = Predictor(network, tile=sides, overlap=shared, score_threshold=0.05, batch_size=1)
            line[counts] = dict(zip(("recall", "seconds", "full_tiles"), recall(seer, table, rows), strict=True))
        lines.append(line)
        print(
            name,
            *(
                f"{c}: recall {line[c]['recall']:.3f}, {line[c]['seconds']:.1f} s, {line[c]['full_tiles']} full"
                for c in ("fixed", "area")
            ),
            sep=" | ",
            flush=True,
        )
    if asked.out is not None:
        asked.out.write_text(json.dumps({"model": str(asked.model), "images": len(rows), "rows": lines}, indent=1))


if __name__ == "__main__":
    main()
