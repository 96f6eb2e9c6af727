"""Soft-NMS: a worse box that overlaps a better one loses score instead of its life. Bodla et al., 2017, arXiv:1704.04503.

Crowded tiny objects overlap for real; SSPNet's authors use the linear form at 0.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra

SoftMethod = Literal["linear", "gaussian"]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: SoftMethod = "linear",
    iou: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    limit: int = 500,
) -> tuple[Tensor, Tensor]:
    """Kept rows, best first, and their lowered scores, of `boxes (N, 4)`, `scores (N,)`, `labels (N,)`.

    Within a class, each box taken multiplies the scores of the others by `1 - IoU` where that exceeds `iou` (linear,
    the paper's pruning step), or by `exp(-IoU²/sigma)` (Gaussian, eq. 3). It ends at `limit` boxes, or below `min_score`.
    """
    left = scores.clone()
    rows: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(min(limit, len(boxes))):
        value, row = left.max(0)
        if value < min_score:
            break
        rows.append(row)
        values.append(value)
        overlap = box_algebra.iou(boxes[row][None], boxes)[0] * (labels == labels[row])
        if method == "linear":
            left = left * torch.where(overlap > iou, 1 - overlap, torch.ones_like(overlap))
        else:
            left = left * torch.exp(-(overlap**2) / sigma)
        left[row] = -1
    if not rows:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device), scores[:0]
    return torch.stack(rows), torch.stack(values)
