"""The terms of hierarchical distillation (Petrovic and Fiorelli, 2024), one function for each equation.

L_KD sums over pyramid levels alpha * L_spatial + beta * L_semantic + gamma * L_contextual. The paper says what the terms
compare and leaves the rest open; how it is resolved here, and after whom:

* L_spatial: the squared difference of the maps, averaged over channels and over cells, the cells with given weights.
* L_semantic: attention after Zagoruyko and Komodakis (2017, arXiv:1612.03928): mean squares over channels (where) and over
  cells (which channel), each of unit length; the squared distance of the two.
* L_contextual: averages of the map over grids of 1, 2 and 4 regions a side, and the cosines between all regions
  (relations, after Park et al., 2019, arXiv:1904.05068).

The 1x1 adapter that takes the student's channels to the teacher's is linear, so that sums over cells can be taken before it:
`adapted_l2` and `adapted_channels` give what `pixel_l2` and `channel_energy` give of the adapted map, without making that map.

Every map is `(B, C, H, W)`; student and teacher have one shape, after adapters and resizing, where a function takes both.
Terms are means over the images, so that a batch of any size gives one scale. All of them are 0 for equal maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GRIDS = (1, 2, 4)
"""Regions a side of the contextual term: 1 + 4 + 16 = 21 regions."""


def pixel_l2(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """L_spatial: mean over channels of (F_T - F_S)^2, summed over the cells with `weights (B, H, W)`.

    The weights of an image sum to 1; None weighs all cells alike, which is the plain mean.
    """
    distance = (student - teacher).square().mean(1)
    if weights is None:
        return distance.mean()
    return (distance * weights).sum((1, 2)).mean()


def adapted_l2(
    student: Tensor, weight: Tensor, bias: Tensor, teacher: Tensor, weights: Tensor, *, energy: Tensor
) -> Tensor:
    """`pixel_l2` of the map that a 1x1 convolution with `weight (C_T, C_S)` and `bias (C_T,)` makes of `student`.

    Sum over cells of w |A s + b - t|^2, multiplied out: two matrix products with the teacher's map, forward and backward, and
    nothing of its size is written. `energy (B, H, W)` is `cell_energy(teacher)`. The maps are multiplied in the precision of
    `student`, everything else is float32.
    """
    channels = teacher.shape[1]
    share = (weights / len(weights)).reshape(-1, 1)
    matrix = torch.cat([weight, bias[:, None]], 1)
    constant = channels * (energy.reshape(-1, 1) * share).sum()
    return (_AdaptedDistance.apply(student, _precise(matrix), teacher, share) + constant) / channels  # type: ignore[operator]


class _AdaptedDistance(torch.autograd.Function):
    """Sum over cells of w (|A x|^2 - 2 t A x), x a cell of `student (B, C_S, H, W)` with a 1 behind, A `matrix (C_T, C_S + 1)`.

    t is the cell of `teacher (B, C_T, H, W)`, w that of `share (B*H*W, 1)`; teacher and weights get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, matrix: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
        own = _with_one(student)
        weighted = own * share
        second = weighted.T @ own
        theirs = teacher.permute(0, 2, 3, 1).reshape(-1, teacher.shape[1]).to(student.dtype)
        cross = _precise(weighted.to(student.dtype).T @ theirs)
        ctx.save_for_backward(student, matrix, theirs, share, second, cross)
        return (matrix.T @ matrix * second).sum() - 2 * (matrix.T * cross).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        student, matrix, theirs, share, second, cross = ctx.saved_tensors
        pull = 2 * upstream[0]
        to_matrix = pull * (matrix @ second - cross.T)
        batch, channels, height, width = student.shape
        square = (matrix.T @ matrix)[:, :channels].to(student.dtype)
        flat = student.permute(0, 2, 3, 1).reshape(-1, channels)
        step = torch.addmm(square[-1], flat, square[:-1]) - theirs @ matrix[:, :channels].to(student.dtype)
        to_student = (step * (pull * share).to(student.dtype)).view(batch, height, width, channels)
        return to_student.permute(0, 3, 1, 2), to_matrix, None, None


class _Moments(torch.autograd.Function):
    """Second moments `(B, C, C)` of cells `(B, N, C)`: the mean of x x^T; the product's symmetry halves the way back."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return cells.transpose(1, 2) @ cells / cells.shape[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (cells,) = ctx.saved_tensors
        return cells @ ((upstream[0] + upstream[0].transpose(1, 2)) / cells.shape[1])


def _precise(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _with_one(maps: Tensor) -> Tensor:
    """The map as `(cells, C + 1)`, the last column 1, at least float32."""
    flat = _precise(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]))
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)


def cell_energy(maps: Tensor) -> Tensor:
    """Mean squares over the channels, `(B, H, W)` float32."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return torch.linalg.vector_norm(maps, dim=1, dtype=dtype).square() / maps.shape[1]


def channel_energy(maps: Tensor) -> Tensor:
    """Mean squares over the cells, `(B, C)` float32."""
    squares = maps.permute(0, 2, 3, 1).flatten(1, 2).square()
    if squares.dtype == torch.float16:  # 256 squared is beyond its range
        squares = maps.permute(0, 2, 3, 1).flatten(1, 2).float().square()
    # A product with ones: sums over an outer dimension are several times slower.
    return _precise(squares.new_ones(1, squares.shape[1]) @ squares)[:, 0] / squares.shape[1]


def adapted_channels(student: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`channel_energy` of the map that a 1x1 convolution makes of `student`: from its second moments."""
    cells = _with_one(student).unflatten(0, (len(student), -1))
    matrix = _precise(torch.cat([weight, bias[:, None]], 1))
    return ((matrix @ _Moments.apply(cells)) * matrix).sum(-1)  # type: ignore[operator]


def attention(energy: Tensor) -> Tensor:
    """Energies of cells `(B, H, W)` or channels `(B, C)` at unit length: where, or which channels."""
    return F.normalize(energy.flatten(1), dim=1).view_as(energy)


def attention_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """L_semantic: squared distance of two attentions of unit length, `(B, H, W)` or `(B, C)`; in [0, 2] an image."""
    return (student - teacher).square().flatten(1).sum(1).mean()


def pool_regions(maps: Tensor, grids: Sequence[int] = GRIDS) -> Tensor:
    """Averages over g x g regions for every g of `grids`: `(B, C, R)` float32, R = sum of g^2."""
    finest = max(grids)
    exact = all(finest % g == 0 for g in grids) and maps.shape[-2] % finest == 0 and maps.shape[-1] % finest == 0
    # Where the regions tile each other, one pass over the map serves all of them.
    source = F.adaptive_avg_pool2d(maps, finest) if exact else maps
    source = _precise(source)
    return torch.cat([F.adaptive_avg_pool2d(source, g).flatten(2) for g in grids], 2)


def context_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """L_contextual, pooled: mean squared difference of regions `(B, C, R)`."""
    return (student - teacher).square().mean()


def relations(regions: Tensor) -> Tensor:
    """Cosines between the regions `(B, C, R)` of each image: `(B, R, R)`; needs no adapter, as channels are summed."""
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
