"""Mixed down-sampling factor training (DPNet, sec. III-A, Algorithm 1): one batch at every factor, one sum of losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch, run_prefix, run_rest
from flyspeck.types import ImageBatch, Targets


def mixed_losses(detector: Detector, images: ImageBatch, targets: Sequence[Targets]) -> dict[float, dict[str, Tensor]]:
    """The losses of one batch at every factor (Eq. 1); the prefix runs once. Their sum is Eq. 2.

    All graphs live until the backward pass: memory grows with the number of factors. `MixedTraining` avoids that.
    """
    switch = find_switch(detector)
    before, shared = run_prefix(detector, images)
    found = {}
    for factor in switch.factors:
        with switch.use(factor):
            found[factor] = detector.losses_from(run_rest(detector, before, shared), images, targets)
    return found


class MixedTraining(nn.Module):
    """The objective of Algorithm 1: the losses of all factors, named `classification at 0.33`, …; their sum is minimised.

    With `sequential`, each factor's graph is differentiated and freed before the next factor runs, and one backward pass
    later hands the summed gradients on (to the shared prefix too): the gradients of the sum of all losses, with the
    activations of one factor. It costs one more buffer of the parameters' size.
    """

    def __init__(self, detector: Detector, *, sequential: bool = True) -> None:
        super().__init__()
        find_switch(detector)  # refuses a detector without factors now, not in the first step
        self.detector = detector
        self.sequential = sequential

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        if not (self.sequential and torch.is_grad_enabled()):
            return _named(mixed_losses(self.detector, images, targets))
        switch = find_switch(self.detector)
        before, shared = run_prefix(self.detector, images)
        # The stage before the resize may also be a feature map: one tensor in two places is one leaf.
        outside = list({id(m): m for m in [*before, shared]}.values())
        leaves = {id(m): m.detach().requires_grad_(m.requires_grad) for m in outside}
        sources = [m for m in outside if m.requires_grad] + [p for p in self.detector.parameters() if p.requires_grad]
        inside = [leaves.get(id(s), s) for s in sources]
        sums: list[Tensor | None] = [None] * len(sources)
        found: dict[float, dict[str, Tensor]] = {}
        for factor in switch.factors:
            with switch.use(factor):
                maps = run_rest(self.detector, [leaves[id(m)] for m in before], leaves[id(shared)])
                losses = self.detector.losses_from(maps, images, targets)
                total = torch.stack(list(losses.values())).sum()
                grads = torch.autograd.grad(total, inside, allow_unused=True)
            sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, grads, strict=True)]
            found[factor] = {name: value.detach() for name, value in losses.items()}
            del maps, losses, total, grads
        named = _named(found)
        first = next(iter(named))
        used = [i for i, g in enumerate(sums) if g is not None]
        named[first] = named[first] + _Stored.apply([sums[i] for i in used], *(sources[i] for i in used))
        return named


def _named(losses: dict[float, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name} at {factor:g}": value for factor, own in losses.items() for name, value in own.items()}


class _Stored(torch.autograd.Function):
    """A zero whose gradients to its inputs are known already."""

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.grads = grads
        return torch.zeros((), device=grads[0].device)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, *(g * upstream[0] for g in ctx.grads)
