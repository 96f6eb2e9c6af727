"""FreeAnchor's likelihood: by hand, against a slow twin, and on boxes of a few pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.build import build
from flyspeck.types import Targets
from flyspeck_lab.comparators.free_anchor import FreeAnchorLoss, mean_max


def targets(boxes, labels=None, ignore=None) -> Targets:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Targets(boxes, torch.where(ignore, -1, labels), ignore)


def anchors(side: int = 64) -> torch.Tensor:
    """8 and 16 px on strides 4 and 8."""
    grid = AnchorGrid([[(8.0, 8.0)], [(16.0, 16.0)]])
    return grid([(side // 4, side // 4), (side // 8, side // 8)], (side, side), torch.device("cpu"))


def test_mean_max_is_the_mean_of_small_values_and_the_maximum_near_one():
    every = torch.ones(1, 3, dtype=torch.bool)
    small, large = torch.tensor([[1e-4, 2e-4, 3e-4]]), torch.tensor([[0.1, 0.2, 1 - 1e-6]])
    assert_close(mean_max(small, every), torch.tensor([2e-4]), rtol=1e-3, atol=0)
    assert_close(mean_max(large, every), torch.tensor([1.0]), rtol=1e-4, atol=0)
    # v / (1 - v): 1 and 0; 1 / (1 - v): 2 and 1. What is no member does not count.
    values, member = torch.tensor([[0.5, 0.0, 0.9]]), torch.tensor([[True, True, False]])
    assert_close(mean_max(values, member), torch.tensor([1 / 3]))


def test_loss_of_one_anchor_by_hand():
    # One anchor, which is the object, with p = 0.25 and offsets of 0: P = 0.25, the bag's part is 0.5 x ln 4. Its predicted
    # box has IoU 1: it is the object, so no background. A second anchor elsewhere with p = 0.5: 0.5 x 0.5^2 x ln 2 over
    # 50 anchors of one object.
    boxes = torch.tensor([[0.0, 0, 8, 8], [40, 40, 48, 48]])
    logits = torch.tensor([[[math.log(0.25 / 0.75)], [0.0]]])
    found = FreeAnchorLoss()(logits, torch.zeros(1, 2, 4), boxes, [targets([[0, 0, 8, 8]])])
    assert_close(found["matching"], torch.tensor(0.5 * math.log(4)))
    assert_close(found["background"], torch.tensor(0.5 * 0.25 * math.log(2) / 50))


def slow(logits, deltas, boxes, target, rule):
    """The paper's equations, one anchor and object at a time."""
    prob, predicted = logits.sigmoid(), box_algebra.decode(deltas, boxes)
    matching, background = 0.0, 0.0
    overlap = box_algebra.iou(target.objects, boxes)
    reached = box_algebra.iou(target.objects, predicted)
    for i, (box, label) in enumerate(zip(target.objects, target.object_labels, strict=True)):
        top, bottom = 0.0, 0.0
        for j in overlap[i].argsort(descending=True, stable=True)[: rule.bag].tolist():
            if overlap[i, j] == 0:
                continue
            off = deltas[j] - box_algebra.encode(box[None], boxes[j][None])[0]
            smooth = sum(
                float(0.5 * d * d / rule.box_beta if abs(d) < rule.box_beta else abs(d) - rule.box_beta / 2)
                for d in off
            )
            p = float(prob[j, label]) * math.exp(-rule.box_weight * smooth)
            top, bottom = top + p / (1 - p), bottom + 1 / (1 - p)
        matching -= math.log(top / bottom)
    for j in range(len(boxes)):
        for k in range(prob.shape[1]):
            taken = 0.0
            for i in torch.nonzero(target.object_labels == k).flatten().tolist():
                best = max(float(reached[i].max()), rule.iou + 1e-12)
                share = (float(reached[i, j]) - rule.iou) / max(best - rule.iou, 1e-7)
                taken = max(taken, min(max(share, 0.0), 1.0))
            p = float(prob[j, k]) * (1 - taken)
            background -= p**rule.gamma * math.log(1 - p)
    n = max(1, len(target.objects))
    return rule.alpha * matching / n, (1 - rule.alpha) * background / (n * rule.bag)


