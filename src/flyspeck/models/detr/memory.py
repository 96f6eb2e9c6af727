"""What a decoder of many queries takes in memory, counted from shapes before anything is computed.

Attention between Q queries has Q^2 weights for each head, and every query samples points of every level in each layer. What is
kept for the gradient is counted by running the head on PyTorch's meta device, where tensors have shapes and no values. There
attention keeps its weights, as PyTorch's plain form does; its fused forms do not, so that the count is an upper bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 12
"""Halvings until the largest number that fits is known."""


def meta_twin(module: nn.Module) -> Any:
    """A copy on the meta device; the weights themselves are not copied."""
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(module, memo)


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes of all tensors that PyTorch keeps for the gradients of `run`, each memory once."""
    seen: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in seen.values())
    del result
    return total


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number below `most` that fits, to within a thousandth; 0 where none does."""
    low, high = 0, most
    for _ in range(_STEPS):
        middle = (low + high) // 2
        if middle and fits(middle):
            low = middle
        else:
            high = middle
        if high - low <= max(1, high // 1000):
            break
    return low
