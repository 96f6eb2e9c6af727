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
from flyspeck.train.distill.methods.base import PyramidTerms
from flyspeck.train.distill.teacher import TeacherOutputs
from flyspeck.types import ImageBatch, Targets

TERMS = ("spatial", "semantic", "contextual")


@dataclass(frozen=True)
class CellRule:
    """How the cells of the spatial term are weighed; the fields are those of the recipe's `distill`."""

    foreground: float = 0.5
    size_power: float = 0.0
    attention_weighted: bool = False


class FeatureTerms(PyramidTerms):
    """The terms of the paper on hierarchical distillation; the adapters are its only weights.

    Differences of maps are divided by the mean square of the teacher's map over the batch, so that one weight means the
    same on every level and for every teacher (a deviation: the paper's L2 has the scale of the features).
    """

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], rule: CellRule | None = None) -> None:
        super().__init__(pairs, wanted=wanted)
        self.rule = rule or CellRule()
        # A level that is only compared, not learnt, gets no adapter: it would be a weight without a gradient.
        self.adapters = build_adapters([p for p in pairs if any(f"{term} {p.name}" in self.wanted for term in TERMS)])

    def observe(self, teacher: Detector, images: ImageBatch) -> TeacherOutputs:
        """The teacher's maps by the name of the student's level, and their summaries (`P2 cells`, `P2 channels`, …)."""
        pyramid = teacher.pyramid(images)
        found: TeacherOutputs = {}
        for pair in self.pairs:
            found[pair.name] = pyramid[pair.teacher]
            summary = _summary(found[pair.name], self._terms_of(pair.name))
            found |= {f"{pair.name} {part}": value for part, value in summary.items()}
        return found

    def _terms_of(self, name: str) -> list[str]:
        return [term for term in TERMS if f"{term} {name}" in self.wanted]

    def forward(
        self, maps: Sequence[Tensor], given: TeacherOutputs, images: ImageBatch, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Unweighted terms of a batch from the student's pyramid `maps` and what was observed of the teacher."""
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            wanted = self._terms_of(pair.name)
            if not wanted:
                continue
            student, teacher = maps[pair.student], resized(given[pair.name], _size(maps[pair.student]))
            mask = _mask(images, student)
            if mask is not None:
                student, teacher = student * mask.to(student.dtype), teacher * mask.to(teacher.dtype)
            if mask is not None or teacher is not given[pair.name]:  # what was summed up was not what is compared
                summary = _summary(teacher, wanted)
            else:
                summary = {part: given[f"{pair.name} {part}"] for part in _parts(wanted)}
            with torch.autocast(student.device.type, enabled=False):
                terms_here = self._level(pair.name, wanted, student, teacher, summary, images, targets)
            found |= {f"{term} {pair.name}": value for term, value in terms_here.items()}
        return found

    def _level(
        self,
        name: str,
        wanted: Sequence[str],
        student: Tensor,
        teacher: Tensor,
        summary: TeacherOutputs,
        images: ImageBatch,
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        adapter = self.adapters[name]
        power = summary["cells"].mean().clamp(min=1e-12)
        found: dict[str, Tensor] = {}
        where = terms.attention(summary["cells"])
        if "spatial" in wanted:
            weights = self._weights(teacher, images, targets)
            if self.rule.attention_weighted:
                weights = terms.attended(weights, where)
            if isinstance(adapter, nn.Conv2d):
                kernel, bias = _matrix(adapter)
                distance = terms.adapted_l2(student, kernel, bias, teacher, weights, energy=summary["cells"])
            else:
                distance = terms.pixel_l2(student.float(), teacher.float(), weights)
            found["spatial"] = distance / power
        if "semantic" in wanted:
            own = terms.channel_energy(student)
            if isinstance(adapter, nn.Conv2d):
                own = terms.adapted_channels(student, *_matrix(adapter))
            found["semantic"] = terms.attention_l2(terms.attention(terms.cell_energy(student)), where)
            found["semantic"] += terms.attention_l2(terms.attention(own), terms.attention(summary["channels"]))
        if "contextual" in wanted:
            regions, theirs = terms.pool_regions(student), summary["regions"]
            # Averaging and a 1x1 convolution can change places: 21 regions are cheaper to adapt than all cells.
            found["contextual"] = terms.context_l2(adapter(regions[..., None])[..., 0], theirs) / power
            found["contextual"] += terms.relation_l2(terms.relations(regions), terms.relations(theirs))
        return found

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


def _parts(wanted: Sequence[str]) -> list[str]:
    """The sums of a teacher's map that the terms need."""
    needed = {"cells": bool(wanted), "channels": "semantic" in wanted, "regions": "contextual" in wanted}
    return [part for part, on in needed.items() if on]


def _summary(teacher: Tensor, wanted: Sequence[str]) -> TeacherOutputs:
    """`cells (B, H, W)`, `channels (B, C)` and `regions (B, C, R)` of a teacher's map, as far as they are needed."""
    how = {"cells": terms.cell_energy, "channels": terms.channel_energy, "regions": terms.pool_regions}
    return {part: how[part](teacher) for part in _parts(wanted)}


def _matrix(adapter: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight `(C_T, C_S)` and bias of a 1x1 convolution."""
    assert adapter.bias is not None
    return adapter.weight[:, :, 0, 0], adapter.bias


def _size(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])


def _mask(images: ImageBatch, maps: Tensor) -> Tensor | None:
    """`(B, 1, H, W)`, 0 where a cell of `maps` shows padding only; None where there is no padding."""
    padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    if all(size == padded for size in images.sizes):
        return None
    return torch.stack([valid_cells(padded, size, _size(maps), maps.device) for size in images.sizes])[:, None]
