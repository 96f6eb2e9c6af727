"""The contract of a label assigner: priors and objects in, the object of every prior out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from pydantic import model_validator
from torch import Tensor

from flyspeck.options import Options, Share
from flyspeck.types import Targets


@dataclass(frozen=True)
class Priors:
    """What a head offers to be assigned: one box for each of its A outputs, in pixels of the padded image."""

    boxes: Tensor
    """(A, 4) xyxy: the anchors; of a head without anchors, squares around its points."""
    levels: Tensor
    """(A,) int64: the pyramid level, 0 the finest."""

    @staticmethod
    def on_levels(boxes: Tensor, counts: Sequence[int]) -> Priors:
        """Priors `boxes (A, 4)` of which the first `counts[0]` lie on level 0, the next `counts[1]` on level 1, and so on."""
        each = torch.tensor(counts, device=boxes.device)
        levels = torch.arange(len(counts), device=boxes.device).repeat_interleave(each)
        return Priors(boxes, levels)


class SimilarityOptions(Options):
    """Of an assigner that gives each prior to the most similar object."""

    foreground: Share | None = None
    """Similarity from which a prior learns an object; null takes the detector's own."""
    background: Share | None = None
    """Similarity below which a prior is background; null takes the detector's own."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.foreground is not None and self.background is not None and self.background > self.foreground:
            raise ValueError(f"background {self.background:g} is above foreground {self.foreground:g}")
        return self


class Assigner(ABC):
    """Decides which object each prior of one image learns. Stateless: the same input, the same answer."""

    @abstractmethod
    def __call__(self, priors: Priors, objects: Tensor, ignored: Tensor) -> Tensor:
        """`(A,)` int64: a row of `objects (N, 4)`, or `assign.BACKGROUND`, or `assign.IGNORED`.

        A prior under one of the ignore regions `ignored (N', 4)` is never background. Both may be empty. The memory it
        takes does not grow with N.
        """


class AssigningPart(Protocol):
    """The part of a head that assigns (`Head.assigning_part`): what others may ask of it."""

    @property
    def assigner(self) -> Assigner | None:
        """The assigner that was put in; None where the part goes by a rule of its own."""
        ...

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """What it offers to be assigned, for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        ...

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """`(A,)` int64 what each prior of one image learns, as an `Assigner` says it: exactly as in training."""
        ...
