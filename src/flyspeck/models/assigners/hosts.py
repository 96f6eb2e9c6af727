"""Which detectors take an assigner, and what they offer it."""

from __future__ import annotations

import math

import torch

from flyspeck.errors import UserError
from flyspeck.models.assigners.base import Priors
from flyspeck.models.detector import Detector
from flyspeck.models.heads.cascade_rcnn import CascadeRCNNHead
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead
from flyspeck.models.heads.fcos import FCOSHead
from flyspeck.models.heads.retinanet import RetinaNetHead
from flyspeck.models.heads.rpn import RPN
from flyspeck.models.heads.tinaface import TinaFaceHead

Host = RPN | RetinaNetHead | FCOSHead | TinaFaceHead
"""The part of a detector that assigns: of a two-stage one, its proposal network."""


def assigning_part(detector: Detector) -> Host:
    """The part of `detector` that takes an assigner; raises UserError where none does."""
    head = detector.head
    if isinstance(head, FasterRCNNHead | CascadeRCNNHead):
        return head.rpn
    if isinstance(head, RetinaNetHead) and head.objective is not None:
        raise UserError(
            f"{type(head.objective).__name__} matches anchors by itself",
            where="assigner",
            fix="retinanet takes an assigner",
        )
    if isinstance(head, RetinaNetHead | FCOSHead | TinaFaceHead):
        return head
    raise UserError(
        f"{type(head).__name__} assigns by a rule of its own",
        where="assigner",
        fix="retinanet, tinaface, faster_rcnn, cascade_rcnn and fcos take an assigner",
    )


def priors_of(detector: Detector, size: tuple[int, int]) -> Priors:
    """What `detector` offers its assigner for an image of `size` (H, W) pixels."""
    map_sizes = [(math.ceil(size[0] / f.stride), math.ceil(size[1] / f.stride)) for f in detector.features]
    return assigning_part(detector).priors(map_sizes, size, torch.device("cpu"))
