"""A comprehensive overhaul of feature distillation (Heo, Kim, Yun, Park, Kwak and Choi, ICCV 2019, arXiv:1904.01866).

* The teacher's map passes a margin ReLU, max(x, m_c): m_c is channel c's mean negative response.
* The student's passes a 1x1 convolution and a batch norm.
* Partial L2: a response counts (t - s)^2, and nothing where s <= t <= 0: below what the teacher suppresses all is alike.

Maps are taken before a ReLU in the paper, and maps of a pyramid have none. Deviations: the mean over cells and channels, in the
units of `base`. The paper takes m_c from the teacher's batch norms or from the training set: here it is a mean over the batches
seen so far, in which one of a hundred steps ago counts a third.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene


class OverhaulTerms(PaperTerms):
    """The term `margin` of each level."""

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str]) -> None:
        super().__init__(pairs, wanted=wanted)
        learnt = [p for p in pairs if self.wants(p.name, "margin")]
        self.regressors = nn.ModuleDict({p.name: Regressor(*p.channels) for p in learnt})
        self.margins = nn.ModuleDict({p.name: Margin(p.channels[1]) for p in learnt})

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        found = {}
        for level in levels:
            target = self.margins[level.name](level.teacher)
            own = level.adapted(self.regressors[level.name])
            found[f"margin {level.name}"] = level.mean(partial_l2(own, target).mean(1))
        return found


def partial_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """d_p, elementwise: (t - s)^2, or 0 where s <= t <= 0."""
    counts = (student > teacher) | (teacher > 0)
    return (teacher - student).square() * counts


class Margin(nn.Module):
    """The margin ReLU: max(x, m_c), m_c the mean of the negative responses of channel c; 0 of a channel that has none."""

    sums: Tensor
    counts: Tensor

    def __init__(self, channels: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums", torch.zeros(channels))
        self.register_buffer("counts", torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """`maps (B, C, H, W)` of the teacher, cut at the margins; what they show is counted first, in training."""
        if self.training:
            below = maps < 0
            self.sums.mul_(self.decay).add_((maps * below).sum((0, 2, 3)))
            self.counts.mul_(self.decay).add_(below.sum((0, 2, 3)))
        return torch.maximum(maps, self.values()[:, None, None])

    def values(self) -> Tensor:
        """m_c `(C,)`, none above 0."""
        return torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1e-12), torch.zeros_like(self.sums))


class Regressor(nn.Module):
    """A 1x1 convolution and a batch norm; a single cell has no deviation, and is normalised as in evaluation."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, C_S, H, W)` to `(B, C_T, H, W)`."""
        found = self.conv(maps)
        if found.shape[0] * found.shape[2] * found.shape[3] > 1:
            return self.norm(found)
        norm = self.norm
        return F.batch_norm(found, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
