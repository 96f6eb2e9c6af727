"""Which query learns which object: one each, by the least cost of all pairs (DETR, Carion et al., 2020, arXiv:2005.12872).

The published cost of a pair weighs its score, the L1 distance of the boxes as shares of the image, and their GIoU. For an
object of 3 px the L1 distance hardly tells a box on it from one beside it, as 3 px are a hundredth of the image, and GIoU
hardly tells 6 px off from 30. So NWD (Wang et al., 2021, arXiv:2110.13389) joins them, which has the objects' own scale. A
query without an object that lies under an ignore region is not punished for what it finds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.errors import missing_extra
from flyspeck.models.assign import BACKGROUND, spare_ignored
from flyspeck.models.assigners.nwd import AITOD_SIZE, nwd
from flyspeck.types import Targets

_ALPHA, _GAMMA = 0.25, 2.0  # of the focal cost of a score, as published


@dataclass(frozen=True)
class MatchCost:
    """Weights of the parts of a pair's cost."""

    score: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    nwd: float = 2.0
    nwd_constant: float = AITOD_SIZE
    """NWD's C in px."""


def pair_cost(
    logits: Tensor, boxes: Tensor, objects: Tensor, labels: Tensor, *, size: tuple[int, int], cost: MatchCost
) -> Tensor:
    """`(Q, N)`: of queries with `logits (Q, K)` and `boxes (Q, 4)`, for `objects (N, 4)`; xyxy px of a batch of `size` (H, W)."""
    score = logits.sigmoid()[:, labels]
    missed = _ALPHA * (1 - score) ** _GAMMA * -(score + 1e-8).log()
    said = (1 - _ALPHA) * score**_GAMMA * -(1 - score + 1e-8).log()
    total = cost.score * (missed - said)
    scale = boxes.new_tensor([size[1], size[0]]).repeat(2)
    total += cost.l1 * torch.cdist(_centred(boxes) / scale, _centred(objects) / scale, p=1)
    total -= cost.giou * box_algebra.giou(boxes, objects)
    return total - cost.nwd * nwd(boxes, objects, constant=cost.nwd_constant)


def match(
    logits: Tensor, boxes: Tensor, targets: Sequence[Targets], *, size: tuple[int, int], cost: MatchCost
) -> Tensor:
    """`(B, Q)`: the row of its image's objects that a query learns, `BACKGROUND` or `IGNORED`; an object has one query at most.

    `logits (B, Q, K)` and `boxes (B, Q, 4)` xyxy px of a batch of `size` (H, W).
    """
    found = torch.full(logits.shape[:2], BACKGROUND, device=logits.device)
    for rows, own, box, target in zip(found, logits.detach().float(), boxes.detach().float(), targets, strict=True):
        if len(target.objects):
            pairs = pair_cost(own, box, target.objects, target.object_labels, size=size, cost=cost)
            query, row = least(pairs)
            rows[query] = row
        spare_ignored(rows, box, target.ignored)
    return found


def least(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the one-to-one choice with the least sum; what is not finite is chosen last."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise missing_extra("scipy", "detr") from None
    # Far above every cost that is one, and far below what a sum would lose digits by.
    values = torch.nan_to_num(pairs, nan=1e6, posinf=1e6, neginf=1e6)
    chosen: Any = linear_sum_assignment(values.cpu().numpy())
    row, column = (torch.as_tensor(part, dtype=torch.int64, device=pairs.device) for part in chosen)
    return row, column


def _centred(boxes: Tensor) -> Tensor:
    """Boxes xyxy to centre and sides."""
    return torch.cat([box_algebra.center(boxes), boxes[..., 2:] - boxes[..., :2]], -1)
