"""Label assignment by Gaussian receptive fields. Xu et al., RFLA, ECCV 2022, arXiv:2208.08738.

The prior of an output is neither an anchor nor a point but what its cell sees: a Gaussian around the cell's centre whose
standard deviations are half the effective receptive field (ERF), itself half the theoretical one (sec. 3.1). An object is
the Gaussian of its box. How well they fit is the receptive field distance (sec. 3.2), 1 / (1 + D) in (0, 1], with D

    `wasserstein`: |(cx, cy, w/2, h/2)_field - (cx, cy, w/2, h/2)_object|^2                              (eq. 5)
    `kl`: KL(field || object)
        = (w_f^2/w_g^2 + h_f^2/h_g^2 + 4 dx^2/w_g^2 + 4 dy^2/h_g^2 + ln(w_g^2/w_f^2) + ln(h_g^2/h_f^2) - 2) / 2    (eq. 7)

Hierarchical assignment (HLA, sec. 3.3) ranks instead of thresholding: each object takes its `k` best priors; then the
fields are shrunk by `decay` and each object takes the best again, if nobody has it. So every size gets about as many.

In a two-stage detector it assigns the RPN's outputs, in FCOS the points. The paper puts receptive fields in the place of
the RPN's anchors: `anchors: {receptive_fields: true}` in a recipe. With other anchors, an anchor's field has its shape: the
level's ERF times the anchor's sides over the level's mean anchor.

Deviations: fields are those of the backbone in use (`models.receptive`), where the paper takes ResNet-50's for all, as
`receptive_fields: resnet50` does; an output wanted by two objects goes to the one it fits best, not to the last in the file, and
an object that lost all of its own to others (two things in one place) takes the best that is free; the fields are shrunk in a
copy (the authors' code shrinks the anchors themselves). As in their code, priors that tie with the k-th are taken too, and a
prior with a distance of 0.8 or more that nobody took is ignored rather than background.

Numbers: the abstract claims +4.0 AP over the best others on AI-TOD. On TinyPerson, Faster R-CNN with RFLA and ResNet-50 has
an AP50_tiny of 48.86, without 47.35 (Ning, 2023, Tables 2 and 7). They were not reproduced here: neither set could be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flyspeck.models.anchors import AnchorGrid, anchor_shapes
from flyspeck.models.assign import BACKGROUND, IGNORED, Similarity, object_block, spare_ignored
from flyspeck.models.assigners.base import Assigner, Priors
from flyspeck.models.assigners.nwd import squared_wasserstein
from flyspeck.options import Count, Options
from flyspeck.types import FeatureSpec

Distance = Literal["kl", "wasserstein"]
Fields = Literal["own", "resnet50"]
"""Whose theoretical receptive fields count: those of the backbone in use, or ResNet-50's, as in the paper."""
_MIN_SIDE = 1e-3
"""Pixels: a thinner box would be no Gaussian."""


def rfd_wasserstein(objects: Tensor, fields: Tensor) -> Tensor:
    """Receptive field distance by Wasserstein, in (0, 1]: boxes `(N, 4)` and `(A, 4)` to `(N, A)`."""
    return 1 / (1 + squared_wasserstein(objects, fields))


def rfd_kl(objects: Tensor, fields: Tensor) -> Tensor:
    """Receptive field distance by Kullback-Leibler, in (0, 1]: boxes `(N, 4)` and `(A, 4)` to `(N, A)`."""
    total: Tensor | None = None
    for axis in (0, 1):
        side = (objects[:, axis + 2] - objects[:, axis]).clamp(min=_MIN_SIDE)[:, None]
        field = (fields[:, axis + 2] - fields[:, axis]).clamp(min=_MIN_SIDE)[None]
        shift = (objects[:, axis] + objects[:, axis + 2])[:, None] / 2 - (fields[:, axis] + fields[:, axis + 2])[
            None
        ] / 2
        ratio = (field / side).square_()
        part = shift.square_().mul_(4).div_(side**2).add_(ratio).sub_(ratio.log()).sub_(1)
        total = part if total is None else total.add_(part)
    assert total is not None
    # Rounding may take the divergence of equal Gaussians below 0.
    return 1 / (1 + (total / 2).clamp_(min=0))


