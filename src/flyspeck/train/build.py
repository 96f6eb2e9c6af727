"""From a recipe and a training set to a detector: here the configuration ends, and plain arguments begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.implications import fit_anchors
from flyspeck.errors import UserError, brief
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.assigners.rfla import receptive_anchors
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build, check_options
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.fake_quantised import fake_quantise
from flyspeck.models.layers import NORMS
from flyspeck.models.names import parse_name, plugins_of
from flyspeck.models.necks.fpn import FPN, sigma_power_
from flyspeck.models.postprocess import Method, Suppression
from flyspeck.models.prune import narrow_channels
from flyspeck.models.start.report import StartReport
from flyspeck.models.weights import levels_from_shared
from flyspeck.options import Options, explained
from flyspeck.plugins import load_needed
from flyspeck.train.assigners import fields_of, recipe_assigner
from flyspeck.train.checkpoint import load_weights, weights_file
from flyspeck.train.dynamic import make_dynamic, restore_predictor
from flyspeck.train.dynamic_config import DynamicConfig
from flyspeck.train.model_config import AnchorConfig, ModelConfig, named_parts
from flyspeck.train.start import take_over
from flyspeck.version import VERSION

FORMAT = 3
"""Of a description. 1 is that of version 0.1.0, which padded every batch to 32, SSDs' too, and counted explicit levels as
they were before a stride elimination; until 2 the fusion `gate` was called `attention`."""
Section = TypeVar("Section", bound=Options)
_UNSAID: dict[str, dict[str, Any]] = {"dynamic": {"stride": "replaced"}, "model": {"suppression": "nms"}}
"""What was always so until version 0.1, and is not said in its files."""


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
    host = named_parts(model.name)[0]
    for key in ("anchors", "fusion"):  # of the assigner `recipe_assigner` knows more
        if getattr(model, key) is not None:
            check_options(parse_name(model.name), {key: None}, where=f"model.{key}")
    detector = build(
        model.name,
        classes=classes,
        pixel_norm=PixelNorm(mean, std),
        width=model.width,
        levels=model.levels,
        weights=model.weights if load else None,
        levels_before_elimination=levels_before_elimination,
        backbone_options=model.backbone.model_dump(),
        prepare=partial(_prepare, model, host),
        channels=model.channels,
        norm=NORMS[model.norm],
        suppression=Suppression(
            score=model.min_score,
            iou=model.nms,
            pre_nms=model.pre_nms,
            max_detections=model.max_detections,
            soft=model.soft_nms,
            method=model.suppression,
        ),
    )
    assert isinstance(detector, Detector)
    if model.pruned is not None:
        narrow_channels(detector, model.pruned)
    if model.quantised:
        fake_quantise(detector)
    if load and model.sigma is not None:
        _initialise_by_power(detector, model.sigma)
    if load and model.weights is not None:
        silent = StartReport(model.weights, notes=("its builder does not say which tensors it loaded",))
        detector.starts.append(getattr(detector.backbone, "start_report", None) or silent)
    if load and model.start is not None:
        detector.starts.append(take_over(detector, model.start, build=detector_from_description))
    return detector


def check_buildable(model: ModelConfig, *, channels: int = 3) -> None:
    """Raises UserError for parts that a recipe may name and that do not go together; reads no weights, takes no memory.

    What a training set would fill in (fitted anchors, statistical fusion factors, SimD's means) is left out.
    """
    changes: dict[str, Any] = {"fusion": None} if model.fusion == "statistic" else {}
    if model.assigner is not None and model.assigner.name == "simd":
        changes["assigner"] = None
    with torch.device("meta"):
        build_detector(
            model.model_copy(update=changes),
            classes=("one", "other"),
            mean=[0.5] * channels,
            std=[0.25] * channels,
            load=False,
        )


def _prepare(model: ModelConfig, host: str, backbone: StagedBackbone, num_extra: int) -> dict[str, Any]:
    """Freezes what the recipe freezes; returns what it says of the detector `host`, which partly depends on the backbone."""
    if model.freeze_norms:
        freeze_norms(backbone)
    if model.frozen_stages:
        freeze_stages(backbone, model.frozen_stages)
    options: dict[str, Any] = model.head.model_dump()
    if model.anchors is not None:
        a = model.anchors
        options["anchors"] = partial(
            strided_anchors, base_scale=a.base_scale, ratios=a.ratios, octaves=a.octaves, torchvision=a.torchvision
        )
        if a.receptive_fields:
            fields = fields_of(backbone, num_extra, whose="own" if a.receptive_fields is True else a.receptive_fields)
            options["anchors"] = partial(receptive_anchors, receptive_fields=fields, ratios=a.ratios)
    if model.assigner is not None:
        options["assigner"] = recipe_assigner(model.assigner, host, backbone, num_extra)
    if model.fusion is not None:
        edges = len(backbone.features) - 1
        options["fusion"] = [model.fusion] * edges if isinstance(model.fusion, int | float) else model.fusion
    return options


def finest_stride(model: ModelConfig) -> float:
    """Stride of the finest level of a recipe's pyramid."""
    plain = model.model_copy(update={"fusion": None, "assigner": None, "anchors": None})
    with torch.device("meta"):  # shapes only
        return build_detector(plain, classes=("object",), mean=(0.5,), std=(0.5,), load=False).features[0].stride


def _initialise_by_power(detector: Detector, sigma: float) -> None:
    if type(detector.neck) is not FPN:
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
        **({"plugins": plugins} if (plugins := plugins_of(model.name)) else {}),
    }


