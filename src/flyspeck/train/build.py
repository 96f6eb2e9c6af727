"""From a recipe and a training set to a detector: here the configuration ends, and plain arguments begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.implications import fit_anchors
from flyspeck.errors import UserError
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.assigners.rfla import receptive_anchors
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build, check_options
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.layers import NORMS
from flyspeck.models.names import DYNAMIC, ZooName, parse_name
from flyspeck.models.necks.fpn import FPN, sigma_power_
from flyspeck.models.postprocess import Suppression
from flyspeck.models.weights import levels_from_shared
from flyspeck.train.assigners import fields_of, recipe_assigner
from flyspeck.train.checkpoint import load_weights, weights_file
from flyspeck.train.config import AnchorConfig, DynamicConfig, ModelConfig
from flyspeck.train.dynamic import make_dynamic, restore_predictor
from flyspeck.train.start import take_over

FORMAT = 2
"""Of a description. 1 is that of version 0.1.0, which padded every batch to 32, SSDs' too, and counted explicit levels as
they were before a stride elimination."""
_OWN_KEYS = {"anchors", "assigner", "channels", "fusion", "norm"}
"""Of the detector's builder, but keys of the recipe's `model` itself."""


def fitted_anchors(annotations: Annotations, finest_stride: float) -> AnchorConfig:
    """Anchors that follow a data set (`data.implications.fit_anchors`), in two octave steps a level."""
    objects = annotations.boxes[(annotations.labels >= 0) & ~annotations.ignore]
    objects = objects[box_algebra.area(objects) > 0]
    if len(objects) == 0:
        raise UserError("no boxes to fit anchors to", where=annotations.source, fix="set model.anchors.fit to false")
    base, ratios = fit_anchors(objects, finest_stride)
    return AnchorConfig(base_scale=round(base / finest_stride, 2), ratios=list(ratios), octaves=2)


def build_detector(
    model: ModelConfig,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    load: bool = True,
    levels_before_elimination: bool = False,
) -> Detector:
    """The detector of a recipe, for images of `len(mean)` channels with these statistics in [0, 1].

    `load` False leaves out the backbone's pretrained weights, where a checkpoint follows. What is taken from the training
    set (fitted anchors, statistical fusion factors) must be filled in already. `levels_before_elimination` is that of
    `models.build.build`.
    """
    name = parse_name(model.name)
    if name.detector is None:
        raise UserError(
            f"'{model.name}' is a backbone", where="model.name", fix=f"write faster_rcnn:{model.name} or the like"
        )
    if name.dynamic:
        raise UserError(
            f"'{model.name}' is a name to count with", where="model.name",
            fix=f"write {model.name.removeprefix(DYNAMIC)}, and a section `dynamic`",
        )  # fmt: skip
    options = _options(name, model)
    detector = build(
        model.name,
        classes=classes,
        pixel_norm=PixelNorm(mean, std),
        width=model.width,
        levels=model.levels,
        weights=model.weights if load else None,
        levels_before_elimination=levels_before_elimination,
        prepare=partial(_prepare, model, name.detector),
        channels=model.channels,
        norm=NORMS[model.norm],
        suppression=Suppression(
            score=model.min_score, iou=model.nms, max_detections=model.max_detections, soft=model.soft_nms
        ),
        **options,
    )
    assert isinstance(detector, Detector)
    if load and model.sigma is not None:
        _initialise_by_power(detector, model.sigma)
    if load and model.start is not None:
        take_over(detector, model.start)
    return detector


def _options(name: ZooName, model: ModelConfig) -> dict[str, Any]:
    """What the recipe says of the detector's builder; raises UserError for what it does not take."""
    for key in _OWN_KEYS & model.head.keys():
        raise UserError(f"head.{key} is no option of its own", where="model.head", fix=f"set model.{key}")
    check_options(name, model.head, where="model.head")
    options: dict[str, Any] = dict(model.head)
    for key in ("anchors", "fusion"):  # of the assigner `recipe_assigner` knows more
        if getattr(model, key) is not None:
            check_options(name, {key: None}, where=f"model.{key}")
    if model.anchors is not None:
        a = model.anchors
        options["anchors"] = partial(strided_anchors, base_scale=a.base_scale, ratios=a.ratios, octaves=a.octaves)
    if model.fusion is not None:
        options["fusion"] = model.fusion
    return options


