"""Blocks that train as several branches and run as one convolution, and the light blocks that are made of convolutions alone.

Structural re-parameterisation (Ding et al., RepVGG, CVPR 2021, arXiv:2101.03697): a 3x3 convolution, a 1x1 convolution beside it
and the identity are all linear, and so is a batch norm at inference. Their sum is one 3x3 convolution with a bias: the kernels
are added, a 1x1 kernel and the identity in the middle. Training sees three ways, inference one.

Deviation: the identity has no batch norm of its own.

`merge_branches` is exact up to rounding, and shows it: each block is run both ways before it is replaced. `models.fold` calls it,
so that prediction, export and teachers have the merged blocks; `profile` counts them as they are run.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.follows import BATCH_NORMS, tensor_of, what_follows
from flyspeck.models.layers import NormBuilder, places

log = logging.getLogger("flyspeck")

Blocks = Literal["rep", "separable"]
"""`rep`: 3x3 convolutions that train with branches; `separable`: a 3x3 convolution of each channel, then a 1x1 of all."""
_TOLERANCE = 1e-4
_PROBE = 12  # cells a side: enough for every place of a kernel at a border, and within


class Reparameterised(nn.Module, ABC):
    """A block that has a simpler form at inference."""

    @abstractmethod
    def merged(self) -> nn.Module | None:
        """That form, with weights of its own; None where there is none (a norm that is no batch norm)."""

    @abstractmethod
    def example(self) -> Tensor:
        """An input to compare both forms on."""

    @abstractmethod
    def norms(self) -> Iterator[nn.Module]:
        """The norm layers that the merged form has taken up."""


class BranchedConv(Reparameterised):
    """A 3x3 convolution, a 1x1 convolution beside it and, where shapes allow, the identity: their sum."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1, norm: NormBuilder | None = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.identity = inputs == outputs and stride == 1
        bias = norm is None
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=bias)
        self.norm = nn.Identity() if norm is None else norm(outputs)
        self.beside = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=bias)
        self.beside_norm = nn.Identity() if norm is None else norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H / stride, W / stride)`, rounded up."""
        y = self.norm(self.conv(x)) + self.beside_norm(self.beside(x))
        return y + x if self.identity else y

    @torch.no_grad()
    def merged(self) -> nn.Conv2d | None:
        """One 3x3 convolution with a bias; None where a norm is not a plain batch norm, or still in training mode."""
        main, side = _affine(self.conv, self.norm), _affine(self.beside, self.beside_norm)
        if main is None or side is None or self.conv.stride != self.beside.stride:
            return None
        weight = main[0] + F.pad(side[0], (1, 1, 1, 1))
        if self.identity:
            own = torch.arange(weight.shape[0], device=weight.device)
            weight[own, own % weight.shape[1], 1, 1] += 1
        like, (rows, columns) = self.conv, _pair(self.conv.stride)
        kind = {"device": like.weight.device, "dtype": like.weight.dtype}
        inputs, outputs = like.in_channels, like.out_channels
        made = nn.Conv2d(inputs, outputs, 3, (rows, columns), 1, groups=like.groups, **kind)
        made.weight.copy_(weight)
        made.bias.copy_(main[1] + side[1])  # type: ignore[union-attr]
        return made.train(self.training).requires_grad_(like.weight.requires_grad)

    def example(self) -> Tensor:
        """Noise, the same each time."""
        like = self.conv.weight
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, self.conv.in_channels, _PROBE, _PROBE, generator=generator)
        return noise.to(device=like.device, dtype=like.dtype)

    def norms(self) -> Iterator[nn.Module]:
        """Of both convolutions, where they have one."""
        yield from (norm for norm in (self.norm, self.beside_norm) if not isinstance(norm, nn.Identity))


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    """Along y and x."""
    return sides[0], sides[-1]


def _affine(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias, in double precision, of the convolution that does what the two do at inference; None: there is none."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.Identity):
        return weight, bias
    mean, var = tensor_of(norm, "running_mean"), tensor_of(norm, "running_var")
    plain = isinstance(norm, BATCH_NORMS) and isinstance(what_follows(norm), nn.Identity)
    if not plain or norm.training or mean is None or var is None:
        return None
    scale, shift = tensor_of(norm, "weight"), tensor_of(norm, "bias")
    factor = (var.detach().double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    factor = factor if scale is None else factor * scale.detach().double()
    bias = (bias - mean.detach().double()) * factor
    return weight * factor[:, None, None, None], bias if shift is None else bias + shift.detach().double()


@torch.no_grad()
def merge_branches(model: nn.Module) -> list[nn.Module]:
    """Replaces every `Reparameterised` block below `model` by its merged form, in place; returns the norms that are gone.

    A block whose merged form does not give the same (in float32 to 1e-4 of the largest value) stays, and is said in the log.
    Blocks with hooks stay too: somebody looks at them.
    """
    made: dict[nn.Module, nn.Module | None] = {}
    gone: list[nn.Module] = []
    for parent, name, block in list(places(model)):
        if not isinstance(block, Reparameterised):
            continue
        if block not in made:
            made[block] = _checked(block)
            gone += [] if made[block] is None else list(block.norms())
        replacement = made[block]
        if replacement is not None:
            setattr(parent, name, replacement)
    return gone


def _checked(block: Reparameterised) -> nn.Module | None:
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in block.modules()):
        return None
    merged = block.merged()
    if merged is None or next(merged.parameters()).is_meta:
        return merged
    x = block.example()
    wanted, found = block(x), merged(x)
    bits = torch.finfo(wanted.dtype).bits
    bound = _TOLERANCE if bits >= 32 else 2e-2
    if found.shape != wanted.shape or not bool((found - wanted).abs().max() <= bound * wanted.abs().max()):
        log.warning("a block of %d channels keeps its branches: merged its output would differ", wanted.shape[1])
        return None
    return merged


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel, norm, ReLU, a 1x1 convolution, norm and, where shapes allow, the input: their sum."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, norm: NormBuilder | None = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.identity = inputs == outputs and stride == 1
        bias = norm is None
        self.dw = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=bias)
        self.dw_norm = nn.Identity() if norm is None else norm(inputs)
        self.act = nn.ReLU(inplace=True)
        self.pw = nn.Conv2d(inputs, outputs, 1, bias=bias)
        self.pw_norm = nn.Identity() if norm is None else norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H / stride, W / stride)`, rounded up."""
        y = self.pw_norm(self.pw(self.act(self.dw_norm(self.dw(x)))))
        return y + x if self.identity else y


def light_block(
    blocks: Blocks, inputs: int, outputs: int, *, stride: int = 1, norm: NormBuilder | None = nn.BatchNorm2d
) -> nn.Sequential:
    """One block of the kind, and a ReLU. Weights are drawn for it (He et al., 2015)."""
    kind = BranchedConv if blocks == "rep" else SeparableConv
    block = nn.Sequential(kind(inputs, outputs, stride=stride, norm=norm), nn.ReLU(inplace=True))
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return block
