"""Similarity distance. Shi et al., 2024, arXiv:2407.02394 (IROS 2024).

How alike two boxes are in place and in shape, each relative to their sizes, with two numbers that the training set gives:

    location = sqrt((m dx / (w_g + w_a))^2 + (n dy / (h_g + h_a))^2)
    shape    = sqrt((m (w_g - w_a) / (w_g + w_a))^2 + (n (h_g - h_a) / (h_g + h_a))^2)
    SimD     = exp(-(location + shape))

m is the mean of |dx| / (w_g + w_a) over all pairs of an object and an anchor of the same training image, n that of
|dy| / (h_g + h_a). The larger the images are against their objects, the stricter SimD gets. The assigner puts it in
place of IoU, with the host's thresholds (0.7 and 0.3 in the RPN).

Deviations: the suppression stays by IoU (the paper tries SimD there too); objects always take their most similar anchors
(the authors' code asks for 0.3). The product with m is the authors' code; the paper prints it as 1/m in a denominator.

Numbers: the abstract claims +1.8 AP and +4.1 AP of very tiny objects over the best others on AI-TOD; the authors' code
has m = 6.13 and n = 4.59 for VisDrone. They were not reproduced here: neither set could be had.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flyspeck.models.assign import max_similarity_assign
from flyspeck.models.assigners.base import Assigner, Priors, SimilarityOptions
from flyspeck.options import Positive


def simd(a: Tensor, b: Tensor, *, m: float, n: float) -> Tensor:
    """Pairwise SimD in [0, 1], `(N, 4)` and `(M, 4)` to `(N, M)`; symmetric. Sides must be above 0."""
    location = _scaled_distance((a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2, a, b, m, n)
    shape = _scaled_distance(a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2], a, b, m, n)
    return torch.exp(-(location + shape))


def _scaled_distance(p: Tensor, q: Tensor, a: Tensor, b: Tensor, m: float, n: float) -> Tensor:
    """Distance of `p (N, 2)` and `q (M, 2)`, scaled along x by m and along y by n over the sum of the boxes' sides."""
    total = None
    for axis, factor in ((0, m), (1, n)):
        sides = (a[:, None, axis + 2] - a[:, None, axis]) + (b[None, :, axis + 2] - b[None, :, axis])
        part = (p[:, None, axis] - q[None, :, axis]).mul_(factor).div_(sides.clamp_(min=1e-6)).square_()
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.sqrt_()


class RatioMeans:
    """Gathers m and n over a training set, image by image: the means of |dx| / (w_g + w_a) and |dy| / (h_g + h_a)."""

    def __init__(self) -> None:
        self._sums = [0.0, 0.0]
        self._pairs = [0, 0]

    def add(self, objects: Tensor, anchors: Tensor) -> None:
        """All pairs of `objects (N, 4)` and `anchors (A, 4)` of one image."""
        if len(objects) == 0 or len(anchors) == 0:
            return
        boxes = objects.double()
        for axis in (0, 1):
            # Along one axis the anchors of a column (or row) are the same: a grid of H x W has only W different ones.
            spans, counts = torch.unique(anchors[:, [axis, axis + 2]].double(), dim=0, return_counts=True)
            distance = (boxes[:, None, [axis, axis + 2]].mean(-1) - spans.mean(-1)).abs()
            sides = (boxes[:, axis + 2] - boxes[:, axis])[:, None] + (spans[:, 1] - spans[:, 0])
            self._sums[axis] += float((distance / sides.clamp(min=1e-6) * counts).sum())
            self._pairs[axis] += len(objects) * len(anchors)

    @property
    def values(self) -> tuple[float, float]:
        """(m, n); raises ValueError where no pair was seen."""
        if 0 in self._pairs:
            raise ValueError("no pair of an object and an anchor was seen")
        return self._sums[0] / self._pairs[0], self._sums[1] / self._pairs[1]


class SimDOptions(SimilarityOptions):
    """By the similarity distance."""

    name: Literal["simd"] = "simd"
    """Which assigner."""
    ratios: tuple[Positive, Positive] | None = None
    """m and n; null takes them from the training set."""


class SimD(Assigner):
    """The most similar object by SimD, from `foreground` on; background below `background`; see `max_similarity_assign`."""

    def __init__(self, *, foreground: float, background: float, m: float, n: float, low_quality: bool = True) -> None:
        if m <= 0 or n <= 0:
            raise ValueError(f"SimD's m and n are means of ratios above 0, got {m} and {n}")
        self.foreground, self.background, self.low_quality = foreground, background, low_quality
        self.m, self.n = m, n

    def __call__(self, priors: Priors, objects: Tensor, ignored: Tensor) -> Tensor:
        """See `Assigner`."""
        return max_similarity_assign(
            priors.boxes,
            objects,
            ignored,
            similarity=lambda a, b: simd(a, b, m=self.m, n=self.n),
            foreground=self.foreground,
            background=self.background,
            low_quality=self.low_quality,
        )