def _prepare(model: ModelConfig, host: str, backbone: StagedBackbone, num_extra: int) -> dict[str, Any]:
    """Freezes what the recipe freezes, and gives what depends on the backbone: the assigner, anchors on receptive fields."""
    if model.freeze_norms:
        freeze_norms(backbone)
    if model.frozen_stages:
        freeze_stages(backbone, model.frozen_stages)
    options: dict[str, Any] = {}
    if model.anchors is not None and model.anchors.receptive_fields:
        fields = fields_of(backbone, num_extra)
        options["anchors"] = partial(receptive_anchors, receptive_fields=fields, ratios=model.anchors.ratios)
    if model.assigner is not None:
        options["assigner"] = recipe_assigner(model.assigner, host, backbone, num_extra)
    return options


def finest_stride(model: ModelConfig) -> float:
    """Stride of the finest level of a recipe's pyramid."""
    plain = model.model_copy(update={"fusion": None, "assigner": None, "anchors": None})
    with torch.device("meta"):  # shapes only
        return build_detector(plain, classes=("object",), mean=(0.5,), std=(0.5,), load=False).features[0].stride


def _initialise_by_power(detector: Detector, sigma: float) -> None:
    if not isinstance(detector.neck, FPN):
        raise UserError("only the neck fpn has a sigma-power initialisation", where="model.sigma", fix="leave it out")
    try:
        sigma_power_(detector.neck, sigma)
    except ValueError as error:  # norm layers would undo it
        raise UserError(str(error), where="model.sigma", fix="set model.norm to none") from None


def describe_model(
    model: ModelConfig,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    dynamic: DynamicConfig | None = None,
) -> dict[str, Any]:
    """What a checkpoint must say so that `load_detector` can build its model again."""
    return {
        "format": FORMAT,
        **({} if dynamic is None else {"dynamic": dynamic.model_dump(mode="json")}),
        "model": model.model_dump(mode="json"),
        "classes": list(classes),
        "mean": [float(m) for m in mean],
        "std": [float(s) for s in std],
    }


def detector_from_description(description: Mapping[str, Any]) -> Detector:
    """The detector that `describe_model` described, with random weights."""
    old = description.get("format", 1) < FORMAT
    model = ModelConfig.model_validate(description["model"])
    detector = build_detector(
        model,
        classes=description["classes"],
        mean=description["mean"],
        std=description["std"],
        load=False,
        levels_before_elimination=old,
    )
    if old:
        detector.divisor = 32
    if "dynamic" in description:
        # Until version 0.1 the stride was always replaced, and files did not say so.
        make_dynamic(detector, DynamicConfig.model_validate({"stride": "replaced", **description["dynamic"]}))
    if "predictor" in description:
        restore_predictor(detector, description["predictor"])
    return detector


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
    _load_state(detector, state, file)
    return detector.eval(), description


def load_into(detector: Detector, path: Path | str) -> None:
    """Gives `detector` the weights of a run folder or a weights file of the same model and the same classes."""
    file = weights_file(path)
    state, description = load_weights(file)
    if tuple(description["classes"]) != detector.classes:
        raise UserError(
            f"weights for the classes {', '.join(description['classes'])}, needs {', '.join(detector.classes)}",
            where=file,
        )
    _load_state(detector, state, file)


def _load_state(detector: Detector, state: Mapping[str, Tensor], file: Path) -> None:
    own = detector.state_dict()
    state = levels_from_shared(state, own)
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            got = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
            raise UserError(f"weights of another model: {name} has {got}, needs {tuple(value.shape)}", where=file)
    detector.load_state_dict(state)
