"""Layers that several papers share: a normalised convolution, and a tower of them over a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormBuilder = Callable[[int], nn.Module]
"""Channels to a norm layer, such as `nn.BatchNorm2d` or `group_norm`."""


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups (Wu and He, 2018), or with groups of four channels where there are fewer than 128."""
    return nn.GroupNorm(32 if channels % 32 == 0 and channels >= 128 else max(1, channels // 4), channels)


NORMS: dict[str, NormBuilder | None] = {"none": None, "bn": nn.BatchNorm2d, "gn": group_norm}
NeckNorm = Literal["none", "bn", "gn"] | None
"""The norm layers of a neck by name; None: those of the head."""


def norm_of_neck(norm: NormBuilder | None, neck_norm: NeckNorm) -> NormBuilder | None:
    """The neck's norm layers, where the detector's are `norm`."""
    return norm if neck_norm is None else NORMS[neck_norm]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of a map (Ba et al., 2016), as transformers have it."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CellAttention(nn.Module):
    """Every cell of a map takes a mean of the values of all cells, weighted by the softmax of its query with their keys.

    A module without parameters, so that `profile` sees its products: N^2 (D + C) multiply-adds for N cells.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries and keys `(B, D, H, W)` and values `(B, C, H, W)` to `(B, C, H, W)`."""
        q, k, v = (m.flatten(2).transpose(1, 2)[:, None] for m in (query, key, value))  # (B, 1 head, N, channels)
        mean = F.scaled_dot_product_attention(q, k, v)
        return mean[:, 0].transpose(1, 2).reshape(value.shape)


class LevelNorm(nn.Module):
    """The norm layer behind a convolution that all pyramid levels share: one private copy for each level.

    Batch norms must not be shared by levels: training normalises every level by its own batch, while evaluation would use one
    mixture of all levels, which the last one updated dominates. See `per_level`.
    """

    def __init__(self, channels: int, *, levels: int, norm: NormBuilder) -> None:
        super().__init__()
        self.levels = nn.ModuleList(norm(channels) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """`(B, C, H, W)` of pyramid level `level` to the same shape."""
        return self.levels[level](x)


def per_level(norm: NormBuilder | None, levels: int) -> NormBuilder | None:
    """`norm` for convolutions that `levels` pyramid levels share: private to a level where it keeps statistics (batch norm).

    Norms without running statistics (GroupNorm) treat every map alone, so that the levels share one layer, as published.
    """
    if norm is None or not isinstance(norm(4), nn.modules.batchnorm._BatchNorm):
        return norm
    return lambda channels: LevelNorm(channels, levels=levels, norm=norm)


class ConvNorm(nn.Sequential):
    """A convolution of odd kernel, 'same' padding, and a norm layer if one is given (then without a bias)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, norm: NormBuilder | None = None
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm is None)]
        if norm is not None:
            layers.append(norm(outputs))
        super().__init__(*layers)

    def forward(self, input: Tensor, level: int | None = None) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`; `level` is that of the pyramid, for norms that are private to a level."""
        for layer in self:
            input = layer(input, level) if isinstance(layer, LevelNorm) else layer(input)
        return input


class ConvTower(nn.Module):
    """`depth` 3x3 convolutions with ReLU, shared by all pyramid levels; norm layers, if any, are private to a level.

    The levels of a pyramid have different statistics, so that one shared batch norm would average them away; private
    norms cost no time and next to no parameters. `bias` gives the convolutions a bias before a norm too.
    """

    def __init__(
        self, channels: int, depth: int, *, levels: int, norm: NormBuilder | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        biased = bias or norm is None
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1, bias=biased) for _ in range(depth))
        self.norms = None
        if norm is not None:
            self.norms = nn.ModuleList(nn.ModuleList(norm(channels) for _ in range(depth)) for _ in range(levels))
        self.activation = nn.ReLU(inplace=True)
        init_normal(self.convs, std=0.01 if norm is None else 0.03)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """`(B, C, H, W)` of pyramid level `level` to the same shape."""
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms is not None:
                x = self.norms[level][i](x)  # type: ignore[index]
            x = self.activation(x)
        return x


def init_normal(module: nn.Module, *, std: float = 0.01) -> None:
    """Normal weights of deviation `std` and zero biases in every convolution and linear layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def flatten_levels(maps: Sequence[Tensor], width: int) -> Tensor:
    """Maps `(B, A*width, H_l, W_l)` to one float32 `(B, sum H_l*W_l*A, width)`: by level, row, column, anchor."""
    flat = [m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, width) for m in maps]
    return torch.cat(flat, dim=1).float()


def places(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every place of every module below `root`: its parent, its name there, and the module.

    A module that sits in two places comes twice, also where both are in one parent; PyTorch's `named_children` leaves out the
    second, and who replaces modules by it leaves the old one there. Make a list of it before replacing any.
    """
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child
