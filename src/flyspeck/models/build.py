"""The one builder: from a name and plain arguments to a model. Recipes (`train.build`) and zoo names both come through here.

What the arguments mean, everywhere:

* `width` multiplies the channels of the backbone, and of nothing else; an SSD's extra layers follow their backbone.
* `channels` are those of neck and head, whatever the width: 256 in the papers, and for small backbones what `zoo` says.
* `levels` (`2-6`) are those of the pyramid, by stride: level k has stride 2^k. They begin at any map that the backbone
  has and end at or above its last one. None is the detector's own pyramid on the maps that its backbone would have without
  a stride elimination: `retinanet:resnet50-S1L1` has strides 2 to 32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flyspeck.errors import UserError, nearest
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.bands import widen
from flyspeck.models.contracts import check_backbone, check_neck, mark
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.dynamic.router import attach_predictor
from flyspeck.models.levels import choose_maps, count_extra, parse_levels
from flyspeck.models.names import ZooName, find_backbone, parse_name, split_backbone
from flyspeck.models.stride import eliminate_strides
from flyspeck.models.zoo import DETECTORS, NECKS

_DYNAMIC_LEVELS, _DYNAMIC_CLASSES = "3-7", 80  # of DPNet's TinyCOCO
_GIVEN_BY_THE_BUILDER = {"backbone", "classes", "pixel_norm", "neck", "num_extra", "configuration", "plain"}
_GIVEN_BY_THE_DETECTOR = {"norm", "train_rule", "test_rule"}  # to its sections

Prepare = Callable[[StagedBackbone, int], Mapping[str, Any]]
"""The backbone and the number of levels above it to further options of the detector; may freeze the backbone."""


def build(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    pixel_norm: PixelNorm | None = None,
    width: float = 1.0,
    channels: int | None = None,
    levels: str | None = None,
    weights: str | Path | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    prepare: Prepare | None = None,
    levels_before_elimination: bool = False,
    **options: Any,
) -> nn.Module:
    """The model `name`: a `Detector`, or a `StagedBackbone` for a bare backbone's name.

    Args:
        name: `DETECTOR:BACKBONE[:NECK]` or `BACKBONE`, see `names`.
        classes: Foreground classes; None takes as many as the published numbers have.
        pixel_norm: None takes ImageNet's statistics. Of other than one or three bands, the backbone's first convolution is
            widened (`models.bands`).
        width: Multiplies the channels of the backbone, see the head of this module.
        channels: Of neck and head; None takes the backbone's own.
        levels: Of the pyramid, such as `2-6`; None takes the detector's own.
        weights: The backbone's: a file, or a name that torchvision or (of `timm/NAME`) timm has for them.
        backbone_options: Keyword arguments of the backbone's builder (`tf_same`, `folded`, `top_stride`, …).
        prepare: Called with the backbone and the number of levels above its maps before the rest is built; what it returns
            joins `options`.
        levels_before_elimination: Whether `levels` are those that the maps would have without a stride elimination, as in
            files of version 0.1.0.
        options: Keyword arguments of the detector's builder (`norm`, `anchors`, `depth`, …). They win over what
            the name implies; mappings are merged.

    Raises:
        UserError: For a name, level or option that does not exist, and for parts that do not go together.
    """
    parsed = parse_name(name)
    if parsed.detector is None:
        if options:
            raise UserError(
                f"'{name}' is a backbone and takes no '{min(options)}'", where="options", fix="give backbone_options"
            )
        return build_backbone(parsed.backbone, width=width, weights=weights, **(backbone_options or {}))
    entry = DETECTORS[parsed.detector]
    bare, elimination = split_backbone(parsed.backbone)
    backbone = build_backbone(bare, width=width, weights=weights, **(backbone_options or {}))
    if pixel_norm is not None:
        widen(backbone, pixel_norm.channels, pretrained=weights is not None)
    num_extra = 0
    before = levels is None or levels_before_elimination
    if entry.has_neck and before:
        own = _DYNAMIC_LEVELS if parsed.dynamic else entry.levels
        num_extra = choose_pyramid(backbone, levels or own, name=bare)
    if elimination is not None:
        eliminate_strides(backbone, elimination)
    if entry.has_neck and levels is not None and not before:
        num_extra = choose_pyramid(backbone, levels, name=parsed.backbone)
    if prepare is not None:
        options = {**options, **prepare(backbone, num_extra)}
    return assemble(
        parsed,
        backbone,
        classes=classes or default_classes(_DYNAMIC_CLASSES if parsed.dynamic else entry.classes),
        pixel_norm=pixel_norm or PixelNorm(*find_backbone(bare).pixels()),
        num_extra=num_extra,
        channels=channels or find_backbone(bare).channels,
        **options,
    )


def build_backbone(
    name: str, *, width: float = 1.0, weights: str | Path | None = None, **options: Any
) -> StagedBackbone:
    """The backbone `name`, its stride elimination included. `options` are its builder's own: `tf_same`, `top_stride`, …"""
    entry = find_backbone(name)
    check_keywords(name, options, (entry.build,), where="backbone options")
    backbone = entry.build(width=width, weights=weights, **options)
    bare, elimination = split_backbone(name)
    check_backbone(backbone, bare)
    return backbone if elimination is None else eliminate_strides(backbone, elimination)


