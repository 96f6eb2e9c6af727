"""What a one-stage head learns from: every image of a batch assigned, and the positives side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flyspeck.models.assign import BACKGROUND
from flyspeck.models.assigners.base import Assigner, Priors
from flyspeck.models.losses import mean_over_processes
from flyspeck.types import Targets


@dataclass(frozen=True)
class DenseTargets:
    """Of B images with A priors and K classes; P priors of the batch learn an object."""

    wanted: Tensor
    """(B, A, K) float: 1 at the class that a positive learns."""
    counted: Tensor
    """(B, A) bool: neither between the thresholds nor under an ignore region."""
    image: Tensor
    """(P,) int64: the image of each positive."""
    row: Tensor
    """(P,) int64: its prior."""
    objects: Tensor
    """(P, 4) xyxy: what it learns."""
    positives: Tensor
    """Scalar: P, as the mean over all processes, at least 1: what losses are divided by."""


def dense_targets(priors: Priors, targets: Sequence[Targets], assigner: Assigner, num_classes: int) -> DenseTargets:
    """Assigns `priors` to the objects of every image of a batch."""
    assigned = torch.stack([assigner(priors, t.objects, t.ignored) for t in targets])  # (B, A)
    image, row = torch.nonzero(assigned >= 0, as_tuple=True)
    objects = torch.cat([t.objects for t in targets])
    labels = torch.cat([t.object_labels for t in targets])
    counts = [len(t.objects) for t in targets]
    first = torch.tensor([0, *counts[:-1]], device=assigned.device).cumsum(0)
    matched = first[image] + assigned[image, row]
    wanted = torch.zeros(*assigned.shape, num_classes, device=assigned.device)
    wanted[image, row, labels[matched]] = 1
    positives = mean_over_processes(len(image), assigned.device)
    return DenseTargets(wanted, assigned >= BACKGROUND, image, row, objects[matched], positives)
