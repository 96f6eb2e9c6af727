"""Assignment: worked examples, a slow twin, and the boxes that starve elsewhere."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flyspeck.models.assign as assign_module
from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND, IGNORED, max_iou_assign, sample_balanced, under_ignored

NOTHING = torch.zeros(0, 4)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_worked_example() -> None:
    anchors = boxes((0, 0, 8, 8), (0, 0, 8, 12), (0, 0, 8, 20), (40, 40, 48, 48))
    # IoU with (0,0,8,8): 1, 8*8/96 = .667, .4, 0.
    assigned = max_iou_assign(anchors, boxes((0, 0, 8, 8)), NOTHING, foreground=0.7, background=0.3)
    assert assigned.tolist() == [0, IGNORED, IGNORED, BACKGROUND]


def test_a_two_pixel_object_still_gets_its_best_anchor() -> None:
    anchors = boxes((0, 0, 8, 8), (8, 0, 16, 8))
    assigned = max_iou_assign(anchors, boxes((3, 3, 5, 5)), NOTHING, foreground=0.5, background=0.4)
    assert assigned.tolist() == [0, BACKGROUND]  # IoU 4/64
    without = max_iou_assign(anchors, boxes((3, 3, 5, 5)), NOTHING, foreground=0.5, background=0.4, low_quality=False)
    assert without.tolist() == [BACKGROUND, BACKGROUND]


def test_areas_of_16_and_20_do_not_tie() -> None:
    # One anchor over two objects of almost the same area: the better overlap wins, not the order.
    anchors = boxes((0, 0, 4, 5))
    for objects, best in ((boxes((0, 0, 4, 4), (0, 0, 4, 5)), 1), (boxes((0, 0, 4, 5), (0, 0, 4, 4)), 0)):
        assigned = max_iou_assign(anchors, objects, NOTHING, foreground=0.5, background=0.4, low_quality=False)
        assert assigned.tolist() == [best]


def test_an_anchor_under_an_ignore_region_is_never_background() -> None:
    anchors = boxes((0, 0, 8, 8), (20, 0, 28, 8), (26, 0, 34, 8))
    ignored = boxes((20, 0, 30, 10))  # covers the second anchor whole, the third half: 4/8 is not more than half
    assigned = max_iou_assign(anchors, boxes((0, 0, 8, 8)), ignored, foreground=0.7, background=0.3)
    assert assigned.tolist() == [0, IGNORED, BACKGROUND]


def test_an_object_inside_an_ignore_region_is_still_learnt() -> None:
    anchors = boxes((2, 2, 6, 6))
    assigned = max_iou_assign(anchors, boxes((2, 2, 6, 6)), boxes((0, 0, 50, 50)), foreground=0.7, background=0.3)
    assert assigned.tolist() == [0]


def test_only_ignore_regions_and_nothing_at_all() -> None:
    anchors = boxes((0, 0, 8, 8), (100, 0, 108, 8))
    assert max_iou_assign(anchors, NOTHING, boxes((0, 0, 9, 9)), foreground=0.5, background=0.4).tolist() == [
        IGNORED,
        BACKGROUND,
    ]
    assert max_iou_assign(anchors, NOTHING, NOTHING, foreground=0.5, background=0.4).tolist() == [BACKGROUND] * 2
    assert not under_ignored(anchors, NOTHING).any()


def slow_twin(anchors: Tensor, objects: Tensor, foreground: float, background: float) -> list[int]:
    iou = box_algebra.iou(objects, anchors)
    result = []
    for a in range(len(anchors)):
        best, row = -1.0, BACKGROUND
        for n in range(len(objects)):
            if iou[n, a] > best:
                best, row = float(iou[n, a]), n
        result.append(row if best >= foreground else IGNORED if best >= background else BACKGROUND)
    for n in range(len(objects)):
        top = float(iou[n].max())
        for a in range(len(anchors)):
            if top > 0 and float(iou[n, a]) == top:
                result[a] = n
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 40), st.sampled_from([8, 1 << 24]))
def test_equals_the_slow_twin_whatever_the_block(seed: int, num_objects: int, num_anchors: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some(n: int) -> Tensor:
        corner = torch.randint(0, 24, (n, 2), generator=generator).float()
        return torch.cat([corner, corner + torch.randint(1, 9, (n, 2), generator=generator)], 1)

    anchors, objects = some(num_anchors), some(num_objects)
    before = assign_module._BLOCK
    assign_module._BLOCK = block
    try:
        fast = max_iou_assign(anchors, objects, NOTHING, foreground=0.5, background=0.3)
    finally:
        assign_module._BLOCK = before
    assert fast.tolist() == slow_twin(anchors, objects, 0.5, 0.3)


def test_sampling_keeps_its_shares_and_never_draws_ignored() -> None:
    assigned = torch.tensor([0] * 10 + [BACKGROUND] * 50 + [IGNORED] * 40)
    rows = sample_balanced(assigned, count=16, positive_share=0.25)
    assert len(rows) == 16
    assert int((assigned[rows] >= 0).sum()) == 4
    assert not (assigned[rows] == IGNORED).any()
    few = sample_balanced(torch.tensor([0, BACKGROUND, IGNORED]), count=16, positive_share=0.5)
    assert sorted(few.tolist()) == [0, 1]


def test_weighted_negatives_follow_their_weights() -> None:
    assigned = torch.full((20,), BACKGROUND)
    weight = torch.zeros(20)
    weight[5:9] = 1
    assert sorted(sample_balanced(assigned, count=4, positive_share=0.5, negative_weight=weight).tolist()) == [
        5,
        6,
        7,
        8,
    ]
