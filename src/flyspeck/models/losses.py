"""Losses, as plain functions that return sums; what a sum is divided by is the head's business.

The number of positives is counted over all processes (`mean_over_processes`), so that a batch gives the same gradient
whether one process sees it or several share it.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from flyspeck import boxes as box_algebra


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, elementwise (Lin et al., 2017, eq. 5); `targets` in {0, 1} of the shape of `logits`.

    `alpha < 0` leaves the classes unweighted.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = torch.sigmoid(logits)
    wrong = wrong + targets - 2 * wrong * targets  # p where the target is 0, 1 - p where it is 1
    loss = cross_entropy * wrong**gamma
    if alpha >= 0:
        loss = loss * (1 - alpha + (2 * alpha - 1) * targets)
    return loss


def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Sum of smooth-L1 (Girshick, 2015); `beta` 0 is plain L1."""
    return F.smooth_l1_loss(prediction, target, beta=beta, reduction="sum")


def giou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of 1 - GIoU over pairs of xyxy boxes `(N, 4)`."""
    return (1 - box_algebra.paired_giou(prediction, target)).sum()


def diou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of 1 - DIoU over pairs of xyxy boxes `(N, 4)`."""
    return (1 - box_algebra.paired_diou(prediction, target)).sum()


def ciou_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of 1 - CIoU over pairs of xyxy boxes `(N, 4)`: DIoU, less a term for the shape (Zheng et al., 2020, eq. 8-11).

    As in the authors' code the weight of the shape term gets no gradient. A box without height has a shape of 1e-3 px.
    """
    sides = [(b[:, 2:] - b[:, :2]).clamp(min=1e-3) for b in (prediction, target)]
    angle, wanted = (torch.atan2(s[:, 0], s[:, 1]) for s in sides)
    shape = 4 / math.pi**2 * (wanted - angle) ** 2
    with torch.no_grad():
        weight = shape / (1 - box_algebra.paired_iou(prediction, target) + shape).clamp(min=box_algebra.EPS)
    return (1 - box_algebra.paired_diou(prediction, target) + weight * shape).sum()


def quality_focal_loss(logits: Tensor, quality: Tensor, *, beta: float = 2.0) -> Tensor:
    """Focal loss towards a score in [0, 1] that says how good a box is, elementwise (Li et al., GFL, 2020, eq. 5).

    `quality` has the shape of `logits`: 0 where nothing is, else for instance the IoU of box and object.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return cross_entropy * (quality - torch.sigmoid(logits)).abs() ** beta


def varifocal_loss(logits: Tensor, quality: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Loss towards a quality in which only the background is damped, elementwise (Zhang et al., VarifocalNet, 2021, eq. 2)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    damped = alpha * torch.sigmoid(logits).detach() ** gamma
    return cross_entropy * torch.where(quality > 0, quality, damped)


def mean_over_processes(count: Tensor | float | int, device: torch.device, *, at_least: float = 1.0) -> Tensor:
    """The mean of `count` over all processes (itself, where there is one), at least `at_least`."""
    total = torch.as_tensor(count, dtype=torch.float32, device=device).detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.clamp(min=at_least)
