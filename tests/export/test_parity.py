from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from suppressing import Suppressing

from flyspeck import one_object
from flyspeck.boxes import iou
from flyspeck.errors import UserError
from flyspeck.export.parity import Difference, Rule, _partners, ap_table, compare
from flyspeck.export.proof import require_parity
from flyspeck.export.undecided import asked_again
from flyspeck.models.postprocess import Suppression, suppress
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


def test_partners_are_one_to_one() -> None:
    """Two boxes of one side may not share a partner, and one that could take either leaves the other its only one."""
    one = found([[10, 10, 14, 14], [10.4, 10, 14.4, 14]], [0.9, 0.9])
    alone = compare(one, found([[10, 10, 14, 14]], [0.9]), RULE)
    assert alone.ties + alone.unmatched == 1
    # 10.4 is nearest to both; the first box reaches no other.
    other = found([[10.4, 10, 14.4, 14], [10.8, 10, 14.8, 14]], [0.9, 0.9])
    for pair in ((one, other), (other, one)):
        difference = compare(*pair, RULE)
        assert (difference.same, difference.ties, difference.unmatched) == (True, 0, 0)
        assert difference.box_px == pytest.approx(0.4, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_the_matching_is_the_largest(seed: int, rows: int, columns: int) -> None:
    """Against every assignment, tried one by one."""
    rng = np.random.default_rng(seed)
    px, apart = rng.choice([0.1, 0.3, 0.7, np.inf], (rows, columns)), rng.choice([0, 5e-4, 2e-3], (rows, columns))
    mine, theirs = _partners(px, apart)
    assert len(set(mine.tolist())) == len(set(theirs.tolist())) == len(mine) == len(theirs)
    assert (px[mine, theirs] <= 0.5).all()
    assert (apart[mine, theirs] <= 1e-3).all()
    near = (px <= 0.5) & (apart <= 1e-3)

    @functools.cache
    def largest(row: int, used: int) -> int:
        if row == rows:
            return 0
        free = [c for c in range(columns) if near[row, c] and not used >> c & 1]
        return max([largest(row + 1, used), *(1 + largest(row + 1, used | 1 << c) for c in free)])

    assert len(mine) == largest(0, 0)


def test_scores_that_order_nothing_are_undecided_and_no_failure() -> None:
    """Of a detector that has barely learnt, a last digit picks the boxes: neither equal nor a fault of the export."""
    places = [[x, y, x + 4, y + 4] for x in range(0, 60, 6) for y in range(0, 60, 6)]
    scores = [0.0601 + 1e-5 * i for i in range(100)]
    one, other = found(places[:60], scores[:60]), found(places[40:], scores[40:])
    difference = compare(one, other, Rule(score=0.01, iou=0.5, max_detections=100))
    assert (difference.same, difference.undecided) == (False, True)
    sure = compare(found(places[:60], np.linspace(0.1, 0.9, 60).tolist()), found([], []), RULE)
    assert (sure.same, sure.undecided) == (False, False)
    missing = compare(found(BOXES, [0.9, 0.5, 0.3]), found(BOXES[:2], [0.9, 0.5]), RULE)
    assert (missing.same, missing.undecided) == (False, False)
    assert not compare(one, one, RULE).undecided
    with pytest.raises(UserError, match="so alike that rounding decides") as caught:
        require_parity(difference, compare(one, one, RULE), {}, Path("a.onnx"))
    assert "train it further" in caught.value.fix
    with pytest.raises(UserError, match="boxes differ beyond the limits") as caught:
        require_parity(missing, missing, {}, Path("a.onnx"))
    assert "report this model" in caught.value.fix


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
    # The tie of the first two passes along a longer one, whose other scores are apart.
    row = [[10 + 2 * i, 10, 18 + 2 * i, 18] for i in range(10)]
    one, other = found(row[::2], [0.9, 0.7, 0.6, 0.5, 0.4]), found(row[1::2], [0.9, 0.75, 0.65, 0.55, 0.45])
    assert compare(one, other, RULE).unmatched == 0


def test_a_nearer_partner_is_no_reason_to_move_others() -> None:
    """Row 1 is nearest to what row 0 has, and free to take another: row 0 keeps its own, though it has one to go to."""
    px = np.array([[0.1, np.inf, 0.2], [0.1, 0.2, np.inf]])
    rows, columns = _partners(px, np.zeros_like(px))
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 0, 1: 1}


