"""pycocotools as the oracle: our `coco_bbox` and our own matcher against it, on tables or on files.

    python tests/evaluate/pycocotools_oracle.py --gt val.json --dt detections.json

prints the largest difference over COCO's twelve numbers and the AP of every class, and that of our own matcher over every
precision (10 IoUs, 101 recalls, classes, 4 areas) and recall.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.evaluate.ap import average_precision, prepare
from flyspeck.evaluate.protocols import COCO_IOUS, APProtocol, Bin

AREAS = (Bin("all", 0, 1e10), Bin("small", 0, 1024.0), Bin("medium", 1024.0, 9216.0), Bin("large", 9216.0, 1e10))


def as_coco(annotations: Annotations) -> dict[str, Any]:
    """The COCO object of a table without regions of no class."""
    return {
        "images": [{"id": int(i)} for i in annotations.image_ids],
        "categories": [
            {"id": i, "name": n} for i, n in zip(annotations.category_ids, annotations.classes, strict=True)
        ],
        "annotations": [
            {
                "id": int(annotations.box_ids[row]),
                "image_id": int(annotations.image_ids[annotations.image_index[row]]),
                "category_id": int(annotations.extra["category"][row]) + 1,
                "bbox": annotations.extra["xywh"][row].tolist(),
                "area": float(annotations.area[row]),
                "iscrowd": int(annotations.crowd[row]),
            }
            for row in range(annotations.num_boxes)
        ],
    }


def reference(
    truth: dict[str, Any], results: list[dict[str, Any]], bins: tuple[Bin, ...], max_dets: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' precision (T, R, K, A, D) and recall (T, K, A, D)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth  # pyright: ignore
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(results), "bbox")  # pyright: ignore
        evaluator.params.areaRng = [[area.low, area.high] for area in bins]
        evaluator.params.areaRngLbl = [area.name for area in bins]
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.iouThrs = np.array(COCO_IOUS)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def mean(values: np.ndarray) -> float:
    """Mean over what is known; -1 if nothing is."""
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def largest_difference(gt: Path, dt: Path) -> float:
    """Between `coco_bbox` by our command's own readers and pycocotools on the files as they are."""
    annotations = read_annotations(gt, for_evaluation=True)
    result = evaluate(annotations, DetectionTable.from_coco(dt, annotations), "coco_bbox")
    truth = json.loads(gt.read_text())
    precision, recall = reference(truth, json.loads(dt.read_text()), AREAS, (1, 10, 100))
    wanted = {"AP": precision[:, :, :, 0, 2], "AP50": precision[0, :, :, 0, 2], "AP75": precision[5, :, :, 0, 2]}
    wanted |= {f"AP{letter}": precision[:, :, :, a, 2] for a, letter in enumerate("sml", 1)}
    wanted |= {f"AR{letter}": recall[:, :, a, 2] for a, letter in enumerate("sml", 1)}
    wanted |= {f"AR{limit}": recall[:, :, 0, d] for d, limit in enumerate((1, 10, 100))}
    worst = max(abs(result.value(metric=name) - mean(values)) for name, values in wanted.items())
    numbers = sorted(category["id"] for category in truth["categories"])
    for category in annotations.category_ids:
        value = result.value(metric="AP_per_class", category_id=category)
        worst = max(worst, abs(value - mean(precision[:, :, numbers.index(category), 0, 2])))
    return worst


def matcher_difference(gt: Path, dt: Path) -> float:
    """Between our own matcher and pycocotools, over every precision and recall; regions of no class are left aside."""
    annotations = read_annotations(gt, for_evaluation=True)
    annotations = annotations.select_boxes(annotations.own_labels >= 0)
    detections = DetectionTable.from_coco(dt, annotations)
    protocol = APProtocol("coco", "pycocotools", AREAS, COCO_IOUS, (1, 10, 100), id_zero_matches=False)
    ours = average_precision(prepare(annotations, detections, protocol), protocol)
    truth = json.loads(gt.read_text())
    precision, recall = reference(truth, json.loads(dt.read_text()), AREAS, (1, 10, 100))
    numbers = sorted(category["id"] for category in truth["categories"])
    columns = [numbers.index(category) for category in annotations.category_ids]
    return max(
        float(np.abs(ours.precision - precision[..., -1][:, :, columns]).max()),
        float(np.abs(ours.recall - recall[:, columns]).max()),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gt", type=Path, required=True)
    parser.add_argument("--dt", type=Path, required=True)
    options = parser.parse_args()
    print(f"largest difference from pycocotools: {largest_difference(options.gt, options.dt):.3g}")
    print(f"of our own matcher, every precision and recall: {matcher_difference(options.gt, options.dt):.3g}")
