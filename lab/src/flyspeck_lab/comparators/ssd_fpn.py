"""SSD on a feature pyramid: the "SSD, ResNet-50-FPN" of DPNet's Table V. Liu et al., ECCV 2016, arXiv:1512.02325.

The table names SSD's backbone and neck and nothing else. Here SSD's head (`flyspeck.models.heads.ssd`: predictors of its own for
each level, softmax with background, three hard negatives a positive, two squares and both orientations of 2 and 3 a cell)
stands on the pyramid P3 to P7 of RetinaNet (Lin et al., 2017) in place of SSD's extra layers. Its priors are SSD's too, by
strides: 4 strides on each level, as SSD's 30 px on stride 8.

Counts with 15 classes at 1024x1024 by the `mmcv` convention: 32.888 M parameters, 109.830 G. None are printed.

Deviations: images keep their size and need not be square; others are SSD's.

Numbers: the table gives 29.86 mAP on DOTA, which is what the data set's own paper prints for an SSD on Inception-v2 (Xia et al.,
CVPR 2018, arXiv:1711.10398); so are the table's R-FCN (52.58) and Faster R-CNN (60.46), there on ResNet-101.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import nn

from flyspeck.models.anchors import AnchorBuilder, AnchorGrid
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import SSDHead, cell_shapes
from flyspeck.models.layers import NormBuilder
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import Suppression
from flyspeck.options import Options, Share
from flyspeck.types import FeatureSpec

RATIOS = (1.0, 2.0, 3.0)
STRIDES = 4.0
"""Side of a cell's smaller square, in strides."""


def ssd_priors(features: Sequence[FeatureSpec]) -> AnchorGrid:
    """Six a cell: squares of 4 strides and of its mean with the next level's, and both orientations of 2 and 3."""
    return AnchorGrid([cell_shapes(STRIDES * f.stride, 2 * STRIDES * f.stride, RATIOS) for f in features])


class SSDFPNOptions(Options):
    """Options of SSD on a pyramid."""

    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a prior learns it."""
    negatives_per_positive: int = Field(default=3, ge=0, le=1000)
    """Background priors, the hardest of an image, for each that learns an object."""


def ssd_fpn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    norm: NormBuilder | None = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 2,
    anchors: AnchorBuilder | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """SSD's head on a pyramid of `backbone`: an FPN with strided convolutions for the extra levels, or `neck`.

    `anchors` makes the priors from the neck's features (default: `ssd_priors`); `head` goes to `SSDHead`.
    """
    neck = neck or FPN(
        backbone.features, channels=channels, num_extra=num_extra, extra="conv_c5", norm=norm, fusion=fusion
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    ssd_head = SSDHead(
        features,
        num_classes=len(classes),
        priors=(anchors or ssd_priors)(features),
        suppression=suppression,
        **head,
    )
    return Detector(backbone, neck, ssd_head, pixel_norm=pixel_norm, classes=classes)
