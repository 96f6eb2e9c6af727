"""Suppression in blocks keeps the very boxes of torchvision and of a plain loop, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import nms

from flyspeck.models.blocked_nms import batched_nms, blocked_nms


def slowly(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> list[int]:
    """Greedy suppression, box by box, in float32: boxes on whole pixels overlap by exactly 0.3, which its rounding decides."""
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda r: (-float(scores[r]), r)):
        b = boxes[row]
        for other in kept:
            a = boxes[other]
            shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clip(min=0).prod()
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
            if float(shared / union) > iou:
                break
        else:
            kept.append(row)
    return kept


def clouds(seed: int, number: int, *, extent: float = 200.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clumps of boxes of 1 to 64 px, whole ones that lie on each other and elongated ones among them; scores with ties."""
    draw = torch.Generator().manual_seed(seed)
    clumps = torch.rand(max(1, number // 30), 2, generator=draw) * extent
    middle = clumps[torch.randint(len(clumps), (number,), generator=draw)]
    side = 2 ** (6 * torch.rand(number, 1, generator=draw)) * 2 ** (2 * torch.rand(number, 2, generator=draw) - 1)
    middle = middle + side * (torch.rand(number, 2, generator=draw) - 0.5)
    boxes = torch.cat([middle - side / 2, middle + side / 2], 1)
    boxes[::3] = boxes[::3].round()
    return boxes, torch.randint(1, 200, (number,), generator=draw) / 200


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.3, 0.45, 0.5, 0.7, 0.95]),
    st.sampled_from([1, 3, 20]),
)
def test_any_blocks_keep_what_a_plain_loop_keeps(seed, number, iou, block):
    boxes, scores = clouds(seed, number)
    assert blocked_nms(boxes, scores, iou, few=0, block=block).tolist() == slowly(boxes, scores, iou)


@pytest.mark.parametrize("iou", [0.5])
def test_many_boxes_as_torchvision_keeps_them(iou):
    boxes, scores = clouds(7, 9_000, extent=1500.0)
    assert torch.equal(blocked_nms(boxes, scores, iou), nms(boxes, scores, iou))
    labels = torch.arange(len(boxes)) % 3
    found, expected = batched_nms(boxes, scores, labels, iou), torchvision_batched_nms(boxes, scores, labels, iou)
    assert set(found.tolist()) == set(expected.tolist())
    assert torch.equal(scores[found], scores[expected])
    # ... of equal scores the first row is first, which torchvision leaves open here.
    assert all(a < b for a, b in zip(found.tolist(), found.tolist()[1:], strict=False) if scores[a] == scores[b])


def test_a_row_in_which_each_box_hangs_on_the_one_before_crosses_all_blocks():
    # Boxes of 8 px every 2 px, each a little worse: IoU 6/10 with the next, 4/12 with the one after. Every second one stays, and
    # whether the last does is known only when all others are.
    x = 2.0 * torch.arange(101)
    boxes = torch.stack([x, torch.zeros(101), x + 8, torch.full((101,), 8.0)], 1)
    scores = torch.linspace(0.9, 0.1, 101)
    assert blocked_nms(boxes, scores, 0.5, few=0, block=3).tolist() == list(range(0, 101, 2))


def test_odd_boxes():
    # Without area, one pixel large, far outside, of no number: torchvision says what becomes of them.
    boxes = torch.tensor(
        [[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 1, 1], [0, 0, 1, 1], [-1e6, 0, -1e6 + 8, 8], [0, 0, 3000, 2000]]
    ).repeat(20, 1)
    scores = torch.linspace(1, 0.1, len(boxes))
    assert torch.equal(blocked_nms(boxes, scores, 0.5, few=0, block=2), nms(boxes, scores, 0.5))
    boxes[3] = torch.nan
    assert torch.equal(blocked_nms(boxes, scores, 0.5, few=0, block=2), nms(boxes, scores, 0.5))
    none = torch.zeros(0, 4), torch.zeros(0)
    assert blocked_nms(*none, 0.5, few=-1).shape == (0,)
    assert batched_nms(*none, torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


def test_boxes_of_a_graph_are_suppressed_without_a_warning():  # as `explain` asks for: warnings are errors here
    boxes = torch.rand(200, 4).mul(50)
    boxes[:, 2:] += boxes[:, :2] + 1
    scores = torch.linspace(1, 0.1, 200)
    found = blocked_nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5, few=0, block=30)
    assert found.tolist() == blocked_nms(boxes.detach(), scores.detach(), 0.5, few=0, block=30).tolist()
