"""Which anchor learns which object: plain functions on boxes.

Every assigner returns `(A,)` int64: the row of the object that the anchor learns, `BACKGROUND` or `IGNORED`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra

BACKGROUND = -1
IGNORED = -2
# Largest block of overlaps held at once: 800 objects against 250,000 anchors would be 800 MB in one piece.
_BLOCK = 1 << 24


def max_iou_assign(
    anchors: Tensor,
    objects: Tensor,
    ignored: Tensor,
    *,
    foreground: float,
    background: float,
    low_quality: bool = True,
    ignore_iod: float = 0.5,
) -> Tensor:
    """Assignment by overlap (Faster R-CNN, sec. 3.1.2): `anchors (A, 4)`, `objects (N, 4)`, `ignored (N', 4)`.

    IoU >= `foreground` learns the best object; below `background` is background; between the two is ignored. With
    `low_quality`, each object also takes the anchors with which it overlaps best, however little: without it, objects of
    a few pixels get no anchor. An anchor that lies under an ignore region (IoD > `ignore_iod`) is never background.
    """
    assigned = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(objects):
        best_iou = torch.full((len(anchors),), -1.0, device=anchors.device)
        best = torch.zeros_like(assigned)
        rescued: list[tuple[Tensor, Tensor]] = []
        step = max(1, _BLOCK // max(len(anchors), 1))
        for start in range(0, len(objects), step):
            overlap = box_algebra.iou(objects[start : start + step], anchors)  # (n, A)
            value, row = overlap.max(0)
            better = value > best_iou
            best_iou = torch.where(better, value, best_iou)
            best = torch.where(better, row + start, best)
            if low_quality:
                top = overlap.max(1, keepdim=True).values
                n, a = torch.nonzero((overlap == top) & (top > 0), as_tuple=True)
                rescued.append((n + start, a))
        assigned[best_iou >= background] = IGNORED
        learns = best_iou >= foreground
        assigned[learns] = best[learns]
        for n, a in rescued:
            assigned[a] = n
    if len(ignored):
        assigned[(assigned == BACKGROUND) & under_ignored(anchors, ignored, ignore_iod)] = IGNORED
    return assigned


def under_ignored(boxes: Tensor, ignored: Tensor, threshold: float = 0.5) -> Tensor:
    """`(A,)` bool: more than `threshold` of the box's own area lies under one ignore region."""
    if len(ignored) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return box_algebra.iod(boxes, ignored).amax(1) > threshold


def sample_balanced(
    assigned: Tensor, *, count: int, positive_share: float, negative_weight: Tensor | None = None
) -> Tensor:
    """Rows of at most `count` anchors, at most `positive_share` of them positive, the rest background, drawn at random.

    `negative_weight (A,)` makes the draw of negatives follow weights (SSPNet's weighted negative sampling).
    """
    positive = torch.nonzero(assigned >= 0).squeeze(1)
    negative = torch.nonzero(assigned == BACKGROUND).squeeze(1)
    num_positive = min(len(positive), int(count * positive_share))
    num_negative = min(len(negative), count - num_positive)
    positive = positive[torch.randperm(len(positive), device=positive.device)[:num_positive]]
    if negative_weight is not None and num_negative < len(negative):
        negative = negative[torch.multinomial(negative_weight[negative], num_negative)]
    else:
        negative = negative[torch.randperm(len(negative), device=negative.device)[:num_negative]]
    return torch.cat([positive, negative])
