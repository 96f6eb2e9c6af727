"""Attention of a map by mean absolute values, which the methods of two papers weigh cells and channels with."""

from __future__ import annotations

import torch
from torch import Tensor


def cell_attention(maps: Tensor) -> Tensor:
    """G_s: mean absolute value over the channels of `(B, C, H, W)`: `(B, H, W)`."""
    return maps.abs().mean(1)


def channel_attention(maps: Tensor, valid: Tensor) -> Tensor:
    """G_c: mean absolute value over the cells `valid (B, H, W)`, where `maps` are not 0: `(B, C)`."""
    return maps.abs().sum((2, 3)) / valid.sum((1, 2))[:, None]


def cell_mask(attention: Tensor, valid: Tensor, *, temperature: float) -> Tensor:
    """Softmax over the cells `valid` times their number: `(B, H, W)` with a mean of 1 over them, 0 elsewhere."""
    scores = (attention / temperature).masked_fill(valid == 0, -torch.inf)
    return scores.flatten(1).softmax(1).view_as(scores) * valid.sum((1, 2), keepdim=True)


def channel_mask(attention: Tensor, *, temperature: float) -> Tensor:
    """Softmax over the channels times their number: `(B, C)` with a mean of 1."""
    return (attention / temperature).softmax(1) * attention.shape[1]
