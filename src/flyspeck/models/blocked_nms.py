"""Non-maximum suppression of very many boxes on a CPU: the same boxes as torchvision's, in blocks of an image.

torchvision compares every box that stays with all that are worse, wherever they are: of a hundred thousand candidates of a large
image that is most of the time of a detector. But boxes suppress each other only where they meet, and, at an IoU above t, only if
their areas differ by less than a factor 1/t. So boxes of like size and place are a block, and a block is suppressed alone, beside
what stays of the blocks around it. That is not known at first: blocks are done again until nothing around them changes.

What is found then is greedy suppression exactly, whatever the blocks. By induction from the best box on: if all better boxes are
right, then in its block each of them stays or not as it should, and so does the box itself, since all that can suppress it are
of its block or around it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms as plain_batched_nms
from torchvision.ops import nms

from flyspeck import boxes as box_algebra

FEW = 4000
"""Boxes that are quicker to compare at once."""
BLOCK = 1000
"""Boxes of a block, on average."""


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, *, few: int = FEW) -> Tensor:
    """torchvision's `batched_nms`: rows of `boxes (N, 4)` that stay, best first, suppressed within their label `(N,)`."""
    if boxes.device.type != "cpu" or len(boxes) <= few:
        return plain_batched_nms(boxes, scores, labels, iou)
    stays = torch.zeros(len(boxes), dtype=torch.bool)
    for label in labels.unique():
        rows = torch.nonzero(labels == label).squeeze(1)
        stays[rows[blocked_nms(boxes[rows], scores[rows], iou, few=few)]] = True
    kept = torch.nonzero(stays).squeeze(1)
    return kept[scores[kept].argsort(descending=True, stable=True)]


def blocked_nms(boxes: Tensor, scores: Tensor, iou: float, *, few: int = FEW, block: int = BLOCK) -> Tensor:
    """torchvision's `nms`: rows of `boxes (N, 4)` that stay, best first; of equal scores the first is the better."""
    if boxes.device.type != "cpu" or len(boxes) <= max(few, 1) or iou <= 0 or not boxes.isfinite().all():
        return nms(boxes, scores, iou)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]  # from here on a row is a rank
    areas = box_algebra.area(boxes)
    block_of = _block_of(boxes, areas, block)
    blocks = [own.sort().values for own in block_of.argsort(stable=True).split(block_of.bincount().tolist())]
    reach = [_reach(boxes[own], areas[own], iou) for own in blocks]
    columns = torch.cat([boxes.T, areas[None]])
    around: list[Tensor | None] = [None] * len(blocks)
    stays = torch.zeros(len(boxes), dtype=torch.bool)
    changed = True
    while changed:
        changed = False
        kept = torch.nonzero(stays).squeeze(1)
        of_kept, in_block = columns[:, kept], block_of[kept]
        for number, own in enumerate(blocks):
            near = kept[_within(of_kept, reach[number]) & (in_block != number)]
            before, rows = around[number], own
            if before is not None:
                first = _first_difference(before, near)
                if first is None:
                    continue
                # What is better than all that changed stays or not as before; what of it is gone already suppresses nothing.
                rows = own[stays[own] | (own > first)]
            around[number], changed = near, True
            rows = torch.cat([rows, near]).sort().values
            left = rows[nms(boxes[rows], scores[rows], iou)]
            stays[own] = False
            stays[left[block_of[left] == number]] = True
    return order[torch.nonzero(stays).squeeze(1)]


def _first_difference(before: Tensor, after: Tensor) -> int | None:
    """The smallest number that is in one of two sorted sets and not in the other."""
    both = min(len(before), len(after))
    unlike = torch.nonzero(before[:both] != after[:both])
    if len(unlike):
        return min(int(before[unlike[0]]), int(after[unlike[0]]))
    longer = before if len(before) > both else after
    return int(longer[both]) if len(longer) > both else None


def _block_of(boxes: Tensor, areas: Tensor, block: int) -> Tensor:
    """`(N,)` int64, from 0: the block of each box: its size by octaves, and a square of the image that holds its centre.

    A square with more boxes than `block` is quartered, but not so often that most of its boxes reach out of it.
    """
    octave = areas.clip(min=1e-6).log2().div(2).floor().long()
    x, y = ((column - column.min()).double() for column in box_algebra.center(boxes).unbind(1))
    extent = float(torch.maximum(x, y).detach().amax()) + 1
    found, number = torch.zeros(len(boxes), dtype=torch.int64), 0
    for size in octave.unique().tolist():
        rows = torch.nonzero(octave == size).squeeze(1)
        least = 4 * 2.0**size
        halvings = max(0, math.ceil(math.log2(extent / least)))
        side, columns = least * 2.0**halvings, 2**halvings
        while len(rows):
            cells = y[rows].div(side).long() * columns + x[rows].div(side).long()
            _, cell, counts = cells.unique(return_inverse=True, return_counts=True)
            done = (counts <= block) | (side <= least)
            names = number + done.cumsum(0) - 1
            found[rows] = names[cell]
            number += int(done.sum())
            rows, side = rows[~done[cell]], side / 2
    return found


def _reach(boxes: Tensor, areas: Tensor, iou: float) -> tuple[Tensor, ...]:
    """What meets a block: the rectangle about its `boxes (n, 4)`, and the areas between which an IoU above `iou` is possible."""
    slack = 1 + 1e-3  # of rounding
    return (
        *boxes[:, :2].amin(0),
        *boxes[:, 2:].amax(0),
        areas.min() * iou / slack,
        areas.max() / iou * slack,
    )


def _within(columns: Tensor, reach: tuple[Tensor, ...]) -> Tensor:
    """Which boxes, `columns (5, n)` of x1, y1, x2, y2 and area, may suppress one of a block that has this `reach`."""
    x1, y1, x2, y2, area = columns
    left, top, right, bottom, low, high = reach
    return (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top) & (area > low) & (area < high)
