"""Agreement with pycocotools, to 1e-12, on random data full of ties; and of our matcher with the delegated COCO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pycocotools_oracle import as_coco, largest_difference, matcher_difference, reference
from tables_by_hand import random_tables

from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.ap import average_precision, prepare
from flyspeck.evaluate.protocols import COCO_IOUS, COCO_RULE, APProtocol, Bin


@pytest.mark.parametrize("seed", range(12))
def test_matcher_and_curves(seed: int) -> None:
    annotations, detections = random_tables(seed, images=3, classes=3)
    if not len(detections):
        pytest.skip("this seed draws no detections, which pycocotools does not load")
    bins = (Bin("all", 0.0, 1e10), Bin("tiny", 4.0, 64.0), Bin("rest", 64.0, 200.0))
    protocol = APProtocol("coco", "pycocotools", bins, COCO_IOUS, (1, 5, 20), rule=COCO_RULE, id_zero_matches=False)
    arrays = average_precision(prepare(annotations, detections, protocol), protocol)
    precision, recall = reference(as_coco(annotations), detections.to_coco(annotations), bins, (1, 5, 20))
    assert_allclose(arrays.precision, precision[..., -1], rtol=0, atol=1e-12)
    assert_allclose(arrays.recall, recall, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_delegated_coco(seed: int) -> None:
    annotations, detections = random_tables(seed + 60, images=3, classes=2)
    assert len(detections)
    areas = (Bin("all", 0, 1e10), Bin("small", 0, 1024.0), Bin("medium", 1024.0, 9216.0), Bin("large", 9216.0, 1e10))
    precision, recall = reference(as_coco(annotations), detections.to_coco(annotations), areas, (1, 10, 100))
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


@pytest.mark.slow
def test_hituav_as_a_detector_would_see_it(shared: Path, tmp_path: Path) -> None:
    """The real ground truth of 1068 images with detections that are jittered, doubled, mislabelled and missing."""
    gt = shared / "data" / "hituav" / "val_blk.json"
    if not gt.is_file():
        pytest.skip("needs hituav beside the project")
    annotations = read_annotations(gt, for_evaluation=True)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, annotations.num_boxes, 3 * annotations.num_boxes)
    sides = annotations.boxes[rows, 2:] - annotations.boxes[rows, :2]
    shift = rng.normal(0, 0.12, (len(rows), 4)) * np.tile(sides, 2)
    boxes = np.sort((annotations.boxes[rows] + shift).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    detections = DetectionTable.from_columns(
        image_index=annotations.image_index[rows],
        boxes=np.round(boxes, 2),
        scores=np.round(rng.uniform(0, 1, len(rows)), 2),
        labels=np.maximum(annotations.extra["category"][rows], 0),
    )
    dt = tmp_path / "dt.json"
    detections.write_coco(dt, annotations)
    assert largest_difference(gt, dt) <= 1e-12
    assert matcher_difference(gt, dt) <= 1e-12
