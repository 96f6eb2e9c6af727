"""RoIAlign over a pyramid: He et al., 2017, arXiv:1703.06870, section 3, with torchvision's rules at the borders.

On the CPU every bin is a weighted sum of a few cells of the maps, and `embedding_bag` computes all such sums
at once, over channels that lie side by side. A region of some pixels has bins smaller than a cell, whose sampling points
share cells; those are added up first. Several times as fast as a kernel that goes channel by channel and point by point,
most of all backwards (benchmarks/roi_align.py). Elsewhere torchvision's own kernel runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def pyramid_roi_align(
    maps: Sequence[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool
) -> Tensor:
    """RoIAlign of each region on the map of its level: `maps[l] (B, C, H_l, W_l)`, `regions (R, 5)` to `(R, C, S, S)`
    float32.

    A region is (image, x1, y1, x2, y2), in cells of the map that `level (R,)` names; S is `output`. Each bin is the mean
    of `sampling` x `sampling` points. With `aligned`, cell centres lie at halves; without, at integers, and no side
    is shorter than one cell.
    """
    pool = weighted_cells if maps[0].device.type == "cpu" else torchvision_roi_align
    parts, rows = [], []
    for i, cells in enumerate(maps):
        own = torch.nonzero(level == i).squeeze(1)
        if len(own):
            rows.append(own)
            parts.append(pool(cells.float(), regions[own], output, sampling, aligned).permute(0, 2, 3, 1).flatten(1))
    if not parts:
        return maps[0].new_zeros(0, maps[0].shape[1], output, output, dtype=torch.float32)
    # Back in order by one copy of whole rows, forwards and backwards, whose channels lie side by side as in `weighted_cells`.
    pooled = torch.cat(parts).index_select(0, torch.cat(rows).argsort())
    return pooled.view(len(regions), output, output, -1).permute(0, 3, 1, 2)


def torchvision_roi_align(cells: Tensor, regions: Tensor, output: int, sampling: int, aligned: bool) -> Tensor:
    """RoIAlign on one map `(B, C, H, W)` by torchvision's kernel."""
    return roi_align(cells, regions, output, 1.0, sampling, aligned)


def weighted_cells(cells: Tensor, regions: Tensor, output: int, sampling: int, aligned: bool) -> Tensor:
    """RoIAlign on one map `(B, C, H, W)` as a sparse product: torchvision's numbers, up to rounding."""
    count, (_, channels, height, width) = len(regions), cells.shape
    with torch.no_grad():
        x1, y1, x2, y2 = regions[:, 1:].unbind(1)
        column, across = _axis(x1, x2, width, output, sampling, aligned)
        row, down = _axis(y1, y2, height, output, sampling, aligned)
        weight = (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten()
        row = row * width + regions[:, :1, None].long() * (height * width)
        index = (row[:, :, None, :, None] + column[:, None, :, None, :]).flatten()
        used = weight != 0
        ends = used.view(count * output * output, -1).sum(1).cumsum(0)
    bins = F.embedding_bag(
        index[used],
        cells.permute(0, 2, 3, 1).reshape(-1, channels),
        F.pad(ends, (1, 0)),
        mode="sum",
        per_sample_weights=weight[used].to(cells.dtype),
        include_last_offset=True,
    )
    return bins.view(count, output, output, channels).permute(0, 3, 1, 2)


def _axis(low: Tensor, high: Tensor, size: int, output: int, sampling: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Cells `(R, S, 2 * sampling)` along one axis that the bins from `low` to `high` `(R,)` read, and their weights.

    Points up to one cell outside the map read its border, points farther off read nothing (weight 0). Where two points
    of a bin read the same cell, one of the two entries has all of the weight and the other 0.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
    side = high - low if aligned else (high - low).clamp(min=1)
    step = (side / output)[:, None, None]
    within = torch.arange(sampling, device=low.device) + 0.5
    # In torchvision's order of operations, so that a point at a border falls on the same side of it.
    point = low[:, None, None] + torch.arange(output, device=low.device)[:, None] * step + within * step / sampling
    inside = (point >= -1) & (point <= size)
    point = point.clamp(0, size - 1)
    cell = point.floor()
    share = inside.to(point.dtype) / sampling
    near, far = (1 - (point - cell)) * share, (point - cell) * share
    cell = cell.long()
    for i in range(1, sampling):
        same, next_ = cell[..., i] == cell[..., i - 1], cell[..., i] == cell[..., i - 1] + 1
        moved = torch.where(same, near[..., i - 1], torch.where(next_, far[..., i - 1], 0.0))
        near[..., i] += moved
        far[..., i] += torch.where(same, far[..., i - 1], 0.0)
        near[..., i - 1].masked_fill_(same, 0.0)
        far[..., i - 1].masked_fill_(same | next_, 0.0)
    cells = torch.stack([cell, (cell + 1).clamp(max=size - 1)], -1)
    return cells.flatten(2), torch.stack([near, far], -1).flatten(2)
