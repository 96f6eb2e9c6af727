from __future__ import annotations

import numpy as np
import pytest

from flyspeck.export.parity import Rule, ap_table, compare
from flyspeck.types import Detections

RULE = Rule(score=0.05, iou=0.5, max_detections=100)
BOXES = [[10, 10, 14, 14], [30, 30, 33, 35], [50, 10, 51, 12]]


def found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> list[Detections]:
    return [Detections(np.array(boxes, np.float32), np.array(scores), np.array(labels or [0] * len(boxes)), (64, 64))]


def test_equal_boxes_are_the_same_in_any_order() -> None:
    one, other = found(BOXES, [0.9, 0.8, 0.7]), found(BOXES[::-1], [0.7, 0.8, 0.9])
    difference = compare(one, other, RULE)
    assert (difference.same, difference.boxes, difference.box_px, difference.ties) == (True, 3, 0, 0)


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        ([[10.6, 10, 14.6, 14], *BOXES[1:]], [0.9, 0.8, 0.7], [0, 0, 0]),  # 0.6 px aside
        (BOXES, [0.9, 0.8, 0.702], [0, 0, 0]),  # 0.002 in score
        (BOXES, [0.9, 0.8, 0.7], [0, 0, 1]),  # another class
        (BOXES[:2], [0.9, 0.8], [0, 0]),  # one is missing
        ([*BOXES, [20, 50, 22, 52]], [0.9, 0.8, 0.7, 0.06], [0, 0, 0, 0]),  # one too many
    ],
)
def test_what_differs_is_found_from_either_side(boxes: list, scores: list, labels: list) -> None:
    one, other = found(BOXES, [0.9, 0.8, 0.7]), found(boxes, scores, labels)
    assert not compare(one, other, RULE).same
    assert not compare(other, one, RULE).same


def test_largest_differences_are_told() -> None:
    one = found(BOXES, [0.9, 0.8, 0.7])
    other = found([[10.25, 10, 14, 14], *BOXES[1:]], [0.9, 0.8005, 0.7])
    difference = compare(one, other, RULE)
    assert difference.same
    assert difference.box_px == pytest.approx(0.25)
    assert difference.score == pytest.approx(0.0005, abs=1e-6)


def test_a_score_on_the_threshold_is_a_tie() -> None:
    one, other = found(BOXES, [0.9, 0.8, 0.0504]), found(BOXES[:2], [0.9, 0.8])
    difference = compare(one, other, RULE)
    assert (difference.ties, difference.unmatched) == (1, 0)
    full = Rule(score=0.05, iou=0.5, max_detections=2)  # the same where the other side is full
    assert compare(found(BOXES, [0.9, 0.8, 0.7995]), found(BOXES[:2], [0.9, 0.8]), full).unmatched == 0


def test_of_two_equal_boxes_either_may_suppress_the_other() -> None:
    # 8 x 8 at 2 px distance: IoU 6 / 10 > 0.5, so only one of them can stay.
    one, other = found([[10, 10, 18, 18]], [0.9]), found([[12, 10, 20, 18]], [0.9])
    assert compare(one, other, RULE).ties == 2
    far = found([[16, 10, 24, 18]], [0.9])  # IoU 2 / 14: that one does not stand for it
    assert compare(one, far, RULE).unmatched == 2
    worse = found([[12, 10, 20, 18]], [0.8])  # its score is no tie
    assert compare(one, worse, RULE).unmatched == 2


def test_a_row_of_boxes_is_one_tie() -> None:
    # Neighbours overlap by 6 / 10. Left keeps the first and third, right the second and fourth.
    row = [[10 + 2 * i, 10, 18 + 2 * i, 18] for i in range(4)]
    one, other = found([row[0], row[2]], [0.9, 0.7]), found([row[1], row[3]], [0.9, 0.5])
    assert compare(one, other, RULE).unmatched == 0
    assert compare(one, found([row[1]], [0.5]), RULE).unmatched == 3  # nothing in the row is equal


def test_many_ties_are_no_accident() -> None:
    boxes = [[20 * i, 0, 20 * i + 8, 8] for i in range(10)]
    moved = [[20 * i + 2, 0, 20 * i + 10, 8] for i in range(10)]
    difference = compare(found(boxes, [0.9] * 10), found(moved, [0.9] * 10), RULE)
    assert (difference.unmatched, difference.ties) == (0, 20)
    assert not difference.same


def test_nothing_against_nothing() -> None:
    empty = [Detections.empty((8, 8))]
    assert compare(empty, empty, RULE).boxes == 0


def test_the_table_states_the_difference_in_points() -> None:
    text = ap_table({"eager": {"tiny": 0.5, "small": -1.0}, "int8": {"tiny": 0.482, "small": -1.0}})
    assert "48.20 (-1.80)" in text
    assert text.splitlines()[2].split() == ["small", "–", "–"]
