"""Agreement with pycocotools, to 1e-12, on random data full of ties; and of our matcher with the delegated COCO."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tables_by_hand import random_tables

from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.ap import average_precision, prepare
from flyspeck.evaluate.protocols import COCO_IOUS, COCO_RULE, APProtocol, Bin


def reference(annotations, detections, bins: tuple[Bin, ...], max_dets: tuple[int, ...], ious=COCO_IOUS):
    """pycocotools' precision (T, R, K, A, D) and recall (T, K, A, D)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = {
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
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = content
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(detections.to_coco(annotations)), "bbox")
        evaluator.params.areaRng = [[area.low, area.high] for area in bins]
        evaluator.params.areaRngLbl = [area.name for area in bins]
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.iouThrs = np.array(ious)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


@pytest.mark.parametrize("seed", range(12))
def test_matcher_and_curves(seed: int) -> None:
    annotations, detections = random_tables(seed, pictures=3, classes=3)
    if not len(detections):
        pytest.skip("this seed draws no detections, which pycocotools does not load")
    bins = (Bin("all", 0.0, 1e10), Bin("tiny", 4.0, 64.0), Bin("rest", 64.0, 200.0))
    protocol = APProtocol("coco", "pycocotools", bins, COCO_IOUS, (1, 5, 20), rule=COCO_RULE, id_zero_matches=False)
    arrays = average_precision(prepare(annotations, detections, protocol), protocol)
    precision, recall = reference(annotations, detections, bins, (1, 5, 20))
    assert_allclose(arrays.precision, precision[..., -1], rtol=0, atol=1e-12)
    assert_allclose(arrays.recall, recall, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_delegated_coco(seed: int) -> None:
    annotations, detections = random_tables(seed + 60, pictures=3, classes=2)
    assert len(detections)
    areas = (Bin("all", 0, 1e10), Bin("small", 0, 1024.0), Bin("medium", 1024.0, 9216.0), Bin("large", 9216.0, 1e10))
    precision, recall = reference(annotations, detections, areas, (1, 10, 100))
    result = evaluate(annotations, detections, "coco_bbox")

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    assert_allclose(result.value(metric="AP"), mean(precision[:, :, :, 0, 2]), rtol=0, atol=1e-12)
    assert_allclose(result.value(metric="AP50"), mean(precision[0, :, :, 0, 2]), rtol=0, atol=1e-12)
    assert_allclose(result.value(metric="APs"), mean(precision[:, :, :, 1, 2]), rtol=0, atol=1e-12)
    assert_allclose(result.value(metric="AR10"), mean(recall[:, :, 0, 1]), rtol=0, atol=1e-12)


def test_tables_by_hand_have_ties() -> None:
    """The random tables would prove little without equal scores and equal overlaps."""
    tables = [random_tables(seed)[1] for seed in range(12)]
    assert sum(len(table) - len(np.unique(table.scores)) for table in tables) > 100


def test_xyxy_float32_detections_are_scored_alike() -> None:
    """What a detector hands over (float32 corners) scores as its COCO file would, up to the rounding of the boxes."""
    from flyspeck.types import Detections

    annotations, table = random_tables(5)
    pieces = []
    for row, image_id in enumerate(annotations.image_ids):
        mine = table.select(table.image_index == row)
        pieces.append(Detections(mine.boxes, mine.scores, mine.labels, (512, 640), image_id=int(image_id)))
    again = DetectionTable.from_list(pieces, annotations)
    ours, theirs = (evaluate(annotations, t, "flyspeck").rows for t in (table, again))
    assert [row["value"] for row in ours] == [row["value"] for row in theirs]


def test_max_dets_matters() -> None:
    annotations, detections = random_tables(7)
    few = replace(protocol_named("flyspeck"), max_dets=(2,))
    assert evaluate(annotations, detections, few).value(metric="AR", iou=0.5, area="all") < evaluate(
        annotations, detections, "flyspeck"
    ).value(metric="AR", iou=0.5, area="all")
