"""Assignment by the largest IoU. Ren et al., Faster R-CNN, 2015, arXiv:1506.01497, sec. 3.1.2.

What every other assigner is compared with. IoU is hard on tiny objects: a 4 px object and the 8 px anchor around it have
an IoU of 0.25, and one pixel of shift takes an 8 px box from 1 to 0.62 (along the diagonal), a 32 px box to 0.88.

Deviation: each object also takes the anchors that overlap it best, however little (`low_quality`); mmdetection asks for
0.3 there, which leaves objects of a few pixels without any.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flyspeck.models.assign import max_iou_assign
from flyspeck.models.assigners.base import Assigner, Priors, SimilarityOptions


class MaxIoUOptions(SimilarityOptions):
    """By the largest overlap (IoU): the usual rule of detectors with anchors."""

    name: Literal["max_iou"] = "max_iou"
    """Which assigner."""


class MaxIoU(Assigner):
    """IoU of at least `foreground` learns the best object, below `background` is background; see `assign.max_iou_assign`."""

    def __init__(self, *, foreground: float, background: float, low_quality: bool = True) -> None:
        self.foreground, self.background, self.low_quality = foreground, background, low_quality

    def __call__(self, priors: Priors, objects: Tensor, ignored: Tensor) -> Tensor:
        """See `Assigner`."""
        return max_iou_assign(
            priors.boxes,
            objects,
            ignored,
            foreground=self.foreground,
            background=self.background,
            low_quality=self.low_quality,
        )
