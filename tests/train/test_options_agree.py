"""Options and builders agree: every option is a keyword that something takes, with its default, and every keyword an option.

Those that a recipe sets elsewhere, or not at all, are listed with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flyspeck.models.assigners.build import ASSIGNER_OPTIONS, named_assigner
from flyspeck.models.build import build
from flyspeck.models.zoo import BACKBONES, DETECTORS
from flyspeck.options import Options
from needs import with_extras

GIVEN = {
    "backbone": "the builder", "classes": "the builder", "pixel_norm": "the builder", "neck": "the builder",
    "num_extra": "model.levels", "norm": "model.norm", "channels": "model.channels", "fusion": "model.fusion",
    "anchors": "model.anchors", "assigner": "model.assigner", "suppression": "model.nms, min_score, max_detections, soft_nms",
    "configuration": "model.name", "plain": "the backbone", "features": "the builder", "num_classes": "the builder",
    "strides": "the builder", "rpn": "a section", "pool": "a section", "box_head": "head.hidden", "box_heads": "head.hidden",
    "priors": "the configuration", "train_rule": "head.train_proposals", "test_rule": "head.proposals",
    "kernel": "the builder", "outputs": "model.levels", "width": "model.width", "weights": "model.weights",
}  # fmt: skip
"""Keywords that come from somewhere else than the options, and from where."""
FUNCTIONS = {
    ("SSDHead", "box_weight"): "RetinaFace's", ("SSDHead", "assign"): "S3FD's", ("SSDHead", "class_logits"): "S3FD's",
    "sampler": "Libra's", "objective": "FreeAnchor's", "negative_weight": "SSPNet's", ("FasterRCNNHead", "box_loss"): "Libra's",
    ("FasterRCNNHead", "hardest"): "R-FCN's",
}  # fmt: skip
"""Keywords whose values are functions: parts of other detectors and necks, no options."""


def keywords(*targets: Callable[..., Any]) -> dict[str, Any]:
    """Keyword to default over all targets; the first that has a keyword decides."""
    found: dict[str, Any] = {}
    for target in targets:
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                name = getattr(target, "__name__", "")
                if parameter.name in FUNCTIONS or (name, parameter.name) in FUNCTIONS:
                    continue
                found.setdefault(parameter.name, parameter.default)
    return found


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def agree(options: type[Options], taken: dict[str, Any], *, of: str) -> None:
    """Options are keywords with the same default, and the other way round."""
    fields = options.model_fields
    settable = {name for name in taken if name not in GIVEN or (name in fields and name not in ("rpn", "pool"))}
    sections = {name for name in fields if isinstance(options.model_construct().__dict__.get(name), Options)}
    assert fields.keys() - sections == settable, of
    for name in fields.keys() - sections:
        default = fields[name].get_default(call_default_factory=True, validated_data={})
        assert plain(default) == plain(taken[name]), (of, name)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_take_their_options(name: str) -> None:
    entry = DETECTORS[name]
    agree(entry.settings, keywords(entry.build, *entry.passes_to), of=name)
    for section, part in entry.sections.items():
        inner = entry.settings.model_fields[section].annotation
        assert isinstance(inner, type)
        agree(inner, keywords(part), of=f"{name}.{section}")


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_take_their_options(name: str) -> None:
    if name == "mobilenet_v1_coral":  # is mobilenet_v1 with its three options set
        assert BACKBONES[name].settings is Options
        return
    agree(BACKBONES[name].settings, keywords(BACKBONES[name].build), of=name)


@pytest.mark.parametrize("name", ASSIGNER_OPTIONS)
def test_assigners_take_their_options(name: str) -> None:
    options = ASSIGNER_OPTIONS[name]
    assert options.model_fields["name"].default == name
    assert options.model_fields.keys() <= keywords(named_assigner).keys()


def test_every_option_of_an_assigner_belongs_to_one() -> None:
    of_any = {key for options in ASSIGNER_OPTIONS.values() for key in options.model_fields}
    assert keywords(named_assigner).keys() == of_any


@pytest.mark.parametrize("name", with_extras(DETECTORS))
def test_all_options_together_build(name: str) -> None:
    options = DETECTORS[name].settings().model_dump()
    backbone = "resnet18" if DETECTORS[name].has_neck else "mobilenet_v1"
    backbone = "resnet50" if name == "tinaface_gn_dcn" else backbone
    with torch.device("meta"):
        build(f"{name}:{backbone}", width=0.25, channels=16, prepare=lambda *_: options)
