"""`build`: a detector or a backbone by its name, with everything that is not asked for as its paper has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError, nearest
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build as build_model
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.layers import NORMS
from flyspeck.models.postprocess import Suppression


def build(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    width: float = 1.0,
    channels: int = 256,
    levels: str | None = None,
    norm: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    suppression: Suppression | None = None,
    head: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> Detector | StagedBackbone:
    """Build an untrained model by its name.

    A `Detector` has `losses(images, targets)`, `detect(images)` and `pyramid(images)`, for an `ImageBatch` of pixels
    (B, C, H, W) and one `Targets` an image. To train one, and to have it saved with all that it needs, write a recipe.

    Args:
        name: `DETECTOR:BACKBONE[:NECK]`, such as `retinanet:bh_resnet50` or `faster_rcnn:resnet18:sspnet`, or `BACKBONE`
            alone; `flyspeck models` lists them.
        classes: Names of the foreground classes; None: as many as the paper's data set has.
        width: Multiplies the channels of the backbone, and of nothing else.
        channels: Of neck and head.
        levels: Of the pyramid, such as `2-6`: level k has stride 2^k. None: the detector's own.
        norm: Of neck and head: `bn`, `gn` or `none`; None: the detector's own.
        weights: The backbone's: a torchvision name such as `IMAGENET1K_V1`, or a file.
        mean: (C,) of the pixels in [0, 1]; its length is the number of channels of an image. None, for both: of the images
            that the backbone's published weights have seen.
        std: (C,) likewise.
        suppression: Score threshold, IoU and largest number of detections; None: the detector's own.
        head: Further options of the detector, those under `model.head` in a recipe.
        backbone: Further options of the backbone's builder.

    Returns:
        The detector, or the backbone where the name is one; in training mode, with random weights but for `weights`.

    Raises:
        UserError: For a name, level or option that does not exist (with the nearest that does), and for parts that do not go
            together.
    """
    options: dict[str, Any] = dict(head or {})
    if (mean is None) != (std is None) or (mean is not None and std is not None and len(mean) != len(std)):
        raise UserError("mean and std are not of one length", where="mean, std", fix="give both, a number a channel")
    if norm is not None:
        if norm not in NORMS:
            raise UserError(f"no norm '{norm}'", where="norm", fix=nearest(norm, NORMS))
        options["norm"] = NORMS[norm]
    if suppression is not None:
        options["suppression"] = suppression
    model = build_model(
        name,
        classes=classes,
        pixel_norm=None if mean is None or std is None else PixelNorm(mean, std),
        width=width,
        channels=channels,
        levels=levels,
        weights=Path(weights) if isinstance(weights, os.PathLike) else weights,
        backbone_options=backbone,
        **options,
    )
    assert isinstance(model, Detector | StagedBackbone)
    return model
