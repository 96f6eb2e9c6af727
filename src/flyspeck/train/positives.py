"""How many priors each label assigner gives to objects of each size: what a detector would learn from on a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.models.assigners.build import ASSIGNER_OPTIONS, AssignerOptions
from flyspeck.models.assigners.hosts import map_sizes_of
from flyspeck.models.detector import Detector
from flyspeck.models.names import parse_name
from flyspeck.models.zoo import DETECTORS
from flyspeck.options import validated
from flyspeck.size_bins import BINS, bin_of
from flyspeck.train.assigners import settled_assigner
from flyspeck.train.build import build_detector, finest_stride, fitted_anchors
from flyspeck.train.config import ModelConfig, load_recipe
from flyspeck.types import Targets

IMAGES = 200
"""Images looked at, evenly spread over the data set."""


def positives_by_size(annotations: Annotations, detector: str, *, images: int = IMAGES) -> dict[str, Any]:
    """For every assigner that `detector` takes: objects, positives and objects without any, by size bin.

    `detector` is a zoo name, with that detector's own anchors, or the path of a recipe, with the recipe's. Plain values, ready
    for json. Images of unknown size are left out. Raises UserError for a detector that takes no assigner, and where there
    is nothing to assign.
    """
    model, own = _model(detector)
    host = parse_name(model.name).detector
    names = DETECTORS[host].assigners if host else ()
    if not names:
        can = ", ".join(key for key, entry in DETECTORS.items() if entry.assigners)
        raise UserError(
            f"'{model.name}' takes no assigner", where="--detector", fix=f"these do: {can}, each with a backbone"
        )
    known = np.flatnonzero((annotations.sizes > 0).all(1))
    rows = known[np.unique(np.linspace(0, len(known) - 1, min(images, len(known))).round().astype(int))]
    table = annotations.select_images(rows)
    if not (~table.ignore).any():
        raise UserError("no objects to assign", where=annotations.source, fix="look at a set that has some")
    if model.anchors is not None and model.anchors.fit:
        model = model.model_copy(update={"anchors": fitted_anchors(table, finest_stride(model))})
    bare = _build(model)
    found: dict[str, Any] = {}
    for assigner in names:
        asked = own if own is not None and own.name == assigner else ASSIGNER_OPTIONS[assigner]()
        config = settled_assigner(asked, bare, table)  # type: ignore[arg-type]
        found[assigner] = _count(_build(model.model_copy(update={"assigner": config})), table)
    return {"detector": detector, "images": len(table), "assigners": found}


def _model(detector: str) -> tuple[ModelConfig, AssignerOptions | None]:
    """A small model with the anchors of a zoo name or of a recipe, and the recipe's assigner.

    Width and channels change nothing about anchors, points and receptive fields.
    """
    if not detector.endswith((".yaml", ".yml")):
        return validated(ModelConfig, {"name": detector, "width": 0.25, "channels": 16}, where="--detector"), None
    given = load_recipe(detector).model
    return ModelConfig(
        name=given.name, levels=given.levels, anchors=given.anchors, width=min(given.width, 0.25), channels=16
    ), given.assigner


def _build(model: ModelConfig) -> Detector:
    return build_detector(model, classes=["object"], mean=[0.5], std=[0.5], load=False)


def _count(detector: Detector, table: Annotations) -> dict[str, dict[str, float]]:
    """By bin: `objects`, `positives`, their mean for one object, and the share of objects that have `none`."""
    areas: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    part = detector.head.assigning_part()
    for row, image in enumerate(table):
        height, width = (int(side) for side in table.sizes[row])
        boxes, ignore = table.boxes[image], table.ignore[image]
        target = _target(boxes, ignore)
        assigned = part.assign_image(map_sizes_of(detector, (height, width)), (height, width), target)
        areas.append(box_algebra.area(target.objects.double().numpy()))
        counts.append(np.bincount(assigned[assigned >= 0].numpy(), minlength=len(target.objects)))
    count = np.concatenate(counts)
    which = bin_of(np.concatenate(areas))
    result = {}
    for number, name in enumerate(BINS):
        here = count[which == number]
        result[name] = {
            "objects": len(here),
            "positives": int(here.sum()),
            "mean": round(float(here.mean()), 3) if len(here) else 0.0,
            "none": round(float((here == 0).mean()), 4) if len(here) else 0.0,
        }
    return result


def _target(boxes: np.ndarray, ignore: np.ndarray) -> Targets:
    whole = (boxes[:, 2:] > boxes[:, :2]).all(1)  # training drops boxes without area
    learnt, ignored = torch.from_numpy(boxes[whole]).float(), torch.from_numpy(ignore[whole])
    return Targets(learnt, torch.where(ignored, -1, 0), ignored)
