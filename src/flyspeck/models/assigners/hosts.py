"""The priors of a detector, as its label assigner is given them."""

from __future__ import annotations

import math

import torch

from flyspeck.models.assigners.base import Priors
from flyspeck.models.detector import Detector


def priors_of(detector: Detector, size: tuple[int, int]) -> Priors:
    """What `detector` offers its assigner for an image of `size` (H, W) pixels; raises UserError where it takes none."""
    return detector.head.assigning_part().priors(map_sizes_of(detector, size), size, torch.device("cpu"))


def map_sizes_of(detector: Detector, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(H_l, W_l) of the maps that the head sees of an image of `size` (H, W) pixels."""
    return [(math.ceil(size[0] / f.stride), math.ceil(size[1] / f.stride)) for f in detector.features]
