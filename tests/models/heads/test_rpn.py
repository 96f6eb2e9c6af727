"""Proposals for a graph are the proposals of the head, image by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from flyspeck.models.anchors import strided_anchors
from flyspeck.models.heads.rpn import RPN, ProposalRule
from flyspeck.types import FeatureSpec

FEATURES = (FeatureSpec(8, 4), FeatureSpec(8, 8))
SIZE = (64, 96)


def network(rule: ProposalRule) -> tuple[RPN, list[torch.Tensor]]:
    torch.manual_seed(0)
    rpn = RPN(FEATURES, anchors=strided_anchors(FEATURES), test_rule=rule).eval()
    torch.nn.init.normal_(rpn.objectness.weight, std=1.0)
    torch.nn.init.normal_(rpn.box_deltas.weight, std=0.5)
    return rpn, [torch.randn(3, 8, SIZE[0] // stride, SIZE[1] // stride) for stride in (4, 8)]


@pytest.mark.parametrize(
    "rule",
    [
        ProposalRule(pre_nms=60, keep=40),
        ProposalRule(pre_nms=60, keep=40, min_size=6.0),
        ProposalRule(pre_nms=60, keep=40, min_size=16.0),  # fewer than `keep` are left
        ProposalRule(pre_nms=60, keep=40, iou=0.3),
        ProposalRule(pre_nms=10_000, keep=10_000, min_size=12.0),
    ],
)
@torch.no_grad()
def test_a_graph_proposes_what_the_head_proposes(rule: ProposalRule) -> None:
    rpn, maps = network(rule)
    wanted, _ = rpn.propose(maps, SIZE, [SIZE] * 3)
    boxes, alive = rpn.propose_batch(maps, SIZE)
    for image, regions in enumerate(wanted):
        found = boxes[image][alive[image] > 0]
        assert len(found) == len(regions) > 0
        assert_close(found, regions)
        assert (found[:, 2:] - found[:, :2]).amin() >= rule.min_size


@torch.no_grad()
def test_proposals_below_the_smallest_side_are_dropped_in_a_graph_too() -> None:
    rpn, maps = network(ProposalRule(pre_nms=60, keep=120, iou=1.0))
    boxes, alive = rpn.propose_batch(maps, SIZE)
    sides = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
    limit = float(sides[alive > 0].median())  # half of them are shorter
    rpn.test_rule = replace(rpn.test_rule, min_size=limit)
    boxes, alive = rpn.propose_batch(maps, SIZE)
    sides = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
    assert (sides[alive > 0] >= limit).all()
    assert (sides[alive == 0] < limit).any()
