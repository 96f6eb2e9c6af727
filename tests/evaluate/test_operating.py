"""Recall at false-alarm rates, oLRP and calibration, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.testing import assert_allclose
from tables_by_hand import found, truth

from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.operating import calibration, olrp_rows, recall_rows
from flyspeck.evaluate.protocols import APProtocol

_FLYSPECK = protocol_named("flyspeck")
assert isinstance(_FLYSPECK, APProtocol)
PROTOCOL = replace(_FLYSPECK, ious=(0.5,))
A, B, FAR = [100.0, 100.0, 10.0, 10.0], [200.0, 100.0, 10.0, 10.0], [300.0, 300.0, 10.0, 10.0]


def test_recall_at_false_alarms() -> None:
    """Two images: a hit at .9, a false alarm at .8, a hit at .7. No alarm: recall 1/2 down to .9; half an alarm per
    image: both, down to .7."""
    annotations = truth([(0, 0, A), (0, 0, B)], images=2)
    detections = found([(0, 0, A, 0.9), (1, 0, FAR, 0.8), (0, 0, B, 0.7)])
    rows = recall_rows(annotations, detections, PROTOCOL, rates=(0.1, 0.5))[:2]
    assert [(row["value"], row["score"]) for row in rows] == [(0.5, 0.9), (1.0, 0.7)]


def test_a_tie_is_taken_whole() -> None:
    """A hit and two false alarms share a score: no threshold has the hit without the alarms."""
    annotations = truth([(0, 0, A)])
    detections = found([(0, 0, A, 0.5), (0, 0, FAR, 0.5), (0, 0, B, 0.5)])
    low, high = recall_rows(annotations, detections, PROTOCOL, rates=(1.0, 2.0))[:2]
    assert (low["value"], low["score"], high["value"]) == (0.0, None, 1.0)


def test_olrp_by_hand() -> None:
    """A found 1 px off (IoU 9/11), B exactly, then a false alarm, of three objects. At the second detection:
    ((2/11) / .5 + 0 + 1) / 3 = (4/11 + 1) / 3 = 5/11; alone the first gives (4/11 + 2) / 3, with the alarm (4/11 + 2) / 4.
    """
    annotations = truth([(0, 0, A), (0, 0, B), (0, 0, [400.0, 100.0, 10.0, 10.0])])
    detections = found([(0, 0, [101.0, 100.0, 10.0, 10.0], 0.9), (0, 0, B, 0.8), (0, 0, FAR, 0.7)])
    row = olrp_rows(annotations, detections, PROTOCOL)[0]
    assert_allclose(row["value"], 5 / 11)
    assert_allclose(row["localisation"], 1 / 11)
    assert_allclose((row["false_positive"], row["false_negative"], row["score"]), (0, 1 / 3, 0.8))


def test_olrp_without_hits_is_one_and_without_truth_unknown() -> None:
    annotations = truth([(0, 0, A)])
    rows = {row["area"]: row["value"] for row in olrp_rows(annotations, found([(0, 0, FAR, 0.9)]), PROTOCOL)}
    assert rows["tiny2"] == 1.0
    assert rows["tiny3"] == -1.0


def test_olrp_parts_are_of_the_classes_that_have_them() -> None:
    """A class of which nothing is found raises the error and the misses; it has no IoU, precision or score to average."""
    annotations = truth([(0, 0, A), (0, 1, B)], classes=2)
    row = olrp_rows(annotations, found([(0, 0, A, 0.9)]), PROTOCOL)[0]
    assert_allclose([row[name] for name in ("value", "false_negative")], [0.5, 0.5])
    assert_allclose([row[name] for name in ("localisation", "false_positive", "score")], [0, 0, 0.9], atol=1e-12)
    row = olrp_rows(annotations, found([]), PROTOCOL)[0]
    assert [row[name] for name in ("value", "localisation", "score")] == [1.0, -1.0, -1.0]


def test_calibration_by_hand() -> None:
    """Two detections of .95 of which one hits, two of .25 of which none does: (2 * .45 + 2 * .25) / 4 = .35."""
    annotations = truth([(0, 0, A)])
    detections = found([(0, 0, A, 0.95), (0, 0, FAR, 0.95), (0, 0, B, 0.25), (0, 0, [20.0, 20.0, 9.0, 9.0], 0.25)])
    result = calibration(annotations, detections, PROTOCOL)
    assert_allclose(result["error"], 0.35)
    assert [part["detections"] for part in result["parts"]] == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]


def test_scores_that_are_probabilities_have_little_error() -> None:
    rng = np.random.default_rng(1)
    boxes = [(k, 0, A) for k in range(400)]
    scores = rng.uniform(0, 1, 400)
    hits = rng.uniform(size=400) < scores
    detections = found([(k, 0, A if hits[k] else FAR, float(scores[k])) for k in range(400)])
    assert calibration(truth(boxes, images=400), detections, PROTOCOL)["error"] < 0.08
