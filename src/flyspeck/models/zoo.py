"""Names to models: `DETECTOR:BACKBONE[:NECK]`, or a bare backbone. Plain functions in plain dictionaries.

SSD has no neck to choose: its third part is a configuration (`ssd:mobilenet_v1:S1L0-DualPath19-10-S`). Any backbone that is
a chain of stages may carry a stride elimination: `retinanet:resnet50-S1L1`.

To add a part, add one line to `BACKBONES`, `NECKS` or `DETECTORS`; a part from outside the package comes in by
`flyspeck.plugins`. Any combination builds, except those that `build` refuses with the reason; `listed.LISTED` names those
with published figures, which a test recounts.
`dpnet:` in front of a detector makes it dynamic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from flyspeck.errors import UserError, nearest
from flyspeck.models.assigners.build import CENTER_SAMPLING
from flyspeck.models.assigners.build import NAMES as ASSIGNERS
from flyspeck.models.backbones.bottom_heavy import bh_hrnet18, bh_hrnet32, bh_resnet14, bh_resnet18, bh_resnet50
from flyspeck.models.backbones.hrnet import hrnet18, hrnet32
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.mobilenet_v1 import CORAL, mobilenet_v1
from flyspeck.models.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnet152, resnext50
from flyspeck.models.backbones.shufflenet import shufflenet_v2
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.backbones.swin import swin_t
from flyspeck.models.backbones.vgg import vgg16
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.dynamic.norms import privatise_norms
from flyspeck.models.dynamic.pooling import pool_dynamically
from flyspeck.models.dynamic.router import attach_predictor
from flyspeck.models.heads.cascade_rcnn import cascade_rcnn
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.models.heads.fcos import fcos
from flyspeck.models.heads.reppoints import reppoints
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.heads.ssd import find_configuration, ssd
from flyspeck.models.heads.tinaface import tinaface, tinaface_gn_dcn
from flyspeck.models.listed import LISTED
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.necks.hrfpn import HRFPN
from flyspeck.models.necks.sspnet import SSPNet, sspnet_anchors, weighted_negatives
from flyspeck.models.stride import eliminate_strides
from flyspeck.plugins import UnknownPart, with_installed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NeckBuilder = Callable[..., nn.Module]
"""`(features, *, channels, num_extra, norm)` to a neck."""


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone by name."""

    build: Callable[..., StagedBackbone]
    """Takes `width` and `weights`, and `outputs` where `picks_outputs`."""
    picks_outputs: bool = True
    """Whether some stages can be left out of the feature maps (a network of branches gives them all)."""
    neck: str | None = None
    """The neck it is published with, if not the detector's own."""


@dataclass(frozen=True)
class NeckEntry:
    """A neck by name."""

    build: NeckBuilder
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Detector name to the arguments that the neck's paper gives that detector's builder."""
    fuses: bool = False
    """Whether it has top-down fusion factors (`fusion`)."""


@dataclass(frozen=True)
class DetectorEntry:
    """A detector by name."""

    build: Callable[..., Detector]
    """Takes the backbone, `classes`, `pixel_norm`, `neck`, `num_extra`, the keys of `widths` and its own options."""
    widths: Mapping[str, int]
    """Arguments that are channel counts, at width 1."""
    levels: str = "2-6"
    classes: int = 1
    """Foreground classes of the published figures."""
    has_neck: bool = True
    """Whether the third part of the name is a neck; otherwise it is a configuration of the detector."""
    anchors: bool = True
    """Whether it takes `anchors` (an anchor-free head regresses from points)."""
    assigners: tuple[str, ...] = ()
    """Names of the label assigners that it takes; without any it assigns by its own rule."""
    like: str | None = None
    """The detector for which the papers of necks give arguments (`NeckEntry.options`) that its builder takes too."""


BACKBONES: dict[str, BackboneEntry] = {
    "resnet18": BackboneEntry(resnet18),
    "resnet34": BackboneEntry(resnet34),
    "resnet50": BackboneEntry(resnet50),
    "resnet101": BackboneEntry(resnet101),
    "resnet152": BackboneEntry(resnet152),
    "resnext50": BackboneEntry(resnext50),
    "bh_resnet18": BackboneEntry(bh_resnet18),
    "bh_resnet14": BackboneEntry(bh_resnet14),
    "bh_resnet50": BackboneEntry(bh_resnet50),
    "hrnet18": BackboneEntry(hrnet18, picks_outputs=False, neck="hrfpn"),
    "hrnet32": BackboneEntry(hrnet32, picks_outputs=False, neck="hrfpn"),
    "bh_hrnet18": BackboneEntry(bh_hrnet18, picks_outputs=False, neck="hrfpn"),
    "bh_hrnet32": BackboneEntry(bh_hrnet32, picks_outputs=False, neck="hrfpn"),
    "mobilenet_v1": BackboneEntry(mobilenet_v1),
    "mobilenet_v1_coral": BackboneEntry(partial(mobilenet_v1, **CORAL)),
    "mobilenet_v2": BackboneEntry(mobilenet_v2),
    "shufflenet_v2": BackboneEntry(shufflenet_v2),
    "swin_t": BackboneEntry(swin_t, neck="fpn_ln"),
    "vgg16": BackboneEntry(vgg16),
}

DYNAMIC = "dpnet:"
"""Stands in front of the name of a detector that is made dynamic; its pyramid and classes are those of DPNet's TinyCOCO."""
_DYNAMIC_LEVELS, _DYNAMIC_CLASSES = "3-7", 80
_TWO_STAGES = ("faster_rcnn", "cascade_rcnn")
_SSPNET_PROPOSALS = {"anchors": sspnet_anchors, "rpn": {"negative_weight": weighted_negatives}}

