"""What a comparison says in words, how far cuts are moved when a detector is asked again, and its AP by size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from suppressing import Suppressing

from flyspeck.errors import UserError
from flyspeck.export.parity import ALIKE, Difference, ap_by_size, compare
from flyspeck.export.parity import Rule as Told
from flyspeck.export.proof import require_parity
from flyspeck.export.undecided import IOU, asked_again
from flyspeck.models.postprocess import Suppression
from flyspeck.types import Detections
from planted_errors import table

PLAIN = Difference(windows=2, boxes=30, box_px=0.00012345, score=1.5e-7, ties=0, unmatched=0)


def test_a_comparison_in_words() -> None:
    whole = "30 boxes in 2 windows: sides within 0.00012 px, scores within 1.5e-07"
    assert PLAIN.text == whole
    told = Difference(2, 30, 0.00012345, 1.5e-7, ties=3, unmatched=4)
    assert told.text == f"{whole}, 3 ties, 4 boxes WITHOUT a partner"
    assert PLAIN.span == 0


@pytest.mark.parametrize(("span", "undecided"), [(0.0, True), (ALIKE, True), (2 * ALIKE, False), (0.5, False)])
def test_scores_that_are_alike_decide_nothing(span: float, undecided: bool) -> None:
    assert Difference(2, 30, 0, 0, ties=0, unmatched=1, span=span).undecided is undecided


@pytest.mark.parametrize(("count", "lower", "higher"), [(1, 1, 2), (40, 39, 41), (100, 99, 101), (1000, 990, 1010)])
def test_every_cut_is_moved_both_ways(count: int, lower: int, higher: int) -> None:
    rule = Suppression(iou=0.5, pre_nms=count, max_detections=count)
    head, asked = Suppressing(rule), []
    own = ("iou", "max_detections", "pre_nms")
    asked_again(head, lambda: asked.append(tuple(getattr(head.suppression, name) for name in own)) or [])
    assert [iou - 0.5 for iou, *_ in asked] == pytest.approx([-IOU, 0, 0, IOU, 0, 0])
    assert [most for _, most, _ in asked] == [count, lower, count, count, higher, count]
    assert [before for *_, before in asked] == [count, count, lower, count, count, higher]
    assert head.suppression is rule
    assert asked_again(Suppressing(Suppression(method="none")), lambda: asked) == []


def test_ap_of_each_size() -> None:
    boxes = np.array([[10.0, 10, 16, 16], [50, 50, 80, 80]])
    truth = table(boxes, np.zeros(2, np.int64), np.zeros(2, np.int64), classes=("car",))
    found = Detections(boxes[:1].astype(np.float32), np.array([0.9]), np.zeros(1, np.int64), (400, 400), ("car",))
    ap = ap_by_size(truth, [found])
    assert ap["tiny"] == pytest.approx(1)
    assert 0 < ap["all"] < 1
    moved = Detections(boxes[:1].astype(np.float32) + np.float32(1.5), found.scores, found.labels, (400, 400), ("car",))
    assert ap_by_size(truth, [moved])["tiny"] == 0  # IoU .39


def test_nothing_excludes_what_no_rule_suppresses() -> None:
    """Boxes of a head that says each object once have no rival whose place they could have taken."""
    boxes = np.array([[0.0, 0, 40, 40], [1, 0, 41, 40]], np.float32)
    one = [Detections(boxes[:1], np.array([0.9]), np.zeros(1, np.int64), (64, 64), ("a",))]
    two = [Detections(boxes[1:], np.array([0.9]), np.zeros(1, np.int64), (64, 64), ("a",))]
    assert compare(one, two, Told(0.05, 0.5, 100, "none")).unmatched == 2
    assert compare(one, two, Told(0.05, 0.5, 100)).unmatched == 0


@pytest.mark.parametrize(("exported", "same"), [(0.5009, True), (0.4991, True), (0.5011, False), (0.4989, False)])
def test_how_far_ap_of_tiny_objects_may_be_off(exported: float, same: bool) -> None:
    """Though no box differs: what is measured on the images of the check is held to a thousandth."""
    ap = {"eager": {"tiny": 0.5}, "exported": {"tiny": exported}}
    if same:
        require_parity(PLAIN, PLAIN, ap, Path("a.onnx"))
        return
    with pytest.raises(UserError, match=rf"AP50 of tiny objects is {exported:.4f}, was 0\.5000"):
        require_parity(PLAIN, PLAIN, ap, Path("a.onnx"))
