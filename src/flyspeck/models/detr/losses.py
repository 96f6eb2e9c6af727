"""What the layers of a decoder learn from the objects that their queries were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND
from flyspeck.models.assigners.nwd import AITOD_SIZE, nwd_loss, squared_paired
from flyspeck.models.losses import giou_loss, varifocal_loss
from flyspeck.types import Targets

Closeness = Literal["iou", "nwd"]
"""How well a box fits its object: IoU, or the mean of IoU and NWD, which is above 0 for a box of 3 px that is 3 px off."""


@dataclass(frozen=True)
class Layer:
    """What the queries of a layer say."""

    logits: Tensor
    """(B, Q, K) float32."""
    boxes: Tensor
    """(B, Q, 4): centre and sides as shares of the image."""
    corners: Tensor | None = None
    """(B, Q, 4 * (bins + 1)), of D-FINE: where each side lies, as logits of a distribution."""
    start: Tensor | None = None
    """(B, Q, 4) as `boxes`, of D-FINE: the box that the sides are told relative to."""

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """Its boxes `(B, Q, 4)` xyxy px of a batch of `size` (H, W)."""
        return to_pixels(self.boxes, size)


@dataclass(frozen=True)
class LossWeights:
    """Of the parts of the losses."""

    score: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    nwd: float = 1.0
    nwd_constant: float = AITOD_SIZE
    """NWD's C in px."""
    closeness: Closeness = "nwd"


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Centre and sides `(..., 4)` as shares of an image of `size` (H, W) to xyxy px; sides below 0 are 0."""
    half = boxes[..., 2:].clamp(min=0) / 2
    low, high = boxes[..., :2] - half, boxes[..., :2] + half
    return torch.stack(
        [low[..., 0] * size[1], low[..., 1] * size[0], high[..., 0] * size[1], high[..., 1] * size[0]], -1
    )


@dataclass(frozen=True)
class Matched:
    """The queries of a batch that learn an object: P pairs."""

    image: Tensor
    """(P,)"""
    query: Tensor
    """(P,)"""
    objects: Tensor
    """(P, 4) xyxy px."""
    labels: Tensor
    """(P,)"""
    counted: Tensor
    """(B, Q) bool: which queries learn a score at all."""

    @staticmethod
    def of(rows: Tensor, targets: Sequence[Targets]) -> Matched:
        """From the row of its image's objects that every query learns, `(B, Q)`."""
        image, query = torch.nonzero(rows >= 0, as_tuple=True)
        first = torch.tensor([0, *(len(t.objects) for t in targets[:-1])], device=rows.device).cumsum(0)
        row = first[image] + rows[image, query]
        objects, labels = torch.cat([t.objects for t in targets]), torch.cat([t.object_labels for t in targets])
        return Matched(image, query, objects[row], labels[row], rows >= BACKGROUND)


def fit(boxes: Tensor, objects: Tensor, weights: LossWeights) -> Tensor:
    """How well boxes `(P, 4)` fit their objects, in [0, 1], `(P,)`."""
    overlap = box_algebra.paired_iou(boxes, objects).clamp(0, 1)
    if weights.closeness == "iou":
        return overlap
    return (overlap + torch.exp(-squared_paired(boxes, objects).sqrt() / weights.nwd_constant)) / 2


def score_loss(layer: Layer, matched: Matched, quality: Tensor) -> Tensor:
    """Varifocal: scores of matched queries learn the quality `(P,)` of their boxes, those of others 0. A sum."""
    wanted = torch.zeros_like(layer.logits)
    wanted[matched.image, matched.query, matched.labels] = quality
    return (varifocal_loss(layer.logits, wanted) * matched.counted[..., None]).sum()


def box_loss(layer: Layer, matched: Matched, size: tuple[int, int], weights: LossWeights) -> Tensor:
    """L1 of shares of the image, GIoU and NWD of matched queries, weighted. A sum."""
    shares = layer.boxes[matched.image, matched.query]
    scale = shares.new_tensor([size[1], size[0]]).repeat(2)
    objects = matched.objects
    wanted = torch.cat([box_algebra.center(objects), objects[:, 2:] - objects[:, :2]], 1) / scale
    boxes = to_pixels(shares, size)
    return (
        weights.l1 * (shares - wanted).abs().sum()
        + weights.giou * giou_loss(boxes, objects)
        + weights.nwd * nwd_loss(boxes, objects, constant=weights.nwd_constant)
    )
