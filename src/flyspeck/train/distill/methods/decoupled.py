"""Decoupled features, DeFeat (Guo, Han, Wang, Wu, Chen, Xu and Xu, CVPR 2021, arXiv:2103.14475): objects and background apart.

With I the cells of objects, N_obj and N_bg the cells of the batch inside and outside of them, and phi the adapter,

    L = alpha_obj / (2 N_obj) sum I (phi(F_S) - F_T)^2 + alpha_bg / (2 N_bg) sum (1 - I) (phi(F_S) - F_T)^2

so that the background is learnt as well, but does not drown the objects. Deviations: the mean over channels, and the units of
`base`; an object has the cells that its box touches. The paper distils the scores of positive and negative proposals of a
two-stage detector besides, which is a comparison of heads: it is not a part of this method here (`response` compares heads).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flyspeck.train.distill.foreground import touched
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise


class DecoupledTerms(PaperTerms):
    """The terms `objects` and `background` of each level."""

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str]) -> None:
        super().__init__(pairs, wanted=wanted)
        self.adapters = pointwise(pairs, [p.name for p in pairs if self.wants(p.name, "objects", "background")])

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        found = {}
        for level in levels:
            distance = (level.adapted(self.adapters[level.name]) - level.teacher).square().mean(1)
            inside = object_cells(scene, level)
            for term, cells in (("objects", inside), ("background", level.valid - inside)):
                if self.wants(level.name, term):
                    found[f"{term} {level.name}"] = (distance * cells).sum() / (2 * cells.sum().clamp(min=1))
        return found


def object_cells(scene: Scene, level: Level) -> Tensor:
    """I `(B, H, W)`: 1 where an object's box touches a cell that shows some of the image, else 0."""
    found = []
    for i, valid in enumerate(level.valid):
        rows, columns = touched(scene.objects(i, valid.device), scene.padded, level.size)
        found.append(((rows.T @ columns) > 0).to(valid.dtype) * valid)
    return torch.stack(found)
