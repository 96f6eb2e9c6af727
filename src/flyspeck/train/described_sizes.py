"""What a description says of sizes: what the network saw in training, how large the objects are, metres a pixel."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import enlarged_table
from flyspeck.data.ground import KEY as GROUND
from flyspeck.data.ground import measured_ground
from flyspeck.data.images import read_image
from flyspeck.train.config import Recipe
from flyspeck.train.inputs import enlargement, enlargement_in_use

log = logging.getLogger("flyspeck")


def sizes_of(recipe: Recipe, train_set: Annotations, seen: Annotations) -> dict[str, Any]:
    """What a description says of sizes; `seen` is the training set as the network learns from it."""
    learnt, used = enlargement(recipe.data), enlargement_in_use(recipe.data, recipe.evaluate)
    # The unit of tiles: pixels that the network sees, or of the image where each tile is squeezed.
    in_use = train_set if used.squeeze is not None else seen if used == learnt else enlarged_table(train_set, used)
    return {
        "training_size": _training_size(recipe, seen),
        "object_side_99": _object_side(in_use),
        "enlarge": used.described(),
        **({} if used == learnt else {"enlarge_in_training": learnt.described()}),
    }


def ground_of(recipe: Recipe, train_set: Annotations) -> dict[str, Any]:
    """What a description says of metres a pixel; nothing where the data say nothing."""
    found = measured_ground(train_set, stated=recipe.data.metres_per_pixel)
    if found is None:
        return {}
    log.info(
        "%s: %s%s", train_set.source, found.words(), f", of {found.images} images" if found.images else ", as stated"
    )
    return {GROUND: found.to_dict()}


def _training_size(recipe: Recipe, train_set: Annotations) -> list[int]:
    """(H, W) of what the network saw in training: the crop, or the largest image."""
    if recipe.augment.crop is not None:
        return list(recipe.augment.crop)
    if (train_set.sizes > 0).all():
        return [int(side) for side in train_set.sizes.max(0)]
    return list(read_image(train_set.path(0)).shape[:2])


def _object_side(train_set: Annotations) -> float:
    """99th percentile of the objects' longer sides in pixels: what the overlap of tiles must hold. 0 without objects."""
    boxes = train_set.boxes[~train_set.ignore]
    return float(np.quantile((boxes[:, 2:] - boxes[:, :2]).max(axis=1), 0.99)) if len(boxes) else 0.0
