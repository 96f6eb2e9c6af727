"""Which anchor learns which object: plain functions on boxes.

Every assigner returns `(A,)` int64: the row of the object that the anchor learns, `BACKGROUND` or `IGNORED`. The
interchangeable ones that a recipe names are in `models.assigners`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra

BACKGROUND = -1
IGNORED = -2
# Most pairs looked at at once: 800 objects against 250,000 anchors would be 800 MB for each number of a pair.
_BLOCK = 1 << 22

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Boxes `(N, 4)` and `(M, 4)` to `(N, M)`: 1 for equal boxes, less for others, 0 for strangers."""


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
    return max_similarity_assign(
        anchors,
        objects,
        ignored,
        similarity=box_algebra.iou,
        foreground=foreground,
        background=background,
        low_quality=low_quality,
        ignore_iod=ignore_iod,
    )


def max_similarity_assign(
    anchors: Tensor,
    objects: Tensor,
    ignored: Tensor,
    *,
    similarity: Similarity,
    foreground: float,
    background: float,
    low_quality: bool = True,
    ignore_iod: float = 0.5,
) -> Tensor:
    """`max_iou_assign` with another `similarity` of boxes in place of IoU."""
    assigned = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(objects):
        best_value = torch.full((len(anchors),), -1.0, device=anchors.device)
        best = torch.zeros_like(assigned)
        rescued: list[tuple[Tensor, Tensor]] = []
        step = object_block(anchors)
        for start in range(0, len(objects), step):
            values = similarity(objects[start : start + step], anchors)  # (n, A)
            value, row = values.max(0)
            better = value > best_value
            best_value = torch.where(better, value, best_value)
            best = torch.where(better, row + start, best)
            if low_quality:
                top = values.max(1, keepdim=True).values
                n, a = torch.nonzero((values == top) & (top > 0), as_tuple=True)
                rescued.append((n + start, a))
        assigned[best_value >= background] = IGNORED
        learns = best_value >= foreground
        assigned[learns] = best[learns]
        for n, a in rescued:
            assigned[a] = n
    spare_ignored(assigned, anchors, ignored, ignore_iod)
    return assigned


def object_block(anchors: Tensor) -> int:
    """How many objects to look at at once against all `anchors (A, 4)`, so that memory stays bounded."""
    return max(1, _BLOCK // max(len(anchors), 1))


def spare_ignored(assigned: Tensor, anchors: Tensor, ignored: Tensor, threshold: float = 0.5) -> None:
    """Turns, in place, background that lies under `ignored (N', 4)` into `IGNORED`."""
    if len(ignored):
        assigned[(assigned == BACKGROUND) & under_ignored(anchors, ignored, threshold)] = IGNORED


def under_ignored(boxes: Tensor, ignored: Tensor, threshold: float = 0.5) -> Tensor:
    """`(A,)` bool: more than `threshold` of the box's own area lies under one ignore region."""
    if len(ignored) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    step = object_block(boxes)
    under = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(ignored), step):
        under |= box_algebra.iod(boxes, ignored[start : start + step]).amax(1) > threshold
    return under


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
