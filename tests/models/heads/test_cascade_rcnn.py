"""Cascade R-CNN: the chain of stages, and boxes of a few pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.heads.cascade_rcnn import CascadeRCNNHead, stage_box_weights
from flyspeck.models.heads.roi import BoxHead, RoIPool
from flyspeck.models.heads.rpn import RPN, ProposalRule
from flyspeck.models.postprocess import Suppression
from flyspeck.types import FeatureSpec, Targets

STRIDES = (4, 8, 16, 32, 64)
PADDED = (128, 192)
FEATURES = [FeatureSpec(16, s) for s in STRIDES]


def head(num_classes: int = 2, **options) -> CascadeRCNNHead:
    torch.manual_seed(0)
    few = ProposalRule(pre_nms=60, keep=40)
    return CascadeRCNNHead(
        rpn=RPN(FEATURES, anchors=strided_anchors(FEATURES), train_rule=few, test_rule=few, samples=32),
        pool=RoIPool(STRIDES[:4], output=3, canonical=64.0),
        box_heads=[BoxHead(16 * 9, hidden=16, num_classes=num_classes, class_agnostic=True) for _ in range(3)],
        samples=32,
        **options,
    )


def maps(batch: int = 1) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 16, -(-PADDED[0] // s), -(-PADDED[1] // s)) for s in STRIDES]


def target(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None) -> Targets:
    n = len(boxes)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([0] * n if labels is None else labels, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
    )


def test_a_stages_targets_are_finer_than_the_one_befores():
    assert stage_box_weights(0) == (10, 10, 5, 5)
    assert stage_box_weights(2) == (30, 30, 15, 15)
    # A box 1 px off an 8-px anchor: 1/8 of its width, times 10, times 20.
    box, anchor = torch.tensor([[1.0, 0, 9, 8]]), torch.tensor([[0.0, 0, 8, 8]])
    assert_close(box_algebra.encode(box, anchor, stage_box_weights(1))[0, 0], torch.tensor(20 / 8))


@pytest.mark.parametrize(("offset", "labels"), [(0.0, (1, 1, 1)), (2.2, (1, 1, 0)), (2.6, (1, 0, 0)), (4.0, (0, 0, 0))])
def test_each_stage_asks_for_more_overlap(offset, labels):
    """A 10x10 proposal shifted by d has IoU (10 - d)/(10 + d): 1, 0.639, 0.587, 0.429; the stages ask for 0.5, 0.6, 0.7."""
    cascade = head(num_classes=1)
    proposal = torch.tensor([[20 + offset, 20, 30 + offset, 30]])
    for stage in range(3):
        region, label, _, added = cascade._sample(stage, proposal, target([[20, 20, 30, 30]]))
        mine = label[~added]
        assert len(region) == 2
        assert (mine == 0).int().tolist() == [labels[stage]]
        assert label[added].tolist() == [0]


class _Scripted(nn.Module):
    """A box head that says the same of every region."""

    num_classes, class_agnostic = 1, True

    def __init__(self, delta: tuple[float, float, float, float], probability: float) -> None:
        super().__init__()
        self.delta, self.probability = torch.tensor(delta), probability

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logit = torch.tensor([self.probability, 1 - self.probability]).log()
        return logit.expand(len(pooled), 2), self.delta.expand(len(pooled), 1, 4)


def test_boxes_are_refined_stage_by_stage_and_scores_are_averaged():
    cascade = head(num_classes=1, suppression=Suppression(score=0.01))
    # Stage 1 moves by 10/10 = 1 width to the right, stage 2 by 10/20, stage 3 doubles the width: exp(15 ln2 / 15).
    log2 = float(torch.tensor(2.0).log())
    cascade.box_heads = nn.ModuleList(
        [_Scripted((10, 0, 0, 0), 0.9), _Scripted((10, 0, 0, 0), 0.6), _Scripted((0, 0, 15 * log2, 0), 0.3)]
    )
    cascade.rpn.propose = lambda *a, **k: ([torch.tensor([[20.0, 20, 30, 30]])], {})  # type: ignore[method-assign]
    found = cascade.detect(maps(), PADDED, [PADDED])[0]
    # 20..30 -> 30..40 -> 35..45 -> twice as wide around 40: 30..50.
    assert_close(found.boxes, torch.tensor([[30.0, 20, 50, 30]]), rtol=0, atol=1e-4)
    assert_close(found.scores, torch.tensor([0.6]))


def test_added_objects_do_not_go_on_as_proposals():
    cascade, seen = head(), []
    sample = cascade._sample

    def watch(stage, proposals, given):
        seen.append(len(proposals))
        return sample(stage, proposals, given)

    cascade._sample = watch  # type: ignore[method-assign]
    objects = target([[20, 20, 24, 24], [60, 60, 66, 64]], [0, 1])
    cascade.losses(maps(), [objects], PADDED, [PADDED])
    assert seen[0] == 40
    assert all(later <= 32 for later in seen[1:])


@pytest.mark.parametrize(
    "given_target",
    [
        target([]),
        target([[10, 10, 11, 11], [10, 10, 11, 11]], [0, 1]),
        target([[0, 0, 128, 96]], [-1], [True]),
        target([[3, 3, 4.5, 5], [190, 126, 192, 128]], [0, 1]),
        target([[10.0 + i % 30 * 5, 4.0 + i // 30 * 4, 13.0 + i % 30 * 5, 8.0 + i // 30 * 4] for i in range(800)]),
    ],
    ids=["none", "two-on-one-spot", "only-ignored", "a-pixel-or-two", "800"],
)
def test_losses_are_finite_and_reach_every_stage(given_target):
    cascade = head()
    losses = cascade.losses(maps(), [given_target], PADDED, [PADDED])
    assert set(losses) == {"rpn_objectness", "rpn_box"} | {
        f"{n}_{s}" for n in ("classification", "box") for s in (1, 2, 3)
    }
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in cascade.parameters())
    with torch.no_grad():
        found = cascade.detect(maps(), PADDED, [(100, 150)])[0]
    assert torch.isfinite(found.boxes).all()
    assert not len(found.boxes) or float(found.boxes[:, 2].max()) <= 150


def test_a_region_under_an_ignore_region_is_no_background():
    proposals = torch.tensor([[10.0, 10, 20, 20], [100, 100, 110, 110]])
    region, label, _, _ = head(num_classes=1)._sample(0, proposals, target([[0, 0, 50, 50]], [-1], [True]))
    assert region.tolist() == [[100, 100, 110, 110]]
    assert label.tolist() == [1]


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one of each per stage"):
        head(foreground=(0.5, 0.6))
    rpn = RPN(FEATURES, anchors=strided_anchors(FEATURES))
    per_class = [BoxHead(16, hidden=4, num_classes=2)] * 3
    with pytest.raises(ValueError, match="class-agnostic"):
        CascadeRCNNHead(rpn=rpn, pool=RoIPool(STRIDES), box_heads=per_class)
