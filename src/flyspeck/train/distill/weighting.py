"""What each term counts: fixed by the recipe, or following training ("adaptive supervision").

The paper names adaptive weights in its abstract and leaves them to future work. Two known rules stand in:

* uncertainty (Kendall et al., 2018, arXiv:1705.07115): each term L_k is counted as exp(-s_k) L_k + s_k with a learnt s_k, so
  that terms of any size pull alike;
* gradient norm (a plain form of GradNorm, Chen et al., 2018, arXiv:1711.02257): every few steps, each term gets the weight
  that gives its gradient at the student's pyramid a set share of the length of the detection losses' gradient there.

All are modules `(terms, detection, maps) -> terms`, named values in and out; recipe weights multiply in every case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flyspeck.models.losses import mean_over_processes


class Weighting(nn.Module, ABC):
    """From unweighted terms to what is minimised."""

    @abstractmethod
    def forward(self, terms: Mapping[str, Tensor], detection: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """`terms` by name, weighted. `detection` is the sum of the student's own losses, `maps` its pyramid."""


class FixedWeights(Weighting):
    """The recipe's weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, terms: Mapping[str, Tensor], detection: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Weighting`."""
        return {name: self.weights[name] * term for name, term in terms.items()}


class UncertaintyWeights(Weighting):
    """w_k (exp(-s_k) L_k + s_k); at its best s_k the factor is 1 / L_k. The values can become negative."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights)))

    def forward(self, terms: Mapping[str, Tensor], detection: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Weighting`."""
        s = dict(zip(self.weights, self.log_variance, strict=True))
        return {name: self.weights[name] * (torch.exp(-s[name]) * term + s[name]) for name, term in terms.items()}


class GradientNormWeights(Weighting):
    """Term k counts g_k L_k, where g_k is chosen every `every` calls so that the gradients have lengths in proportion.

    Lengths are those of the gradients at the student's pyramid. With g_k, term k's is `w_k / sum of w` times that of the
    detection losses: all terms together pull about as hard as the ground truth. g_k is a moving average (`decay`).
    """

    calls: Tensor
    factors: Tensor

    def __init__(self, weights: Mapping[str, float], *, every: int = 10, decay: float = 0.9) -> None:
        super().__init__()
        self.weights, self.every, self.decay = dict(weights), every, decay
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("factors", torch.ones(len(self.weights)))

    def forward(self, terms: Mapping[str, Tensor], detection: Tensor, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Weighting`."""
        if torch.is_grad_enabled() and int(self.calls) % self.every == 0:
            found = self._measured(terms, detection, maps)
            first = int(self.calls) == 0
            self.factors.copy_(found if first else self.decay * self.factors + (1 - self.decay) * found)
        self.calls += 1
        factors = dict(zip(self.weights, self.factors.clone(), strict=True))
        return {name: factors[name] * term for name, term in terms.items()}

    def _measured(self, terms: Mapping[str, Tensor], detection: Tensor, maps: Sequence[Tensor]) -> Tensor:
        whole = _length(detection, maps)
        total = max(sum(self.weights[name] for name in terms), 1e-12)
        found = self.factors.clone()
        for i, (name, weight) in enumerate(self.weights.items()):
            length = _length(terms[name], maps) if name in terms else torch.zeros(())
            if length > 0:  # a term that does not pull in this batch (no object in it, say) keeps its factor
                found[i] = weight / total * whole / length.clamp(min=1e-12)
        return mean_over_processes(found, found.device, at_least=0.0)


def _length(loss: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Euclidean length of the gradient of `loss` at all `maps` together."""
    grads = torch.autograd.grad(loss, list(maps), retain_graph=True, allow_unused=True)
    return torch.stack([g.float().square().sum() for g in grads if g is not None] or [torch.zeros(())]).sum().sqrt()


WEIGHTINGS: dict[str, type[FixedWeights] | type[UncertaintyWeights] | type[GradientNormWeights]] = {
    "none": FixedWeights,
    "uncertainty": UncertaintyWeights,
    "gradient_norm": GradientNormWeights,
}
