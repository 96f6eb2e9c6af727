"""Normalised Gaussian Wasserstein distance: assigner and box loss. Wang et al., 2021, arXiv:2110.13389.

A box is taken for a two-dimensional Gaussian whose mean is its centre and whose standard deviations are half its width
and height. The 2-Wasserstein distance of two such Gaussians is plain (eq. 4-6): boxes are points (cx, cy, w/2, h/2), and

    W2^2(a, b) = |a - b|^2;    NWD(a, b) = exp(-W2 / C)

`C` has the scale of the data set's objects: the paper sets it to the mean size of AI-TOD, 12.8 px. It is smooth, and does not
vanish where boxes no longer overlap.

* Assigner (sec. 4.2): NWD in place of IoU, with the thresholds of the host (0.7 and 0.3 in the RPN).
* Loss (sec. 4.4): 1 - NWD of the decoded box and the object; `box_loss: nwd` of a head. In the authors' RPN it weighs 10.

Deviations: the suppression stays by IoU (sec. 4.3 puts NWD there too); objects always take their most similar anchors, as
with every assigner here (the authors' code asks for 0.3); the loss keeps its gradient finite where two boxes are equal.

Numbers: the abstract claims +6.7 AP over the plain detector and +6.0 AP over the best others on AI-TOD. They were not
reproduced here: AI-TOD could not be had.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flyspeck.models.assign import max_similarity_assign
from flyspeck.models.assigners.base import Assigner, Priors, SimilarityOptions

AITOD_SIZE = 12.8
"""Mean object size of AI-TOD in px, the paper's C."""


def as_points(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` xyxy to the points (cx, cy, w/2, h/2) whose squared distance is the squared W2."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, (high - low) / 2], -1)


def squared_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise squared 2-Wasserstein distance in px^2, `(N, 4)` and `(M, 4)` to `(N, M)` (eq. 6)."""
    p, q = as_points(a), as_points(b)
    total = (p[:, None, 0] - q[None, :, 0]) ** 2
    for i in range(1, 4):
        total += (p[:, None, i] - q[None, :, i]) ** 2
    return total


def squared_paired(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise squared 2-Wasserstein distance in px^2, two `(N, 4)` to `(N,)`."""
    return ((as_points(a) - as_points(b)) ** 2).sum(-1)


def nwd(a: Tensor, b: Tensor, *, constant: float = AITOD_SIZE) -> Tensor:
    """Pairwise NWD in (0, 1], `(N, 4)` and `(M, 4)` to `(N, M)` (eq. 7); `constant` is C in px."""
    return torch.exp(-squared_wasserstein(a, b).sqrt() / constant)


def nwd_loss(prediction: Tensor, target: Tensor, *, constant: float = AITOD_SIZE) -> Tensor:
    """Sum of 1 - NWD over pairs of xyxy boxes `(N, 4)`."""
    distance = squared_paired(prediction, target)
    # A square root has no gradient at 0; 1e-3 px is far below what a label means.
    return (1 - torch.exp(-(distance + 1e-6).sqrt() / constant)).sum()


class NWDOptions(SimilarityOptions):
    """By the normalised Wasserstein distance."""

    name: Literal["nwd"] = "nwd"
    """Which assigner."""
    constant: float | None = Field(default=None, gt=0)
    """C in px; null takes the mean size of the training set's objects."""


class NWD(Assigner):
    """The most similar object by NWD, from `foreground` on; background below `background`; see `max_similarity_assign`."""

    def __init__(
        self, *, foreground: float, background: float, constant: float = AITOD_SIZE, low_quality: bool = True
    ) -> None:
        if constant <= 0:
            raise ValueError(f"NWD's constant is a size in px, got {constant}")
        self.foreground, self.background, self.low_quality = foreground, background, low_quality
        self.constant = constant

    def __call__(self, priors: Priors, objects: Tensor, ignored: Tensor) -> Tensor:
        """See `Assigner`."""
        return max_similarity_assign(
            priors.boxes,
            objects,
            ignored,
            similarity=lambda a, b: nwd(a, b, constant=self.constant),
            foreground=self.foreground,
            background=self.background,
            low_quality=self.low_quality,
        )
