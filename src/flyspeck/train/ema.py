"""Exponential moving average of the weights (Polyak averaging), kept beside the model that trains."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """`model` is a copy whose floating-point parameters and buffers follow those of the trained model.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the first updates are not drowned by random weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step towards the current weights of `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in floats], [theirs[n] for n in floats], 1 - decay)
        for name, value in mine.items():
            if not value.is_floating_point():
                value.copy_(theirs[name])
