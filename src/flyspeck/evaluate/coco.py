"""COCO's own protocol, handed to faster-coco-eval; the columns here become the objects that it reads.

It is plain COCO: only `iscrowd` ignores, and only within its category. Regions of no class (a category like DontCare) have no
effect, as in pycocotools, where they are a category of their own without objects; `flyspeck` lets them hold for every class.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.ap import mean_of_known
from flyspeck.evaluate.collector import paused_collector
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import DelegatedCOCO
from flyspeck.evaluate.tables import TruthTable, image_ranks, truth_table


def coco_rows(annotations: Annotations, detections: DetectionTable, protocol: DelegatedCOCO) -> list[dict[str, Any]]:
    """COCO's twelve numbers under their usual names, and AP of every class (`AP_per_class`, by `category_id`)."""
    with paused_collector():
        evaluation = _run(annotations, detections, protocol)
    # precision (T, R, K, A, D) and recall (T, K, A, D): IoU, recall point, class, area (all, small, medium, large), maxDets
    precision, recall = evaluation["precision"], evaluation["recall"]
    names = {"AP": (slice(None), 0), "AP50": (slice(0, 1), 0), "AP75": (slice(5, 6), 0)}
    names |= {f"AP{letter}": (slice(None), area) for area, letter in enumerate("sml", 1)}
    rows: list[dict[str, Any]] = [
        {"metric": name, "value": mean_of_known(precision[ious, :, :, area, -1])}
        for name, (ious, area) in names.items()
    ]
    rows += [
        {"metric": f"AR{limit}", "value": mean_of_known(recall[:, :, 0, d])}
        for d, limit in enumerate(protocol.max_dets)
    ]
    rows += [
        {"metric": f"AR{letter}", "value": mean_of_known(recall[:, :, area, -1])}
        for area, letter in enumerate("sml", 1)
    ]
    for k, (category, name) in enumerate(zip(annotations.category_ids, annotations.classes, strict=True)):
        value = mean_of_known(precision[:, :, k, 0, -1])
        rows.append({"metric": "AP_per_class", "category_id": category, "class_name": name, "value": value})
    return [{"protocol": protocol.name, **row} for row in rows]


def _run(annotations: Annotations, detections: DetectionTable, protocol: DelegatedCOCO) -> dict[str, Any]:
    from faster_coco_eval import COCO, COCOeval_faster

    truths = truth_table(annotations.select_boxes(annotations.own_labels >= 0), ("crowd",))
    ranks = image_ranks(annotations)
    images = [{"id": number} for number in range(1, len(annotations) + 1)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(annotations.classes)]
    if not categories or not images:
        empty = np.full((10, 101, len(categories), 4, 3), -1.0)
        return {"precision": empty, "recall": empty[:, 0]}
    with warnings.catch_warnings():
        # It warns of an annotation with id 0, as we do ourselves (in `checks`).
        warnings.filterwarnings("ignore", message="Found annotation id 0")
        truth = COCO({"images": images, "categories": categories, "annotations": _truth_entries(truths)})
        found = COCO()
        found.dataset = {
            "images": images,
            "categories": categories,
            "annotations": _detection_entries(detections, ranks),
        }
        found.createIndex()
    evaluator = COCOeval_faster(truth, found, iouType="bbox")
    evaluator.params.maxDets = list(protocol.max_dets)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval


def _truth_entries(truths: TruthTable) -> list[dict[str, Any]]:
    columns = zip(
        _whole_ids(truths),
        (truths.image + 1).tolist(),
        (truths.label + 1).tolist(),
        np.concatenate([truths.boxes[:, :2], truths.sides], 1).tolist(),
        truths.area.tolist(),
        truths.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
        for number, image, label, box, area, crowd in columns
    ]


def _whole_ids(truths: TruthTable) -> list[int]:
    """The source's ids where they are whole numbers (0 and its flaw included), else 1 to M."""
    if truths.ids.dtype == object:
        return list(range(1, len(truths.ids) + 1))
    return truths.ids.tolist()


def _detection_entries(detections: DetectionTable, ranks: np.ndarray) -> list[dict[str, Any]]:
    columns = zip(
        (ranks[detections.image_index] + 1).tolist(),
        (detections.labels + 1).tolist(),
        detections.xywh.tolist(),
        detections.scores.tolist(),
        (detections.xywh[:, 2] * detections.xywh[:, 3]).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "score": score, "area": area, "iscrowd": 0}
        for number, (image, label, box, score, area) in enumerate(columns, 1)
    ]
