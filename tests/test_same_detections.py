"""The comparison that other tests rest on: blind to what a processor may change, and to nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flyspeck.models.postprocess import RawDetections, Suppression
from flyspeck.types import Detections
from same_detections import assert_same_detections

BOXES = [[10, 10, 14, 14], [30, 30, 33, 35], [50, 10, 51, 12]]
RULE = Suppression(score=0.05, iou=0.5, max_detections=3)
LIMITS = {"box_px": 0.01, "score": 1e-4}


def image(boxes: list, scores: list[float], labels: list[int] | None = None) -> list[Detections]:
    return [Detections(np.array(boxes, np.float32), np.array(scores), np.array(labels or [0] * len(boxes)), (64, 64))]


def test_equal_scores_may_change_places() -> None:
    rows = (BOXES, [0.9, 0.5, 0.5], [0, 1, 2])
    swapped = ([BOXES[0], BOXES[2], BOXES[1]], [0.9, 0.50005, 0.5], [0, 2, 1])
    assert_same_detections(image(*swapped), image(*rows), **LIMITS)
    boxes, scores, labels = (torch.tensor(column) for column in swapped)
    assert_same_detections([RawDetections(boxes, scores, labels)], image(*rows), **LIMITS)
    assert_same_detections([{"boxes": boxes, "scores": scores, "labels": labels}], image(*rows), **LIMITS)


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        ([[x1 + 0.02, *rest] for x1, *rest in BOXES], [0.9, 0.8, 0.7], [0, 0, 0]),
        (BOXES, [0.9, 0.8, 0.7002], [0, 0, 0]),
        (BOXES, [0.9, 0.8, 0.7], [0, 0, 1]),
        (BOXES[:2], [0.9, 0.8], [0, 0]),
        ([*BOXES, BOXES[0]], [0.9, 0.8, 0.7, 0.9], [0] * 4),  # a detection twice has one partner only
        (BOXES, [0.8, 0.9, 0.7], [0, 0, 0]),  # the right scores on the wrong boxes
        ([], [], []),
    ],
)
def test_what_differs_is_found_from_either_side(boxes: list, scores: list, labels: list) -> None:
    one, other = image(BOXES, [0.9, 0.8, 0.7]), image(boxes, scores, labels)
    for pair in ((one, other), (other, one)):
        with pytest.raises(AssertionError, match=r"partner|only 0|6 ties"):
            assert_same_detections(*pair, **LIMITS, rule=replace(RULE, max_detections=100))


def test_partners_are_found_where_the_nearest_is_taken() -> None:
    """A chain: the first fits both, the second only the one that the first would take."""
    one = image([[0, 0, 4, 4], [0, 0, 4, 4]], [0.5, 0.5001])
    assert_same_detections(one, image([[0, 0, 4, 4], [0, 0, 4, 4]], [0.50009, 0.49991]), box_px=0.01, score=1.5e-4)


def test_the_last_below_a_limit_is_a_tie_only_with_a_rule() -> None:
    one = image([*BOXES[:2], [50, 10, 51, 12]], [0.9, 0.8, 0.70000])
    other = image([*BOXES[:2], [4, 50, 6, 52]], [0.9, 0.8, 0.70005])
    assert_same_detections(one, other, **LIMITS, rule=RULE)
    with pytest.raises(AssertionError, match="without a partner"):
        assert_same_detections(one, other, **LIMITS)
    roomy = Suppression(score=0.05, iou=0.5, max_detections=4)
    with pytest.raises(AssertionError, match="without a partner"):
        assert_same_detections(one, other, **LIMITS, rule=roomy)
    assert_same_detections(image(BOXES[:2], [0.9, 0.05005]), image(BOXES[:1], [0.9]), **LIMITS, rule=RULE)


def test_either_of_two_equals_may_suppress_the_other() -> None:
    # 8 x 8 at 2 px distance: IoU 6 / 10 > 0.5; at 6 px it is 2 / 14.
    one = image([[10, 10, 18, 18]], [0.9])
    assert_same_detections(one, image([[12, 10, 20, 18]], [0.9]), **LIMITS, rule=RULE)
    for wrong in (image([[16, 10, 24, 18]], [0.9]), image([[12, 10, 20, 18]], [0.8])):
        with pytest.raises(AssertionError, match="without a partner"):
            assert_same_detections(one, wrong, **LIMITS, rule=RULE)


def test_many_ties_are_no_accident() -> None:
    rows = [[20 * i, 0, 20 * i + 8, 8] for i in range(3)]
    moved = [[x1 + 2, y1, x2 + 2, y2] for x1, y1, x2, y2 in rows]
    with pytest.raises(AssertionError, match="6 ties"):
        assert_same_detections(image(moved, [0.9] * 3), image(rows, [0.9] * 3), **LIMITS, rule=RULE)


def test_strays_are_a_share_of_what_is_expected() -> None:
    one, other = image(BOXES, [0.9, 0.8, 0.7]), image([*BOXES[:2], [0, 0, 3, 3]], [0.9, 0.8, 0.7])
    assert_same_detections(one, other, **LIMITS, strays=0.34)
    with pytest.raises(AssertionError, match="without a partner"):
        assert_same_detections(one, other, **LIMITS, strays=0.3)
