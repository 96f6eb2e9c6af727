"""From a recipe's `model.assigner` to the builder that the detector takes, and what it needs to know of the training set."""

from __future__ import annotations

import logging

import numpy as np
import torch

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.models.assigners.build import (
    CENTER_SAMPLING,
    AssignerBuilder,
    AssignerOptions,
    named_assigner,
    refuse_unless,
)
from flyspeck.models.assigners.hosts import priors_of
from flyspeck.models.assigners.nwd import NWDOptions
from flyspeck.models.assigners.rfla import Fields, RFLAOptions
from flyspeck.models.assigners.simd import RatioMeans, SimDOptions
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector
from flyspeck.models.receptive import fields_of_resnet50, receptive_fields
from flyspeck.models.zoo import DETECTORS

log = logging.getLogger("flyspeck")
_IMAGES = 1000
"""Most images looked at for SimD's means."""


def recipe_assigner(
    config: AssignerOptions | None, host: str, backbone: StagedBackbone, num_extra: int
) -> AssignerBuilder | None:
    """The builder for the detector `host` (its zoo name) on `backbone`, or None for the host's own rule.

    Raises UserError where the host cannot take it, and names those that can. What `settled_assigner` fills in must be there.
    """
    if config is None:
        return None
    hosts = [name for name, entry in DETECTORS.items() if config.name in entry.assigners]
    refuse_unless(config.name, host, DETECTORS[host].assigners, hosts)
    if config.name == CENTER_SAMPLING:
        return None
    whose = config.receptive_fields if isinstance(config, RFLAOptions) else "own"
    return named_assigner(
        config.name,
        receptive_fields=fields_of(backbone, num_extra, whose=whose),
        **config.model_dump(exclude={"name", "receptive_fields"}, exclude_none=True),
    )


def fields_of(backbone: StagedBackbone, num_extra: int, *, whose: Fields = "own") -> tuple[float, ...]:
    """Theoretical receptive fields in pixels of `backbone`'s maps and of `num_extra` levels above them; or ResNet-50's."""
    own = [spec.stride for spec in backbone.features]
    strides = [*own, *(own[-1] * 2 ** (i + 1) for i in range(num_extra))]
    return fields_of_resnet50(strides) if whose == "resnet50" else receptive_fields(backbone, strides)


def settled_assigner(config: AssignerOptions, detector: Detector, train: Annotations) -> AssignerOptions:
    """`config` with what it takes from the training set: NWD's constant, the mean object size; SimD's m and n.

    `detector` only lends its priors.
    """
    if isinstance(config, NWDOptions) and config.constant is None:
        objects = _objects(train)
        constant = round(float(box_algebra.size(objects).mean()), 2)
        log.info("NWD's constant, the mean size of the training set's objects: %.2f px", constant)
        return config.model_copy(update={"constant": constant})
    if isinstance(config, SimDOptions) and config.ratios is None:
        m, n = simd_ratios(detector, train)
        log.info("SimD's m and n of the training set: %.3f, %.3f", m, n)
        return config.model_copy(update={"ratios": (round(m, 4), round(n, 4))})
    return config


def simd_ratios(detector: Detector, annotations: Annotations) -> tuple[float, float]:
    """SimD's m and n over the pairs of objects and priors of up to 1000 images, evenly spread; sizes must be known."""
    _objects(annotations)
    means = RatioMeans()
    step = max(1, -(-len(annotations) // _IMAGES))
    for row in range(0, len(annotations), step):
        height, width = (int(side) for side in annotations.sizes[row])
        rows = annotations.of_image(row)
        objects = torch.from_numpy(annotations.boxes[rows][~annotations.ignore[rows]]).float()
        if len(objects) and height > 0:
            means.add(objects, priors_of(detector, (height, width)).boxes)
    try:
        return means.values
    except ValueError:
        raise UserError(
            "no image of known size has an object: SimD has nothing to take its means from",
            where=annotations.source,
            fix="give model.assigner.ratios",
        ) from None


def _objects(annotations: Annotations) -> np.ndarray:
    objects = annotations.boxes[~annotations.ignore]
    if len(objects) == 0:
        raise UserError("no objects to fit an assigner to", where=annotations.source, fix="annotate some objects")
    return objects
