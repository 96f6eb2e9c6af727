"""Focal and global distillation, FGD (Yang, Li, Jiang, Gong, Yuan, Zhao and Yuan, CVPR 2022, arXiv:2111.11837).

Focal. M is 1 in objects, S weighs each object's cells by 1 / (its cells), the smallest object's where several lie, and
the background's by 1 / (its cells). A_s = H W softmax(G_s / T) and A_c = C softmax(G_c / T) are the teacher's masks:

    L_feature   = alpha sum M S A_s A_c (F_T - F_S)^2 + beta sum (1 - M) S A_s A_c (F_T - F_S)^2
    L_attention = |A_s(F_T) - A_s(F_S)|_1 + |A_c(F_T) - A_c(F_S)|_1

Global. L_global = |R(F_T) - R(F_S)|^2, where R adds to every cell what the block of GCNet makes of the whole map:
R(x) = x + W_2 ReLU(LN(W_1 sum over cells of softmax(w x_j) x_j)), one block for each of the two networks.

Deviations: all sums are means, in the units of `base`; of the objects of an image too, so that a crowd of tiny ones does not
outweigh what the ground truth says. alpha : beta = 2 : 1 as printed for RetinaNet. An object has the cells that its box touches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flyspeck.train.distill.foreground import touched
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.attention import cell_attention, cell_mask, channel_attention, channel_mask
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise

CELLS_AT_ONCE = 1 << 22
"""Objects are taken in groups, so that a crowded image costs time and not memory."""


class FgdTerms(PaperTerms):
    """The terms `objects`, `background`, `attention` and `global` of each level."""

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], temperature: float = 0.5) -> None:
        super().__init__(pairs, wanted=wanted)
        self.temperature = temperature
        learnt = [p.name for p in pairs if self.wants(p.name, "objects", "background", "attention", "global")]
        self.adapters = pointwise(pairs, learnt)
        context = [p for p in pairs if self.wants(p.name, "global")]
        self.own_context = nn.ModuleDict({p.name: GlobalContext(p.channels[1]) for p in context})
        self.teacher_context = nn.ModuleDict({p.name: GlobalContext(p.channels[1]) for p in context})

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        found = {}
        for level in levels:
            values = self._level(level, scene)
            found |= {f"{term} {level.name}": value for term, value in values.items()}
        return found

    def _level(self, level: Level, scene: Scene) -> dict[str, Tensor]:
        own = level.adapted(self.adapters[level.name])
        where, which = attention_masks(level.teacher, level.valid, temperature=self.temperature)
        found = {}
        if self.wants(level.name, "objects", "background"):
            distance = ((own - level.teacher).square() * which[:, :, None, None]).mean(1) * where
            on_objects, elsewhere = focal_weights(scene, level)
            if self.wants(level.name, "objects"):
                found["objects"] = (distance * on_objects).sum((1, 2)).mean()
            if self.wants(level.name, "background"):
                found["background"] = (distance * elsewhere).sum((1, 2)).mean()
        if self.wants(level.name, "attention"):
            own_where, own_which = attention_masks(own, level.valid, temperature=self.temperature)
            found["attention"] = level.mean((own_where - where).abs()) + (own_which - which).abs().mean()
        if self.wants(level.name, "global"):
            theirs = self.teacher_context[level.name](level.teacher, level.valid)
            apart = self.own_context[level.name](own, level.valid) - theirs
            found["global"] = level.mean(apart.square().mean(1))
        return found


def attention_masks(maps: Tensor, valid: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """A_s `(B, H, W)` and A_c `(B, C)` of a map, both with a mean of 1."""
    where = cell_mask(cell_attention(maps), valid, temperature=temperature)
    return where, channel_mask(channel_attention(maps, valid), temperature=temperature)


def focal_weights(scene: Scene, level: Level) -> tuple[Tensor, Tensor]:
    """M S over the number of objects, and (1 - M) S: both `(B, H, W)`. Each sums to 1 in an image where no objects overlap."""
    pairs = [_image_weights(scene.objects(i, valid.device), scene.padded, valid) for i, valid in enumerate(level.valid)]
    return torch.stack([on for on, _ in pairs]), torch.stack([off for _, off in pairs])


def _image_weights(objects: Tensor, padded: tuple[int, int], valid: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = touched(objects, padded, (valid.shape[0], valid.shape[1]))
    rows, columns = rows * valid.amax(1), columns * valid.amax(0)
    counts = rows.sum(1) * columns.sum(1)
    seen = int((counts > 0).sum())
    on = torch.zeros_like(valid)
    rows = rows / counts.clamp(min=1)[:, None]
    at_once = max(1, CELLS_AT_ONCE // valid.numel())
    for some_rows, some_columns in zip(rows.split(at_once), columns.split(at_once), strict=True):
        if len(some_rows):  # the smallest object where several lie: the highest weight
            on = torch.maximum(on, (some_rows[:, :, None] * some_columns[:, None]).amax(0))
    background = valid * (on == 0)
    return on / max(seen, 1), background / background.sum().clamp(min=1)


class GlobalContext(nn.Module):
    """R(x), the block of GCNet (Cao et al., 2019, arXiv:1904.11492) with half of the channels inside; W_2 begins at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.score = nn.Conv2d(channels, 1, 1)
        self.first, self.norm = nn.Linear(channels, inner), nn.LayerNorm(inner)
        self.last = nn.Linear(inner, channels)
        for weights in self.last.parameters():
            nn.init.zeros_(weights)

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """`(B, C, H, W)` with the context of the whole map added, 0 outside of `valid (B, H, W)`."""
        scores = self.score(maps)[:, 0].masked_fill(valid == 0, -torch.inf)
        share = scores.flatten(1).softmax(1)
        context = torch.einsum("bcn,bn->bc", maps.flatten(2), share)
        added = self.last(torch.relu(self.norm(self.first(context))))
        return (maps + added[:, :, None, None]) * valid[:, None]