def described(description: Mapping[str, Any], key: str, section: type[Section], *, where: object) -> Section:
    """The part `key` of a checkpoint's description as a `section`.

    Raises UserError, which names the file `where`, for one that this version cannot read.
    """
    content = description[key]
    if isinstance(content, Mapping):
        content = {**_UNSAID.get(key, {}), **content}
    try:
        return section.model_validate(content)
    except pydantic.ValidationError as error:
        fault = explained(error, content)
        # What a part's name is like is worth saying; what a key is like is not, as nobody has typed it.
        nearer = f"{fault.fix}; " if "unknown key" not in fault.what and fault.fix else ""
        raise UserError(
            f"this version ({VERSION}) cannot build the {key} it describes: {fault.what}",
            where=where,
            fix=f"{nearer}if a newer version has written it, update flyspeck",
        ) from None


def check_description(description: Mapping[str, Any], *, where: object) -> None:
    """Raises UserError for what no version has written, and for a format that is newer than this version's."""
    version = description.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"a description of format {version}, this version ({VERSION}) reads up to {FORMAT}",
            where=where,
            fix="update flyspeck",
        )
    for key in ("model", "classes", "mean", "std"):
        if not isinstance(description.get(key), Mapping if key == "model" else list):
            raise UserError(f"does not say what its {key} is", where=where, fix="give a file that flyspeck wrote")
    size = description.get("training_size")
    if size is not None and not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size))):
        raise UserError(f"its training_size is {brief(size)}", where=where, fix="give a file that flyspeck wrote")


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


def detector_from_description(description: Mapping[str, Any], *, where: object = "checkpoint") -> Detector:
    """The detector that `describe_model` described, with random weights; `where` is the file that an error names."""
    check_description(description, where=where)
    load_needed(description.get("plugins"), where=where)
    old = description.get("format", 1) < 2
    model = described(description, "model", ModelConfig, where=where)
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
    set_counts_area(detector, model, description.get("training_size"))
    if "dynamic" in description:
        make_dynamic(detector, described(description, "dynamic", DynamicConfig, where=where))
    if "predictor" in description:
        restore_predictor(detector, description["predictor"])
    return detector


def set_counts_area(detector: Detector, model: ModelConfig, training_size: Sequence[int] | None) -> None:
    """Lets the counts of `detector` grow with the input's area beyond `training_size` (H, W), if `model.counts` says so."""
    if model.counts == "area" and training_size is not None:
        detector.counts_area = int(training_size[0]) * int(training_size[1])


def load_detector(path: Path | str) -> Detector:
    """The trained detector of a run, in evaluation mode. Nothing in the file is executed.

    Args:
        path: A run folder (its best weights) or a weights file.

    Returns:
        The detector, on the processor.

    Raises:
        UserError: For a file that is cut off, of another program, or of another model.
    """
    return load_described(path)[0]


def load_described(path: Path | str) -> tuple[Detector, dict[str, Any]]:
    """`load_detector`, and what the file says of itself: model, classes, metrics, recipe, training size."""
    file = weights_file(path)
    state, description = load_weights(file)
    detector = detector_from_description(description, where=file)
    _load_state(detector, state, file)
    return detector.eval(), description


def load_for_use(path: Path | str, suppression: Method | None = None) -> tuple[Detector, dict[str, Any]]:
    """`load_described`, for predicting and exporting: with the `suppression` that is asked for.

    None is the one that the training had; a model of version 0.1, which says none and had plain NMS, gets `tiny`. Soft-NMS stays
    unless something else is asked for. The description says which it is, under `suppression`, as an exported file's does.
    """
    detector, description = load_described(path)
    rule = detector.head.suppression
    if suppression is None and (rule.soft is not None or "suppression" in description["model"]):
        method, soft = rule.method, rule.soft
    else:
        method, soft = suppression or "tiny", None
    detector.head.suppression = replace(rule, method=method, soft=soft)
    return detector, {**description, "suppression": {"method": method if soft is None else f"soft-nms, {soft}"}}


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
