"""`tiny` suppression: after NMS, one box for each tiny object is the best, placed by all candidates: `flyspeck.one_object`.

NMS comes first, at the detector's own IoU, so that at most `max_detections` boxes are left to compare. The pass goes over the
best `MOST` of an image and lets the best `VOTERS` candidates vote: more would cost memory that grows with the square; whatever
ranks lower leaves as NMS lets it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck import one_object

MOST = 1000
"""Boxes of an image that are compared with each other, the best ones."""
VOTERS = 2000
"""Candidates of an image that vote, the best ones."""
ROUNDS = 16
"""Greedy suppression is settled in rounds: after k of them all boxes are that have fewer than k better ones in a row before them.
Longer rows do not occur after NMS; a graph needs a number."""


def one_box_each(
    boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows `kept` (best first, as NMS leaves them) in their new order, with their new boxes `(n, 4)` and scores `(n,)`.

    `boxes (N, 4)` xyxy pixels, `scores (N,)` and `labels (N,)` are all candidates of an image. Rows whose new score is not above
    `threshold` are left out.
    """
    head, moved, after = kept[:MOST], boxes[kept], scores[kept]
    stays = settle(*duplicates(boxes[head], labels[head]), len(head))
    voters = scores.topk(VOTERS).indices if len(scores) > VOTERS else slice(None)
    best = torch.nonzero(stays).squeeze(1)
    rows = head[best]
    moved[best] = placed(boxes[rows], labels[rows], boxes[voters], labels[voters], scores[voters])
    after[: len(head)] = torch.where(stays, after[: len(head)], one_object.DUPLICATE * after[: len(head)])
    order = after.argsort(descending=True, stable=True)
    order = order[after[order] > threshold]
    return kept[order], moved[order], after[order]


def meeting(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> Tensor:
    """`(n, m)` bool: which of `boxes (n, 4)` and `others (m, 4)` overlap, within a class; few do."""
    meet = labels[:, None] == other_labels[None]
    for low, high in ((0, 2), (1, 3)):
        meet &= boxes[:, None, low] < others[None, :, high]
        meet &= others[None, :, low] < boxes[:, None, high]
    return meet


def duplicates(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (i, j) of boxes, best first: i is better than j, of its class, and shows the same object."""
    i, j = torch.nonzero(meeting(boxes, labels, boxes, labels).triu(1), as_tuple=True)
    a, b = boxes[i], boxes[j]
    same = one_object.is_one(box_algebra.paired_intersection(a, b), box_algebra.area(a), box_algebra.area(b))
    return i[same], j[same]


def settle(i: Tensor, j: Tensor, number: int) -> Tensor:
    """`(number,)` bool: which rows stay, where a row `i` that stays removes its `j`, which is greater."""
    stays = torch.ones(number, dtype=torch.bool, device=i.device)
    for _ in range(ROUNDS):
        before, stays = stays, torch.ones_like(stays)
        stays[j[before[i]]] = False
        if torch.equal(stays, before):
            break
    return stays


def placed(boxes: Tensor, labels: Tensor, voters: Tensor, voter_labels: Tensor, scores: Tensor) -> Tensor:
    """`boxes (n, 4)` moved to the mean of the `voters (V, 4)` of their class, weighted by overlap and `scores (V,)`."""
    i, j = torch.nonzero(meeting(boxes, labels, voters, voter_labels), as_tuple=True)
    a, b = boxes[i], voters[j]
    weight = one_object.vote(box_algebra.paired_iou(a, b)) * scores[j]
    total = weight.new_zeros(len(boxes)).index_add(0, i, weight).clip(min=box_algebra.EPS)
    # Differences of pixels, not coordinates: they keep their digits in any precision.
    return boxes + torch.zeros_like(boxes).index_add(0, i, weight[:, None] * (b - a)) / total[:, None]


@torch.library.custom_op("flyspeck::tiny_suppression", mutates_args=())
def tiny_suppression(
    boxes: Tensor, scores: Tensor, kept: Tensor, labels: Tensor, threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """`one_box_each` for a batch, as one operator of a graph: boxes `(B, M, 4)` and scores `(B, M)` after the pass.

    `kept (B, M)` are the scores of what NMS leaves, 0 elsewhere; candidates are those of `scores (B, M)` above `threshold`. Of
    each image the best `limit` of `kept` go in, as in `postprocess.suppress`; what is left out has a score of 0.
    """
    moved, left = boxes.clone(), torch.zeros_like(kept)
    for image in range(boxes.shape[0]):
        rows = torch.nonzero(scores[image] > threshold).squeeze(1)
        best = kept[image, rows].argsort(descending=True, stable=True)
        best = best[kept[image, rows][best] > 0][:limit]
        stay, places, after = one_box_each(
            boxes[image, rows], scores[image, rows], labels[image, rows], best, threshold
        )
        moved[image, rows[stay]] = places
        left[image, rows[stay]] = after
    return moved, left


@tiny_suppression.register_fake
def _(
    boxes: Tensor, scores: Tensor, kept: Tensor, labels: Tensor, threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(boxes), torch.empty_like(kept)
