"""How many objects the windows of a training hold, and what options of a head follow from that."""

from __future__ import annotations

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.options import Options, TrainingObjects
from flyspeck.train.build import finest_stride
from flyspeck.train.model_config import ModelConfig
from flyspeck.train.sections import AugmentConfig


def training_window(augment: AugmentConfig, train_set: Annotations) -> tuple[float, float]:
    """(H, W) in pixels of the largest part of an image that a training step sees; infinite where sizes are not known."""
    if augment.crop is None or augment.square_crops:
        sides = np.where(train_set.sizes > 0, train_set.sizes, np.inf).max(0, initial=1.0)
        return float(sides[0]), float(sides[1])
    smallest = min(1.0, *augment.scale)
    return augment.crop[0] / smallest, augment.crop[1] / smallest


def fullest_window(annotations: Annotations, size: tuple[float, float]) -> int:
    """Objects whose middle lies in the fullest window of `size` (H, W) px among those that begin at multiples of half a window.

    A window anywhere holds at most four times as many, and of evenly spread objects hardly more.
    """
    objects = ~annotations.ignore
    if not objects.any():
        return 0
    half = np.array([max(size[1], 1) / 2, max(size[0], 1) / 2])
    bins = np.floor(box_algebra.center(annotations.boxes[objects]) / half).astype(np.int64).clip(min=0)
    image = annotations.image_index[objects]
    most = 0
    for right in (0, 1):
        for down in (0, 1):
            # The window that begins at bin (x, y) holds the bins x, x + 1 and y, y + 1.
            place = np.column_stack([image, (bins[:, 0] + right) // 2, (bins[:, 1] + down) // 2])
            most = max(most, int(np.unique(place, axis=0, return_counts=True)[1].max()))
    return most


def fitted_head(model: ModelConfig, annotations: Annotations, window: tuple[float, float]) -> ModelConfig:
    """`model` with the head's options that follow the training set filled in; `window` (H, W) is what a training step sees.

    Raises UserError where there is nothing to follow.
    """
    if type(model.head).fitted is Options.fitted:
        return model
    objects = annotations.boxes[(annotations.labels >= 0) & ~annotations.ignore]
    sizes = box_algebra.size(objects)
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        raise UserError("no boxes to fit the head to", where=annotations.source, fix="give a set with objects")
    quarter = float(np.quantile(sizes, 0.25))
    found = TrainingObjects(fullest_window(annotations, window), quarter, finest_stride(model))
    return model.model_copy(update={"head": model.head.fitted(found)})
