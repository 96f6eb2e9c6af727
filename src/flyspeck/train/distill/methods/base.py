"""What the methods of all papers share: which levels they compare, in which units, and where an image has no cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyspeck.models.detector import Detector
from flyspeck.train.distill.foreground import valid_cells
from flyspeck.train.distill.levels import LevelPair, resized
from flyspeck.train.distill.teacher import TeacherOutputs
from flyspeck.train.distill.terms import similarity
from flyspeck.types import ImageBatch, Targets


@dataclass(frozen=True)
class Level:
    """The two maps of one level, in float32, as large as the student's; 0 where a cell shows only padding."""

    name: str
    """`P2`."""
    student: Tensor
    """`(B, C_S, H, W)`, as the student's pyramid has it: no adapter has seen it."""
    teacher: Tensor
    """`(B, C_T, H, W)`, divided by `unit`."""
    valid: Tensor
    """`(B, H, W)`: 1 where a cell shows some of the image, 0 in the padding."""
    unit: Tensor
    """`()`: the root of the mean square of the teacher's map over the valid cells of the batch."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of both maps."""
        return int(self.student.shape[-2]), int(self.student.shape[-1])

    def adapted(self, adapter: nn.Module) -> Tensor:
        """The student's map behind `adapter`, in the teacher's units; `(B, C_T, H, W)`, 0 in the padding."""
        return adapter(self.student) / self.unit * self.valid[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the valid cells of each image of `values (B, H, W)`, which are 0 elsewhere; then over the images."""
        return (values.sum((1, 2)) / self.valid.sum((1, 2))).mean()


@dataclass(frozen=True)
class Scene:
    """What the ground truth says of a batch."""

    targets: Sequence[Targets]
    padded: tuple[int, int]
    """(H, W) of the batch in px."""

    def objects(self, image: int, device: torch.device) -> Tensor:
        """Boxes `(N, 4)`, px of the batch; no ignore regions."""
        return self.targets[image].objects.to(device)


class PyramidTerms(nn.Module):
    """The terms of any method that compares pyramids: `pairs` of levels, and the names of the terms that are `wanted`.

    A term is named after its level, such as `spatial P2`; what is not wanted costs no time and has no weights.
    """

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str]) -> None:
        super().__init__()
        self.pairs, self.wanted = tuple(pairs), frozenset(wanted)

    def wants(self, level: str, *terms: str) -> bool:
        """Whether any of `terms` is wanted on `level`."""
        return any(f"{term} {level}" in self.wanted for term in terms)

    def similarities(self, maps: Sequence[Tensor], given: TeacherOutputs) -> dict[str, Tensor]:
        """Linear CKA of the student's and the teacher's map of each level."""
        return {
            pair.name: similarity(maps[pair.student], resized(given[pair.name], _size(maps[pair.student])))
            for pair in self.pairs
        }


class PaperTerms(PyramidTerms, ABC):
    """The terms of a paper's method. All are means over images, and the teacher's maps have a mean square of 1 in the batch.

    So one weight means the same on every level and for every teacher, and 1 of a squared difference is as wrong as predicting
    nothing: a deviation from the papers, whose weights belong to the scale of one network's maps.
    """

    def observe(self, teacher: Detector, images: ImageBatch) -> TeacherOutputs:
        """The teacher's maps by the name of the student's level."""
        pyramid = teacher.pyramid(images)
        return {pair.name: pyramid[pair.teacher] for pair in self.pairs}

    def forward(
        self, maps: Sequence[Tensor], given: TeacherOutputs, images: ImageBatch, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Unweighted terms of a batch from the student's pyramid `maps` and what was observed of the teacher."""
        padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        learnt = {name.rpartition(" ")[2] for name in self.wanted}
        with torch.autocast(images.pixels.device.type, enabled=False):
            levels = [
                level_of(pair.name, maps[pair.student], given[pair.name], images)
                for pair in self.pairs
                if pair.name in learnt
            ]
            return self.compare(levels, Scene(targets, padded))

    @abstractmethod
    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """The wanted terms of the levels that have any, by name."""


def level_of(name: str, student: Tensor, teacher: Tensor, images: ImageBatch) -> Level:
    """The pair of maps of one level; the teacher's is brought to the student's size."""
    size = _size(student)
    padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    valid = torch.stack([valid_cells(padded, true, size, student.device) for true in images.sizes])
    student, teacher = precise(student), precise(resized(teacher, size))
    if any(true != padded for true in images.sizes):
        student, teacher = student * valid[:, None], teacher * valid[:, None]
    power = teacher.square().sum() / (valid.sum() * teacher.shape[1])
    unit = power.sqrt().clamp(min=1e-6)
    return Level(name, student, teacher / unit, valid, unit)


def precise(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def root_mean_square(differences: Tensor, count: Tensor | float) -> Tensor:
    """L2 length of each image's `differences (B, …)` over the root of `count`, the mean of the images; flat at 0, not broken."""
    return (torch.linalg.vector_norm(differences.flatten(1), dim=1) / torch.as_tensor(count) ** 0.5).mean()


def pointwise(pairs: Sequence[LevelPair], levels: Sequence[str], *, always: bool = False) -> nn.ModuleDict:
    """`P2` to a 1x1 convolution to the teacher's channels; nothing where they agree, unless `always`."""
    return nn.ModuleDict(
        {
            p.name: nn.Conv2d(*p.channels, 1) if always or p.channels[0] != p.channels[1] else nn.Identity()
            for p in pairs
            if p.name in levels
        }
    )


def _size(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])
