"""Fates, curves and rates on boxes small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.report import RunReport
from flyspeck.report.diagnosis import FATES, diagnose


def table(boxes, labels, image_index, ignore=None) -> Annotations:
    boxes = np.array(boxes, float).reshape(-1, 4)
    count, images = len(boxes), max(image_index) + 1
    flags = np.zeros(count, bool) if ignore is None else np.array(ignore)
    return Annotations(
        image_ids=np.arange(1, images + 1),
        file_names=tuple(f"{i}.png" for i in range(images)),
        sizes=np.full((images, 2), 100),
        image_index=np.array(image_index),
        boxes=boxes,
        labels=np.where(flags, -1, labels),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        ignore=flags,
        crowd=np.zeros(count, bool),
        box_ids=np.arange(1, count + 1),
        classes=("a", "b"),
        category_ids=(1, 2),
    )


def run(annotations: Annotations, boxes, scores, labels, image_index) -> RunReport:
    found = DetectionTable.from_columns(image_index=image_index, boxes=boxes, scores=scores, labels=labels)
    return RunReport("r", annotations, found, evaluate(annotations, found, "flyspeck"))


@pytest.fixture
def example() -> RunReport:
    truth = table(
        # image 0: a 4 px object found, a 10 px one shifted by half, a 10 px one called b; image 1: one missed, one region
        [[0, 0, 4, 4], [20, 20, 30, 30], [50, 50, 60, 60], [10, 10, 34, 34], [60, 60, 90, 90]],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
        [False, False, False, False, True],
    )
    return run(
        truth,
        # the second has IoU (5*10)/(150) = 1/3; the fourth stands alone; the fifth lies under the region
        [[0, 0, 4, 4], [25, 20, 35, 30], [50, 50, 60, 60], [80, 2, 88, 10], [65, 65, 75, 75]],
        [0.9, 0.9, 0.9, 0.9, 0.9],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    )


def test_every_object_has_one_fate(example):
    diagnosis = diagnose(example)
    assert [FATES[k] for k in diagnosis.fates] == ["found", "badly placed", "other class", "missed"]
    by_size = diagnosis.fate_of_objects()
    assert by_size["2-8"] == {"found": 1, "badly placed": 0, "other class": 0, "missed": 0}
    assert by_size["8-12"] == {"found": 0, "badly placed": 1, "other class": 1, "missed": 0}
    assert by_size["20-32"] == {"found": 0, "badly placed": 0, "other class": 0, "missed": 1}


def test_what_lies_under_an_ignore_region_is_no_false_alarm(example):
    diagnosis = diagnose(example)
    # the displaced, the mislabelled and the lone one are wrong; the one under the region is not
    assert sorted(diagnosis.inputs.found.row[diagnosis.false_alarms].tolist()) == [1, 2, 3]


def test_worst_images_come_first(example):
    # image 0: two lost objects and two false alarms; image 1: one and one
    assert diagnose(example).worst_images(5) == [0, 1]
    assert diagnose(example).worst_images(1) == [0]


def test_recall_and_its_interval(example):
    rate = diagnose(example).recall("2-8")
    assert rate.value == 1.0
    assert rate.count == 1
    assert np.isnan(diagnose(example).recall("32+").value)
    # a share of one half over 400 images of one object each: SE = 0.5 / 20, so the interval is 0.5 +- 0.049
    truth = table([[0, 0, 10, 10]] * 400, [0] * 400, list(range(400)))
    half = run(truth, [[0, 0, 10, 10]] * 200, [0.8] * 200, [0] * 200, list(range(200)))
    rate = diagnose(half).recall("8-12")
    assert_allclose([rate.value, rate.low, rate.high], [0.5, 0.451, 0.549], atol=0.015)


def test_working_score_is_the_best_f1():
    # 3 objects; by score: hit .9, hit .8, miss .7, miss .6, hit .5. F1 = 2 tp / (n + 3): .5, .8, .667, .571, .75
    truth = table([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], [0, 0, 0], [0, 0, 0])
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9], [60, 60, 69, 69], [80, 80, 89, 89], [40, 0, 49, 9]]
    assert diagnose(run(truth, boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5, [0] * 5)).working_score == 0.8


def test_precision_recall_by_hand():
    # two objects: found at .9, a false alarm at .8, found at .7. Precision 1 up to recall 1/2, then 2/3 up to 1.
    truth = table([[0, 0, 9, 9], [20, 0, 29, 9]], [0, 0], [0, 0])
    found = run(truth, [[0, 0, 9, 9], [50, 50, 59, 59], [20, 0, 29, 9]], [0.9, 0.8, 0.7], [0] * 3, [0] * 3)
    curve = diagnose(found).precision_recall("all")
    assert_allclose(curve.y[[0, 50, 51, 100]], [100, 100, 200 / 3, 200 / 3])