class RFLAOptions(Options):
    """By the distance of receptive field and object: each object takes the nearest priors in turn, without thresholds."""

    name: Literal["rfla"] = "rfla"
    """Which assigner."""
    receptive_fields: Fields = "own"
    """`own`: those of the backbone in use; `resnet50`: the paper's, which are ResNet-50's for every backbone."""
    distance: Distance = "kl"
    """Of receptive field and object, both as Gaussians."""
    k: Count = 3
    """Priors that each object takes at first."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """What the fields are shrunk by before each object takes one more."""


class RFLA(Assigner):
    """`receptive_fields` are the theoretical ones of the levels in pixels, finest first; the rest is in the module's head."""

    def __init__(
        self,
        receptive_fields: Sequence[float],
        *,
        distance: Distance = "kl",
        k: int = 3,
        decay: float = 0.9,
        fraction: float = 0.5,
        ignore_from: float = 0.8,
    ) -> None:
        if k < 1 or not 0 < decay <= 1 or not 0 < fraction <= 1:
            raise ValueError(f"RFLA needs k >= 1 and decay and fraction in (0, 1], got {k}, {decay}, {fraction}")
        self.effective = tuple(fraction * field for field in receptive_fields)
        self.similarity: Similarity = rfd_kl if distance == "kl" else rfd_wasserstein
        self.k, self.decay, self.ignore_from = k, decay, ignore_from

    def __call__(self, priors: Priors, objects: Tensor, ignored: Tensor) -> Tensor:
        """See `Assigner`."""
        fields = self.fields(priors)
        assigned = torch.full((len(fields),), BACKGROUND, dtype=torch.int64, device=fields.device)
        if len(objects) and len(fields):
            first, _ = _best_of_the_ranked(fields, objects, self.similarity, self.k)
            second, nearest = _best_of_the_ranked(_shrunk(fields, self.decay), objects, self.similarity, 1)
            assigned[nearest >= self.ignore_from] = IGNORED
            assigned = torch.where(second >= 0, second, assigned)
            assigned = torch.where(first >= 0, first, assigned)
            self._serve_the_starved(assigned, fields, objects)
        spare_ignored(assigned, priors.boxes, ignored)
        return assigned

    def _serve_the_starved(self, assigned: Tensor, fields: Tensor, objects: Tensor) -> None:
        """Gives, in place, each object that others left without any prior the best of those that nobody has."""
        served = torch.zeros(len(objects), dtype=torch.bool, device=assigned.device)
        served[assigned[assigned >= 0]] = True
        for row in torch.nonzero(~served).squeeze(1).tolist():
            values = self.similarity(objects[row : row + 1], fields)[0]
            values[assigned >= 0] = -1.0
            best = int(values.argmax())
            if values[best] >= 0:
                assigned[best] = row

    def fields(self, priors: Priors) -> Tensor:
        """The effective receptive fields of all priors as boxes `(A, 4)`."""
        sides = priors.boxes[:, 2:] - priors.boxes[:, :2]
        half = sides / 2
        for level, effective in enumerate(self.effective):
            here = priors.levels == level
            if here.any():
                mean = sides[here].log().mean().exp()  # of the size, the square root of the area
                half[here] *= effective / mean
        center = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
        return torch.cat([center - half, center + half], 1)


def _shrunk(boxes: Tensor, factor: float) -> Tensor:
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return torch.cat([center - half, center + half], 1)


def _best_of_the_ranked(fields: Tensor, objects: Tensor, similarity: Similarity, k: int) -> tuple[Tensor, Tensor]:
    """Of each field `(A,)`: the object that ranks it among its `k` best and fits it best (-1: none), and its largest
    similarity to any object.
    """
    winner = torch.full((len(fields),), -1, dtype=torch.int64, device=fields.device)
    won = torch.full((len(fields),), -1.0, device=fields.device)
    nearest = torch.zeros(len(fields), device=fields.device)
    step = object_block(fields)
    for start in range(0, len(objects), step):
        values = similarity(objects[start : start + step], fields)  # (n, A)
        nearest = torch.maximum(nearest, values.amax(0))
        last = values.topk(min(k, values.shape[1]), dim=1).values[:, -1:]
        value, row = values.masked_fill_(values < last, -1.0).max(0)
        better = value > won
        won = torch.where(better, value, won)
        winner = torch.where(better, row + start, winner)
    return winner, nearest


def receptive_anchors(
    features: Sequence[FeatureSpec],
    *,
    receptive_fields: Sequence[float],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    fraction: float = 0.5,
) -> AnchorGrid:
    """Effective receptive fields in the place of anchors: one size a level, of the shapes `ratios` (h/w)."""
    if len(features) != len(receptive_fields):
        raise ValueError(f"{len(receptive_fields)} receptive fields for {len(features)} levels")
    return AnchorGrid(anchor_shapes([fraction * field for field in receptive_fields], ratios=ratios))