def test_equals_its_slow_twin():
    generator = torch.Generator().manual_seed(0)
    boxes = anchors(32)
    logits = torch.randn(len(boxes), 2, generator=generator)
    deltas = 0.1 * torch.randn(len(boxes), 4, generator=generator)
    target = targets([[3, 3, 12, 11], [14, 14, 28, 30], [20, 2, 24, 7]], [0, 1, 0])
    rule = FreeAnchorLoss(bag=9)
    found = rule(logits[None], deltas[None], boxes, [target])
    expected = slow(logits, deltas, boxes, target, rule)
    assert float(found["matching"]) == pytest.approx(expected[0], rel=1e-4)
    assert float(found["background"]) == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("middle", [(10.0, 10.0), (0.5, 0.5), (12.0, 30.25)])
def test_boxes_of_a_few_pixels_have_a_bag_and_a_gradient(side, middle):
    x, y = middle
    target = targets([[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
    boxes = anchors()
    rows, member = FreeAnchorLoss().bags(boxes, target.objects)
    inside = box_algebra.iou(target.objects, boxes)[0]
    assert member[0].sum() == min(50, int((inside > 0).sum()))
    assert (inside[rows[0][member[0]]] > 0).all()  # no anchor from elsewhere among the best 50
    logits = torch.full((1, len(boxes), 1), -4.6, requires_grad=True)
    deltas = torch.zeros(1, len(boxes), 4, requires_grad=True)
    found = FreeAnchorLoss()(logits, deltas, boxes, [target])
    found["matching"].backward()
    for gradient in (logits.grad, deltas.grad):
        assert torch.isfinite(gradient).all()
        assert gradient[0, rows[0][member[0]]].abs().sum() > 0
    assert logits.grad[0, rows[0][member[0]]].max() < 0  # every member is pulled up


def test_equal_centres_are_two_objects():
    boxes = anchors()
    pair = targets([[28, 28, 36, 36], [31, 31, 33, 33]], [0, 1])
    logits = torch.full((1, len(boxes), 2), -2.0, requires_grad=True)
    found = FreeAnchorLoss()(logits, torch.zeros(1, len(boxes), 4), boxes, [pair])
    found["matching"].backward()
    assert (logits.grad[0] < 0).any(0).tolist() == [True, True]


def test_images_without_objects_and_ignore_regions():
    boxes = anchors()
    logits, deltas = (
        torch.zeros(1, len(boxes), 1, requires_grad=True),
        torch.zeros(1, len(boxes), 4, requires_grad=True),
    )
    empty = FreeAnchorLoss()(logits, deltas, boxes, [targets([])])
    assert float(empty["matching"].detach()) == 0
    assert float(empty["background"].detach()) > 0
    (empty["matching"] + empty["background"]).backward()
    assert torch.isfinite(logits.grad).all()
    everything = FreeAnchorLoss()(logits, deltas, boxes, [targets([[-16.0, -16, 80, 80]], ignore=[True])])
    assert float(everything["background"].detach()) == 0
    both = FreeAnchorLoss()(
        torch.zeros(2, len(boxes), 1), torch.zeros(2, len(boxes), 4), boxes, [targets([]), targets([[1, 1, 3, 3]])]
    )
    assert all(torch.isfinite(v) for v in both.values())


def test_a_crowd_of_800():
    generator = torch.Generator().manual_seed(1)
    corner = 56 * torch.rand(800, 2, generator=generator)
    crowd = torch.cat([corner, corner + 1 + 7 * torch.rand(800, 2, generator=generator)], 1)
    boxes = anchors()
    target = Targets(crowd, torch.arange(800) % 2, torch.zeros(800, dtype=torch.bool))
    found = FreeAnchorLoss()(torch.zeros(1, len(boxes), 2), torch.zeros(1, len(boxes), 4), boxes, [target])
    assert all(torch.isfinite(v) and v >= 0 for v in found.values())


def test_it_takes_no_assigner():
    with torch.device("meta"):
        detector = build("free_anchor:resnet18", width=0.125, channels=32)
    with pytest.raises(UserError, match="FreeAnchorLoss matches anchors by itself"):
        detector.head.assigning_part()