def test_one_inside_the_other_is_a_tie_where_the_rule_takes_them_for_one_object() -> None:
    one, other = found([[10, 10, 14, 14]], [0.9]), found([[9, 9, 17, 17]], [0.9])  # IoU 16 / 64
    assert compare(one, other, RULE).unmatched == 2
    assert compare(one, other, Rule(0.05, 0.5, 100, "tiny")).unmatched == 0


@pytest.mark.parametrize(("boxes", "ties", "same"), [(1, 1, True), (1, 2, False), (1000, 2, True), (1000, 3, False)])
def test_how_many_ties_are_an_accident(boxes: int, ties: int, same: bool) -> None:
    assert Difference(1, boxes, 0, 0, ties=ties, unmatched=0).same is same


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


@pytest.mark.parametrize("off", [1e-5, -1e-5, 0.02], ids=["kept for a digit", "lost for a digit", "at fault"])
def test_a_box_at_the_cut_is_told_though_it_was_moved_afterwards(off: float) -> None:
    """Two boxes of 40 px whose overlap is at NMS's threshold, by `off` more on one side; a third one draws them together."""
    detector = Suppressing(Suppression(iou=0.5, method="tiny"))

    def look(overlap: float) -> list[Detections]:
        x = 40 * (1 - overlap) / (1 + overlap)
        boxes = torch.tensor([[a, 10.0, a + 40, 50.0] for a in (0.0, x, 9.0)], dtype=torch.float64)
        raw = suppress(
            boxes, torch.tensor([0.9, 0.7, 0.8]).double(), torch.zeros(3).long(), (64, 96), detector.suppression
        )
        return [Detections(raw.boxes.numpy(), raw.scores.numpy(), raw.labels.numpy(), (64, 96))]

    rule = Rule(score=0.05, iou=0.5, max_detections=100, method="tiny")
    reference, exported = look(0.5 + abs(off)), look(0.5 - 1e-6)
    assert (len(reference[0]), len(exported[0])) == (1, 2)
    if off == -1e-5:
        reference, exported = exported, reference
    kept = max((reference[0], exported[0]), key=len)
    assert iou(kept.boxes[:1], kept.boxes[1:])[0, 0] > 0.6  # nothing in the end says 0.5
    assert not compare(reference, exported, rule).same
    own = 0.5 - 1e-6 if off == -1e-5 else 0.5 + abs(off)
    asked = compare(reference, exported, rule, again=lambda: asked_again(detector, lambda: look(own)))
    assert (asked.ties, asked.unmatched) == ((0, 1) if off == 0.02 else (1, 0))
    assert detector.suppression.iou == 0.5
    assert one_object.bound(np.float64(8)) == one_object.LOWEST
    detector.suppression = Suppression(method="none")
    assert asked_again(detector, lambda: look(own)) == []


def test_a_box_at_the_cut_of_the_best_is_told_though_few_come_out() -> None:
    """Of five boxes apart the best four enter the pass; the fourth and the fifth are equal to the last digit."""
    detector = Suppressing(Suppression(score=0.05, method="tiny", max_detections=4))

    def look(last: float) -> list[Detections]:
        # The second box lies within the first: a duplicate, whose quarter of a score is below the threshold.
        boxes = torch.tensor([[0, 0, 8, 8], [2, 2, 5, 5], [30, 0, 38, 8], [50, 0, 58, 8], [70, 0, 78, 8]]).double()
        scores = torch.tensor([0.9, 0.19, 0.5, 0.1, 0.1 + last], dtype=torch.float64)
        raw = suppress(boxes, scores, torch.zeros(5).long(), (64, 96), detector.suppression)
        return [Detections(raw.boxes.numpy(), raw.scores.numpy(), raw.labels.numpy(), (64, 96))]

    rule = Rule(score=0.05, iou=0.5, max_detections=4, method="tiny")
    reference, exported = look(-1e-9), look(1e-9)
    assert len(reference[0]) == len(exported[0]) == 3
    assert (
        compare(reference, exported, rule).unmatched == 2
    )  # three of four that enter: no score says where the cut was
    asked = compare(reference, exported, rule, again=lambda: asked_again(detector, lambda: look(-1e-9)))
    assert (asked.ties, asked.unmatched) == (2, 0)
    assert detector.suppression.max_detections == 4
    other = [Detections(exported[0].boxes + 3, exported[0].scores, exported[0].labels, (64, 96))]
    assert compare(reference, other, rule, again=lambda: asked_again(detector, lambda: look(-1e-9))).unmatched > 2
