"""Distillation of pyramids: the three terms on every common level (`hierarchical`), or one term on one level (`single`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.train.distill import terms
from flyspeck.train.distill.foreground import cell_weights, valid_cells
from flyspeck.train.distill.levels import LevelPair, build_adapters, resized
from flyspeck.train.distill.teacher import TeacherOutputs
from flyspeck.types import ImageBatch, Targets

TERMS = ("spatial", "semantic", "contextual")


@dataclass(frozen=True)
class CellRule:
    """How the cells of the spatial term are weighed; the fields are those of the recipe's `distill`."""

    foreground: float = 0.5
    size_power: float = 0.0
    attention_weighted: bool = False


class FeatureTerms(nn.Module):
    """The terms of `pairs` of levels, each named `spatial P2`; the adapters are its only weights.

    Differences of maps are divided by the mean square of the teacher's map over the batch, so that one weight means the
    same on every level and for every teacher (a deviation: the paper's L2 has the scale of the features). `wanted` holds
    the names of the terms to compute: what has no weight costs no time.
    """

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], rule: CellRule | None = None) -> None:
        super().__init__()
        self.pairs, self.wanted, self.rule = tuple(pairs), frozenset(wanted), rule or CellRule()
        # A level that is only compared, not learnt, gets no adapter: it would be a weight without a gradient.
        self.adapters = build_adapters([p for p in pairs if any(f"{term} {p.name}" in self.wanted for term in TERMS)])

    def observe(self, teacher: Detector, images: ImageBatch) -> TeacherOutputs:
        """The teacher's maps by the name of the student's level."""
        pyramid = teacher.pyramid(images)
        return {pair.name: pyramid[pair.teacher] for pair in self.pairs}

    def forward(
        self, maps: Sequence[Tensor], given: TeacherOutputs, images: ImageBatch, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Unweighted terms of a batch from the student's pyramid `maps` and the teacher's maps."""
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            student = maps[pair.student]
            teacher = resized(given[pair.name].float(), _size(student))
            with torch.autocast(student.device.type, enabled=False):
                found |= self._level(pair.name, student.float(), teacher, images, targets)
        return found

    def _adapt(self, name: str, student: Tensor, mask: Tensor | None) -> Tensor:
        adapted = self.adapters[name](student)
        return adapted if mask is None else adapted * mask

    def _level(
        self, name: str, student: Tensor, teacher: Tensor, images: ImageBatch, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        wanted = [term for term in TERMS if f"{term} {name}" in self.wanted]
        mask = _mask(images, student)
        if mask is not None:
            student, teacher = student * mask, teacher * mask
        adapted = self._adapt(name, student, mask) if "spatial" in wanted or "semantic" in wanted else None
        power = teacher.square().mean().clamp(min=1e-12)
        found: dict[str, Tensor] = {}
        attention = None
        if "semantic" in wanted or self.rule.attention_weighted:
            attention = terms.spatial_attention(teacher)
        if "spatial" in wanted:
            weights = self._weights(teacher, images, targets)
            if self.rule.attention_weighted:
                weights = terms.attended(weights, attention)  # type: ignore[arg-type]
            found["spatial"] = terms.pixel_l2(adapted, teacher, weights) / power  # type: ignore[arg-type]
        if "semantic" in wanted:
            where = terms.attention_l2(terms.spatial_attention(student), attention)  # type: ignore[arg-type]
            which = terms.attention_l2(terms.channel_attention(adapted), terms.channel_attention(teacher))  # type: ignore[arg-type]
            found["semantic"] = where + which
        if "contextual" in wanted:
            own, theirs = terms.pool_regions(student), terms.pool_regions(teacher)
            # Averaging and a 1x1 convolution can change places: 21 regions are cheaper to adapt than all cells.
            pooled = terms.context_l2(self.adapters[name](own[..., None])[..., 0], theirs) / power
            found["contextual"] = pooled + terms.relation_l2(terms.relations(own), terms.relations(theirs))
        return {f"{term} {name}": value for term, value in found.items()}

    def _weights(self, teacher: Tensor, images: ImageBatch, targets: Sequence[Targets]) -> Tensor:
        height, width = images.pixels.shape[-2:]
        return cell_weights(
            targets,
            (height, width),
            images.sizes,
            _size(teacher),
            foreground=self.rule.foreground,
            size_power=self.rule.size_power,
            device=teacher.device,
        )

    def similarities(self, maps: Sequence[Tensor], given: TeacherOutputs) -> dict[str, Tensor]:
        """Linear CKA of the student's and the teacher's map of each level."""
        return {
            pair.name: terms.similarity(
                maps[pair.student], resized(given[pair.name].float(), _size(maps[pair.student]))
            )
            for pair in self.pairs
        }


def _size(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])


def _mask(images: ImageBatch, maps: Tensor) -> Tensor | None:
    """`(B, 1, H, W)`, 0 where a cell of `maps` shows padding only; None where there is no padding."""
    padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    if all(size == padded for size in images.sizes):
        return None
    return torch.stack([valid_cells(padded, size, _size(maps), maps.device) for size in images.sizes])[:, None]
