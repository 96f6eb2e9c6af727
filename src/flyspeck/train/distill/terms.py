"""The terms of hierarchical distillation (Petrovic and Fiorelli, 2024), one function for each equation.

L_KD sums over pyramid levels alpha * L_spatial + beta * L_semantic + gamma * L_contextual. The paper says what the terms
compare and leaves the rest open; how it is resolved here, and after whom:

* L_spatial: the squared difference of the maps, averaged over channels and over cells, the cells with given weights.
* L_semantic: attention after Zagoruyko and Komodakis (2017, arXiv:1612.03928): mean squares over channels (where) and over
  cells (which channel), each of unit length; the squared distance of the two.
* L_contextual: averages of the map over grids of 1, 2 and 4 regions a side, and the cosines between all regions
  (relations, after Park et al., 2019, arXiv:1904.05068).

Every map is `(B, C, H, W)`; student and teacher have one shape, after adapters and resizing, where a function takes both.
Terms are means over the pictures, so that a batch of any size gives one scale. All of them are 0 for equal maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GRIDS = (1, 2, 4)
"""Regions a side of the contextual term: 1 + 4 + 16 = 21 regions."""


def pixel_l2(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """L_spatial: mean over channels of (F_T - F_S)^2, summed over the cells with `weights (B, H, W)`.

    The weights of a picture sum to 1; None weighs all cells alike, which is the plain mean.
    """
    distance = (student - teacher).square().mean(1)
    if weights is None:
        return distance.mean()
    return (distance * weights).sum((1, 2)).mean()


def spatial_attention(maps: Tensor) -> Tensor:
    """Where: `(B, H, W)`, mean squares over the channels, of unit length over the cells of a picture."""
    energy = maps.square().mean(1)
    return F.normalize(energy.flatten(1), dim=1).view_as(energy)


def channel_attention(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Which channels: `(B, C)`, mean squares over the cells, of unit length; `weights (B, H, W)` as in `pixel_l2`."""
    squares = maps.square()
    energy = squares.mean((2, 3)) if weights is None else (squares * weights[:, None]).sum((2, 3))
    return F.normalize(energy, dim=1)


def attention_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """L_semantic: squared distance of two attentions of unit length, `(B, H, W)` or `(B, C)`; in [0, 2] a picture."""
    return (student - teacher).square().flatten(1).sum(1).mean()


def pool_regions(maps: Tensor, grids: Sequence[int] = GRIDS) -> Tensor:
    """Averages over g x g regions for every g of `grids`: `(B, C, R)`, R = sum of g^2."""
    return torch.cat([F.adaptive_avg_pool2d(maps, g).flatten(2) for g in grids], 2)


def context_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """L_contextual, pooled: mean squared difference of regions `(B, C, R)`."""
    return (student - teacher).square().mean()


def relations(regions: Tensor) -> Tensor:
    """Cosines between the regions `(B, C, R)` of each picture: `(B, R, R)`; needs no adapter, as channels are summed."""
    directions = F.normalize(regions, dim=1)
    return directions.transpose(1, 2) @ directions


def relation_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """L_contextual, relational: mean squared difference of two relation matrices `(B, R, R)`."""
    return (student - teacher).square().mean()


def attended(weights: Tensor, attention: Tensor) -> Tensor:
    """Cell weights `(B, H, W)` multiplied by the teacher's attention `(B, H, W)`; they sum to 1 again."""
    product = weights * attention
    return product / product.sum((1, 2), keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def similarity(student: Tensor, teacher: Tensor, *, max_cells: int = 2048) -> Tensor:
    """Linear CKA of two maps `(B, C_S, H, W)` and `(B, C_T, H, W)`, in [0, 1] (Kornblith et al., 2019, arXiv:1905.00414).

    It needs no adapter and does not change under rotations of the channels. At most about `max_cells` cells of the batch
    are compared, evenly spread.
    """
    cells = student.shape[0] * student.shape[2] * student.shape[3]
    step = max(1, -(-cells // max_cells))
    step += step % 2 == 0 and step > 1  # an odd step walks over all columns of maps of even width
    x, y = (m.permute(0, 2, 3, 1).reshape(cells, -1)[::step].float() for m in (student, teacher))
    x, y = x - x.mean(0), y - y.mean(0)
    shared, own, other = (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()
    return shared / (own * other).sqrt().clamp(min=1e-12)
