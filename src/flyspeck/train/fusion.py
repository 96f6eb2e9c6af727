"""`fusion: statistic` in a recipe: S-alpha of the training set for the recipe's own pyramid and assignment."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import numpy as np
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.data.fusion import AnchorLevel, FusionStatistics, assigned_points, best_anchor, fusion_statistics
from flyspeck.models.anchors import AnchorGrid
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig

log = logging.getLogger("flyspeck")

STATISTIC = "statistic"
"""The recipe's word for it; a run resolves it to factors before it builds the model."""


def recipe_fusion(annotations: Annotations, model: ModelConfig, *, size: tuple[int, int] | None) -> FusionStatistics:
    """Counts and factors of a training set for the pyramid of `model`.

    The head assigns as it does in training: by the anchors it has, or, without any, by FCOS's rule on its points. `size`
    (height, width) is what the network sees of every image; None takes each image's own. Boxes are not scaled. An empty
    level gives the factor 1 and a line in the log.
    """
    with torch.device("meta"):  # shapes only: the statistic asks for anchors and strides, not for weights
        plain = model.model_copy(update={"fusion": None, "weights": None})
        detector = build_detector(plain, classes=("object",), mean=(0.5,), std=(0.5,), load=False)
    strides = [int(spec.stride) for spec in detector.features]
    grids = [module for module in detector.head.modules() if isinstance(module, AnchorGrid)]
    if grids:
        levels = [AnchorLevel(s, np.array(shapes)) for s, shapes in zip(strides, grids[0].shapes, strict=True)]
        assign = partial(best_anchor, levels=levels)
    else:
        assign = partial(assigned_points, strides=strides)
    # Levels above the backbone's last map have no top-down edge of their own.
    extra_levels = len(strides) - len(detector.backbone.features)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fusion_statistics(annotations, assign, strides, size=size, extra_levels=extra_levels)
    for warning in caught:
        log.warning("%s", warning.message)
    return found
