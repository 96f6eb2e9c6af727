"""From a recipe and a training set to a detector: here the configuration ends, and plain arguments begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, nearest
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet18, resnet34, resnet50, resnet101
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.faster_rcnn import faster_rcnn
from flyspeck.models.layers import NORMS
from flyspeck.models.postprocess import Suppression
from flyspeck.models.retinanet import retinanet
from flyspeck.train.checkpoint import load_weights, weights_file
from flyspeck.train.config import AnchorConfig, ModelConfig

_BACKBONES = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}
_DETECTORS = {"retinanet": retinanet, "faster_rcnn": faster_rcnn}


def fit_anchors(annotations: Annotations, finest_stride: float) -> AnchorConfig:
    """Anchors that follow a data set: the size from its smaller objects, the ratios from its shapes.

    The base size is the 25th percentile of the objects' sizes, between one and three strides of the finest level; the
    ratios (height over width) are the 15th, 50th and 85th percentiles, merged where they differ by less than 1.3.
    """
    objects = annotations.boxes[(annotations.labels >= 0) & ~annotations.ignore]
    sides = objects[:, 2:] - objects[:, :2]
    whole = (sides > 0).all(1)
    objects, sides = objects[whole], sides[whole]
    if len(objects) == 0:
        raise UserError("no boxes to fit anchors to", where=annotations.source, fix="set model.anchors.fit to false")
    base = float(np.clip(np.quantile(box_algebra.size(objects), 0.25), finest_stride, 3 * finest_stride))
    ratios: list[float] = []
    for ratio in np.quantile(sides[:, 1] / sides[:, 0], [0.15, 0.5, 0.85]):
        if not ratios or ratio / ratios[-1] >= 1.3:
            ratios.append(round(float(ratio), 2))
    return AnchorConfig(base_scale=round(base / finest_stride, 2), ratios=ratios, octaves=2)


def pyramid_levels(levels: str) -> tuple[int, int]:
    """`2-6` to (2, 6): first and last pyramid level, at strides 2^first to 2^last."""
    first, dash, last = levels.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 2 <= int(first) <= 5 <= int(last)):
        raise UserError(f"'{levels}' are no pyramid levels", where="model.levels", fix="write 2-6, 3-7 or the like")
    return int(first), int(last)


def build_detector(
    model: ModelConfig, *, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], load: bool = True
) -> Detector:
    """The detector of a recipe, for pictures of `len(mean)` channels with these statistics in [0, 1].

    `load` False leaves out the backbone's pretrained weights, where a checkpoint follows.
    """
    detector_name, _, backbone_name = model.name.partition(":")
    for name, known in ((detector_name, _DETECTORS), (backbone_name, _BACKBONES)):
        if name not in known:
            raise UserError(f"no '{name}' in '{model.name}'", where="model.name", fix=nearest(name, known))
    first, last = pyramid_levels(model.levels)
    backbone = _BACKBONES[backbone_name](
        width=model.width,
        weights=model.weights if load else None,
        outputs=tuple(f"stage{i - 1}" for i in range(first, 6)),
    )
    if model.freeze_norms:
        freeze_norms(backbone)
    if model.frozen_stages:
        freeze_stages(backbone, model.frozen_stages)
    if isinstance(model.fusion, str):
        raise UserError(f"fusion '{model.fusion}' was not resolved", where="model.fusion")
    anchors = model.anchors
    try:
        return _DETECTORS[detector_name](
            backbone,
            classes=classes,
            pixel_norm=PixelNorm(mean, std),
            channels=model.channels,
            norm=NORMS[model.norm],
            fusion=model.fusion,
            num_extra=last - 5,
            anchors=partial(
                strided_anchors, base_scale=anchors.base_scale, ratios=anchors.ratios, octaves=anchors.octaves
            ),
            suppression=Suppression(score=model.min_score, iou=model.nms, max_detections=model.max_detections),
            **model.head,
        )
    except TypeError as error:
        raise UserError(str(error), where="model.head", fix=f"see the arguments of {detector_name}") from error


def describe_model(
    model: ModelConfig, *, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What a checkpoint must say so that `load_detector` can build its model again."""
    return {
        "model": model.model_dump(mode="json"),
        "classes": list(classes),
        "mean": [float(m) for m in mean],
        "std": [float(s) for s in std],
    }


def detector_from_description(description: Mapping[str, Any]) -> Detector:
    """The detector that `describe_model` described, with random weights."""
    model = ModelConfig.model_validate(description["model"])
    return build_detector(
        model, classes=description["classes"], mean=description["mean"], std=description["std"], load=False
    )


def load_detector(path: Path | str) -> Detector:
    """The trained detector of a run folder (its best weights) or of a weights file, in evaluation mode.

    Nothing in the file is executed. Raises UserError for a file that is cut off, of another program, or of another model.
    """
    return load_described(path)[0]


def load_described(path: Path | str) -> tuple[Detector, dict[str, Any]]:
    """`load_detector`, and what the file says of itself: model, classes, figures, recipe, training size."""
    file = weights_file(path)
    state, description = load_weights(file)
    detector = detector_from_description(description)
    wanted = detector.state_dict()
    for name, value in wanted.items():
        if name not in state or state[name].shape != value.shape:
            got = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
            raise UserError(f"weights of another model: {name} has {got}, needs {tuple(value.shape)}", where=file)
    detector.load_state_dict(state)
    return detector.eval(), description
