"""Soft-NMS by hand and against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from flyspeck.models.postprocess import Suppression, suppress
from flyspeck.models.soft_nms import soft_nms

# Two 8x8 boxes shifted by 4 px: intersection 32, union 96, IoU 1/3. The third is far away, the fourth of another class.
BOXES = torch.tensor([[0.0, 0, 8, 8], [4, 0, 12, 8], [50, 50, 54, 54], [0, 0, 8, 8]])
SCORES, LABELS = torch.tensor([0.9, 0.8, 0.5, 0.7]), torch.tensor([0, 0, 0, 1])


def test_linear_by_hand():
    rows, scores = soft_nms(BOXES, SCORES, LABELS, method="linear", iou=0.3)
    # 0.8 * (1 - 1/3) = 0.5333; still above 0.5, the box of the other class keeps its 0.7.
    assert rows.tolist() == [0, 3, 1, 2]
    assert_close(scores, torch.tensor([0.9, 0.7, 0.8 * 2 / 3, 0.5]))


def test_gaussian_by_hand_and_the_threshold_of_the_linear_form():
    rows, scores = soft_nms(BOXES, SCORES, LABELS, method="gaussian", sigma=0.5)
    assert_close(scores[rows == 1], torch.tensor([0.8 * math.exp(-(1 / 9) / 0.5)]))
    rows, scores = soft_nms(BOXES, SCORES, LABELS, method="linear", iou=0.4)
    assert_close(scores, torch.tensor([0.9, 0.8, 0.7, 0.5]))


def test_it_ends_at_the_limit_and_at_the_lowest_score():
    assert soft_nms(BOXES, SCORES, LABELS, limit=2)[0].tolist() == [0, 3]
    assert soft_nms(BOXES, SCORES, LABELS, iou=0.3, min_score=0.52)[0].tolist() == [0, 3, 1]
    assert len(soft_nms(BOXES[:0], SCORES[:0], LABELS[:0])[0]) == 0


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_against_a_loop_over_crowded_tiny_boxes(method):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 1 + torch.rand(60, 2, generator=generator) * 7], 1)
    scores, labels = torch.rand(60, generator=generator), torch.arange(60) % 2

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    left, expected = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=lambda i: left[i])
        value = left.pop(best)
        if value < 0.05:
            break
        expected.append((best, value))
        for i in left:
            if labels[i] == labels[best]:
                iou = overlap(boxes[i].tolist(), boxes[best].tolist())
                left[i] *= math.exp(-(iou**2) / 0.5) if method == "gaussian" else (1 - iou if iou > 0.3 else 1)
    rows, lowered = soft_nms(boxes, scores, labels, method=method, min_score=0.05)
    assert rows.tolist() == [i for i, _ in expected]
    assert_close(lowered, torch.tensor([v for _, v in expected]))


def test_as_the_rule_of_a_detector():
    found = suppress(BOXES, SCORES, LABELS, (100, 100), Suppression(score=0.01, iou=0.3, soft="linear"))
    assert found.labels.tolist() == [0, 1, 0, 0]
    assert_close(found.scores[2], torch.tensor(0.8 * 2 / 3))