def choose_pyramid(backbone: StagedBackbone, levels: str, *, name: str) -> int:
    """Lets `backbone` give the maps of `levels`, in place, and returns how many levels a neck must add above them.

    `levels` without an end (`2-`) end with the backbone's own.
    """
    if levels.endswith("-"):
        choose_maps(backbone, int(levels[:-1]), name=name)
        return 0
    first, last = parse_levels(levels)
    choose_maps(backbone, first, name=name)
    return count_extra(backbone.features, last, name=name)


def default_classes(count: int) -> list[str]:
    """`object`, or numbered names where there are several."""
    return ["object"] if count == 1 else [f"class{i}" for i in range(count)]


def assemble(
    name: ZooName,
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    num_extra: int,
    channels: int = 256,
    **options: Any,
) -> Detector:
    """A detector on a backbone that is built already (and perhaps frozen), with the neck of its name.

    The neck is the name's, or the one the backbone is published with, or the detector's own. Where its paper gives the
    detector other arguments (anchors, sampling), `options` win over them; mappings are merged.
    """
    if name.detector is None:
        raise ValueError("a bare backbone is no detector")
    entry, part = DETECTORS[name.detector], find_backbone(name.backbone)
    check_options(name, options, where=f"options of {name.detector}")
    check_backbone(
        backbone, split_backbone(name.backbone)[0]
    )  # other maps than at first, where the pyramid begins elsewhere
    implied = part.options.get(name.detector) or part.options.get(entry.like or "", {})
    if not entry.has_neck:
        # Its layers follow the configuration and the backbone's width: no neck's channels, levels or norms.
        own = {key: value for key, value in options.items() if key != "norm"}
        configuration = name.configuration or "base"
        detector = entry.build(
            backbone, classes=classes, pixel_norm=pixel_norm, configuration=configuration, **_merged(implied, own)
        )
        mark(detector.head, "detector", name.detector)
        return detector
    neck, neck_name = None, name.neck or part.neck
    if neck_name is not None:
        fusion = {key: options.pop(key) for key in ("fusion",) if key in options}
        neck = _build_neck(
            neck_name, backbone, channels=channels, num_extra=num_extra, norm=options.get("norm"), **fusion
        )
        by_detector = NECKS[neck_name].options
        implied = _merged(by_detector.get(name.detector) or by_detector.get(entry.like or "", {}), implied)
    detector = entry.build(
        backbone,
        classes=classes,
        pixel_norm=pixel_norm,
        neck=neck,
        num_extra=num_extra,
        channels=channels,
        **_merged(implied, options),
    )
    mark(detector.head, "detector", name.detector)
    if name.dynamic:
        pool_dynamically(detector, stride="replaced")
        privatise_norms(detector)
        attach_predictor(detector)
    return detector


def _build_neck(
    name: str, backbone: StagedBackbone, *, channels: int, num_extra: int, fusion: Any = None, **options: Any
) -> nn.Module:
    entry = NECKS[name]
    if fusion is not None and not entry.fuses:
        raise UserError(
            f"the neck {name} has no top-down fusion factors", where="fusion", fix="use fpn, or leave fusion out"
        )
    neck = entry.build(
        backbone.features,
        channels=channels,
        num_extra=num_extra,
        **options,
        **({"fusion": fusion} if entry.fuses else {}),
    )
    check_neck(neck, backbone.features, name, channels=channels, num_extra=num_extra)
    return neck


def _merged(implied: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both have a mapping under one key, that is merged too; else `given` wins."""
    merged = {**implied, **given}
    for key in implied.keys() & given.keys():
        if isinstance(implied[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = {**implied[key], **given[key]}
    return merged


def check_options(name: ZooName, options: Mapping[str, Any], *, where: str) -> None:
    """Raises UserError that names the nearest known one for an option that the detector `name` does not take.

    Looks into the sections of a detector too (`rpn`, `pool`).
    """
    assert name.detector is not None
    entry = DETECTORS[name.detector]
    ignored = {"norm"} if not entry.has_neck else set()
    own_neck = name.neck or find_backbone(name.backbone).neck
    neck_takes = {"fusion"} if own_neck is not None else set()  # it says itself where it has no factors
    given = {key: value for key, value in options.items() if key not in ignored | neck_takes}
    check_keywords(name.detector, given, (entry.build, *entry.passes_to), where=where)
    for section, part in entry.sections.items():
        inner = options.get(section)
        if isinstance(inner, Mapping):
            check_keywords(
                f"{name.detector}'s {section}",
                inner,
                (part,),
                where=f"{where}.{section}",
                but=_GIVEN_BY_THE_DETECTOR,
            )


def check_keywords(
    who: str,
    given: Mapping[str, Any],
    takers: Sequence[Callable[..., Any]],
    *,
    where: str,
    but: Collection[str] = _GIVEN_BY_THE_BUILDER,
) -> None:
    """Raises UserError for a key of `given` that none of `takers` has as an optional keyword argument, or that is in `but`.

    Where the last of them takes any keyword, nothing is known and nothing is refused.
    """
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(takers[-1]).parameters.values()):
        return
    known = {
        p.name
        for taker in takers
        for p in inspect.signature(taker).parameters.values()
        if p.default is not p.empty and p.name not in but
    }
    for key in given:
        if key not in known:
            raise UserError(f"{who} takes no '{key}'", where=where, fix=nearest(key, known))