NECKS: dict[str, NeckEntry] = {
    "fpn": NeckEntry(FPN, fuses=True),
    "fpn_ln": NeckEntry(partial(FPN, input_norm=True), fuses=True),
    "hrfpn": NeckEntry(HRFPN),
    "sspnet": NeckEntry(SSPNet, dict.fromkeys(_TWO_STAGES, _SSPNET_PROPOSALS)),
}

DETECTORS: dict[str, DetectorEntry] = {
    "retinanet": DetectorEntry(retinanet, {"channels": 256}, assigners=ASSIGNERS),
    "faster_rcnn": DetectorEntry(faster_rcnn, {"channels": 256, "hidden": 1024}, assigners=ASSIGNERS),
    "cascade_rcnn": DetectorEntry(cascade_rcnn, {"channels": 256, "hidden": 1024}, assigners=ASSIGNERS),
    "fcos": DetectorEntry(fcos, {"channels": 256}, anchors=False, assigners=(CENTER_SAMPLING, *ASSIGNERS)),
    "reppoints": DetectorEntry(reppoints, {"channels": 256}, anchors=False),
    "tinaface": DetectorEntry(tinaface, {"channels": 256}, levels="2-7", assigners=ASSIGNERS),
    "tinaface_gn_dcn": DetectorEntry(tinaface_gn_dcn, {"channels": 256}, levels="2-7", assigners=ASSIGNERS),
    "ssd": DetectorEntry(ssd, {}, classes=80, has_neck=False, anchors=False),
}


@dataclass(frozen=True)
class ZooName:
    """A name, taken apart."""

    detector: str | None
    """None for a bare backbone."""
    backbone: str
    """With its stride elimination, if any: `resnet50-S1L1`."""
    neck: str | None = None
    configuration: str | None = None
    """The third part, where it is no neck."""
    dynamic: bool = False
    """`dpnet:` in front: dynamic pooling at DPNet's three factors, private norms, and a predictor with random weights."""


_ELIMINATION = re.compile(r"(.+)-(S\d+L\d+(?:-\d+)*)")


def split_backbone(name: str) -> tuple[str, str | None]:
    """`resnet50-S1L1` to (`resnet50`, `S1L1`); a name without elimination to itself and None."""
    match = _ELIMINATION.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def parse_name(name: str) -> ZooName:
    """Takes a name apart; raises UserError that names the part nobody knows and the nearest known one.

    Where a part is not known, installed plugins are loaded.
    """
    return with_installed(lambda: _parse_name(name))


def _parse_name(name: str) -> ZooName:
    if split_backbone(name)[0] in BACKBONES:
        return ZooName(None, name)
    if name.startswith(DYNAMIC):
        host = parse_name(name.removeprefix(DYNAMIC))
        if host.detector is None or not DETECTORS[host.detector].has_neck:
            raise UserError(
                f"'{name}' has no detector with a pyramid to make dynamic",
                where="model name",
                fix="write dpnet:reppoints:resnet50",
            )
        return replace(host, dynamic=True)
    # A detector's own name may hold a colon (`dpnet:reppoints`), so the longest that fits is it.
    found = max((d for d in DETECTORS if name.startswith(f"{d}:")), key=len, default=None)
    if found is None:
        head, colon, _ = name.partition(":")
        known = DETECTORS if colon else [*BACKBONES, *(m.name for m in LISTED)]
        raise UnknownPart(f"no '{head}' in '{name}'", where="model name", name=head, known=known)
    backbone, _, third = name.removeprefix(f"{found}:").partition(":")
    bare = split_backbone(backbone)[0]
    if bare not in BACKBONES:
        raise UnknownPart(f"no backbone '{bare}' in '{name}'", where="model name", name=bare, known=BACKBONES)
    if not DETECTORS[found].has_neck:
        if third:
            find_configuration(third, plain=bare == "vgg16")
        return ZooName(found, backbone, configuration=third or None)
    if third and third not in NECKS:
        raise UnknownPart(f"no neck '{third}' in '{name}'", where="model name", name=third, known=NECKS)
    return ZooName(found, backbone, third or None)


