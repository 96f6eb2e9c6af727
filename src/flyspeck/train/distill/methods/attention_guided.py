"""Attention-guided and non-local distillation (Zhang and Ma, ICLR 2021, openreview uKhGRvM8QNH).

With G_s and G_c the mean absolute values of a map over channels and over cells, and T a temperature:

* masks M_s = H W softmax((G_s(F_S) + G_s(F_T)) / T), M_c = C softmax((G_c(F_S) + G_c(F_T)) / T), without a gradient;
* attention: L_AT = |G_s(F_S) - G_s(F_T)|_2 + |G_c(F_S) - G_c(F_T)|_2;
* masked: L_AM = (sum over cells and channels of (F_T - F_S)^2 M_s M_c)^1/2;
* non-local: L_NLD = |r(F_S) - r(F_T)|_2, where r is a non-local module, one for the teacher and one for the student.

The paper weighs L_AM and L_NLD alike, L_AT otherwise, in sums. Deviations: lengths are root mean squares, an image at a time, in
the units of `base`; one 1x1 adapter where channels differ, for all three terms. As in the authors' settings the
product of the non-local module is a plain one (no softmax), divided by the number of keys, which are pooled to about stride 32,
and a residual is added: without it, two modules that are both learnt agree best on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.attention import cell_attention, cell_mask, channel_attention, channel_mask
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise, root_mean_square


class AttentionGuidedTerms(PaperTerms):
    """The terms `attention`, `masked` and `non_local` of each level."""

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], temperature: float = 0.5) -> None:
        super().__init__(pairs, wanted=wanted)
        self.temperature = temperature
        self.adapters = pointwise(
            pairs, [p.name for p in pairs if self.wants(p.name, "attention", "masked", "non_local")]
        )
        related = [p for p in pairs if self.wants(p.name, "non_local")]
        self.own_relations = nn.ModuleDict({p.name: _non_local(p) for p in related})
        self.teacher_relations = nn.ModuleDict({p.name: _non_local(p) for p in related})

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        found = {}
        for level in levels:
            own = level.adapted(self.adapters[level.name])
            values = {}
            if self.wants(level.name, "attention"):
                values["attention"] = attention_distance(own, level)
            if self.wants(level.name, "masked"):
                values["masked"] = masked_distance(own, level, temperature=self.temperature)
            if self.wants(level.name, "non_local"):
                theirs = self.teacher_relations[level.name](level.teacher, level.valid)
                apart = self.own_relations[level.name](own, level.valid) - theirs
                values["non_local"] = root_mean_square(apart, _numbers(level))
            found |= {f"{term} {level.name}": value for term, value in values.items()}
        return found


def attention_distance(own: Tensor, level: Level) -> Tensor:
    """L_AT, both lengths as root mean squares; `own (B, C_T, H, W)` is the student's map behind the adapter."""
    cells = cell_attention(own) - cell_attention(level.teacher)
    channels = channel_attention(own, level.valid) - channel_attention(level.teacher, level.valid)
    return root_mean_square(cells, level.valid.sum((1, 2))) + root_mean_square(channels, channels.shape[1])


def masked_distance(own: Tensor, level: Level, *, temperature: float) -> Tensor:
    """L_AM as a root mean square; the masks have a mean of 1."""
    with torch.no_grad():
        where = cell_mask(cell_attention(own) + cell_attention(level.teacher), level.valid, temperature=temperature)
        which = channel_mask(
            channel_attention(own, level.valid) + channel_attention(level.teacher, level.valid), temperature=temperature
        )
    weights = (where[:, None] * which[:, :, None, None]).sqrt()
    return root_mean_square((own - level.teacher) * weights, _numbers(level))


class NonLocal(nn.Module):
    """x + W y, y_i = 1 / N sum over keys j of (theta x_i . phi x_j) g x_j; the keys are pooled by `pool`. W begins at 0.

    Without a softmax the sum over the keys can be taken first, so that no matrix of cells by cells is made.
    """

    def __init__(self, channels: int, *, pool: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.pool = pool
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        for weights in self.out.parameters():
            nn.init.zeros_(weights)

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """The map of relations `(B, C, H, W)`, 0 outside of `valid (B, H, W)`."""
        shown = valid[:, None]
        keys, values = (
            F.max_pool2d(layer(maps) * shown, self.pool, ceil_mode=True).flatten(2) for layer in (self.phi, self.g)
        )
        product = keys @ values.transpose(1, 2) / keys.shape[2]  # (B, inner, inner)
        related = torch.einsum("bihw,bij->bjhw", self.theta(maps), product)
        return (maps + self.out(related)) * shown


def _non_local(pair: LevelPair) -> NonLocal:
    """Keys at about stride 32: pooled by 8 on P2, by 4 on P3, by 2 from P4 on."""
    return NonLocal(pair.channels[1], pool=2 ** max(5 - pair.number, 1))


def _numbers(level: Level) -> Tensor:
    """Cells times channels of each image, `(B,)`."""
    return level.valid.sum((1, 2)) * level.teacher.shape[1]