def parse_levels(levels: str) -> tuple[int, int]:
    """`2-6` to (2, 6): first and last pyramid level, at strides 2^first to 2^last."""
    first, dash, last = levels.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 2 <= int(first) <= 5 <= int(last) <= 8):
        raise UserError(f"'{levels}' are no pyramid levels", where="levels", fix="write 2-6, 3-7 or the like")
    return int(first), int(last)


def build_backbone(
    name: str, *, width: float = 1.0, weights: str | Path | None = None, first_level: int = 2, **options: Any
) -> StagedBackbone:
    """The backbone `name`; its maps begin at level `first_level` (2: stride 4, where no stride is eliminated).

    `options` are the builder's own: `tf_same`, `folded`, `top_stride`, …
    """
    bare, elimination = split_backbone(name)
    if bare not in BACKBONES:
        raise UserError(f"no backbone '{bare}'", where="model name", fix=nearest(bare, BACKBONES))
    if elimination is not None:
        whole = build_backbone(bare, width=width, weights=weights, first_level=first_level, **options)
        return eliminate_strides(whole, elimination)
    entry = BACKBONES[name]
    if entry.picks_outputs:
        outputs = tuple(f"stage{i - 1}" for i in range(first_level, 6))
        return entry.build(width=width, weights=weights, outputs=outputs, **options)
    if first_level != 2:
        raise UserError(
            f"{name} fuses all its maps, so that its pyramid cannot begin at level {first_level}",
            where="levels",
            fix="begin at level 2, or choose a backbone that is a chain of stages",
        )
    return entry.build(width=width, weights=weights, **options)


def build(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    pixel_norm: PixelNorm | None = None,
    width: float = 1.0,
    levels: str | None = None,
    weights: str | Path | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """The model `name`: a `Detector`, or a `StagedBackbone` for a bare backbone's name.

    `width` scales every channel count (backbone, neck, head). `levels` (`2-6`) picks the pyramid. `weights` are the
    backbone's. `backbone_options` go to the backbone's builder, `options` to the detector's; they win over what the name
    implies: `channels`, `norm`, `anchors`.
    """
    parsed = parse_name(name)
    wanted = dict(backbone_options or {})
    if parsed.detector is None:
        return build_backbone(parsed.backbone, width=width, weights=weights, **wanted)
    entry = DETECTORS[parsed.detector]
    first, last = parse_levels(levels or (_DYNAMIC_LEVELS if parsed.dynamic else entry.levels))
    backbone = build_backbone(parsed.backbone, width=width, weights=weights, first_level=first, **wanted)
    return assemble(
        parsed,
        backbone,
        classes=classes or default_classes(_DYNAMIC_CLASSES if parsed.dynamic else entry.classes),
        pixel_norm=pixel_norm or PixelNorm(IMAGENET_MEAN, IMAGENET_STD),
        num_extra=last - 5,
        **{key: scale_channels(count, width) for key, count in entry.widths.items() if key not in options},
        **options,
    )


def default_classes(count: int) -> list[str]:
    """`object`, or numbered names where there are several."""
    return ["object"] if count == 1 else [f"class{i}" for i in range(count)]


def scale_channels(channels: int, width: float) -> int:
    """`channels * width` to the nearest multiple of 16, at least 16: group norms and heads divide it by four and eight."""
    return max(16, round(channels * width / 16) * 16)


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
    builder, bare = DETECTORS[name.detector], split_backbone(name.backbone)[0]
    if not builder.has_neck:
        # Its layers follow the configuration and the backbone's width: no neck's channels, levels or norms.
        own = {key: value for key, value in options.items() if key != "norm"}
        configuration, plain = name.configuration or "base", bare == "vgg16"
        return builder.build(
            backbone, classes=classes, pixel_norm=pixel_norm, configuration=configuration, plain=plain, **own
        )
    neck_name = name.neck or BACKBONES[bare].neck
    neck = None
    if neck_name is not None:
        entry = NECKS[neck_name]
        fusion = {key: options.pop(key) for key in ("fusion",) if key in options}
        if fusion.get("fusion") is not None and not entry.fuses:
            raise UserError(
                f"the neck {neck_name} has no top-down fusion factors",
                where="fusion",
                fix="use fpn, or leave fusion out",
            )
        neck = entry.build(
            backbone.features,
            channels=channels,
            num_extra=num_extra,
            norm=options.get("norm"),
            **(fusion if entry.fuses else {}),
        )
        implied = entry.options.get(name.detector) or entry.options.get(builder.like or "", {})
        options = _merged(implied, options)
    detector = builder.build(
        backbone,
        classes=classes,
        pixel_norm=pixel_norm,
        neck=neck,
        num_extra=num_extra,
        channels=channels,
        **options,
    )
    if name.dynamic:
        pool_dynamically(detector, stride="replaced")
        privatise_norms(detector)
        attach_predictor(detector)
    return detector


def _merged(implied: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both have a mapping under one key, that is merged too; else `given` wins."""
    merged = {**implied, **given}
    for key in implied.keys() & given.keys():
        if isinstance(implied[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = {**implied[key], **given[key]}
    return merged
