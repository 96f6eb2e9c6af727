"""A model's name taken apart: `DETECTOR:BACKBONE[:NECK]`, or a bare backbone.

SSD has no neck to choose: its third part is a configuration (`ssd:mobilenet_v1:S1L0-DualPath19-10-S`). Any backbone that is
a chain of stages may carry a stride elimination: `retinanet:resnet50-S1L1`. `timm/NAME` is a model of timm
(`faster_rcnn:timm/mobilenetv3_small_100`, see `backbones.timm_models`), `transformers/NAME` one of published detection
transformers (`dfine:transformers/hgnetv2_b0`, see `backbones.transformers_models`). `dpnet:` in front of a detector makes it
dynamic. `speck_n`, `speck_s` and `speck_m` are short for `speck:specknet_n` and so on (`zoo.SHORT`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

from flyspeck.errors import UserError
from flyspeck.models.backbones import transformers_models
from flyspeck.models.backbones.timm_models import PREFIX, check_name, pixel_statistics, timm_backbone
from flyspeck.models.listed import LISTED
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS, SHORT, BackboneEntry
from flyspeck.plugins import UnknownPart, notes_of, with_installed

DYNAMIC = "dpnet:"
"""Stands in front of the name of a detector that is made dynamic."""


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


def find_backbone(name: str, *, within: str = "") -> BackboneEntry:
    """The entry of the backbone `name`, whatever stride elimination it carries.

    Where it is not known, installed plugins are loaded. Raises UserError that names the nearest known one; `within` is the
    whole name that it is a part of.
    """
    return with_installed(lambda: _find_backbone(name, within))


def _is_backbone(bare: str) -> bool:
    """Whether a name without stride elimination means a backbone: of a library all those that begin with its prefix."""
    return bare in BACKBONES or bare.startswith((PREFIX, transformers_models.PREFIX))


def _find_backbone(name: str, within: str) -> BackboneEntry:
    bare = split_backbone(name)[0]
    if bare not in BACKBONES and bare.startswith(PREFIX):
        own = bare.removeprefix(PREFIX)
        check_name(own)
        return BackboneEntry(partial(timm_backbone, own), pixels=partial(pixel_statistics, own))
    if bare not in BACKBONES and bare.startswith(transformers_models.PREFIX):
        own = bare.removeprefix(transformers_models.PREFIX)
        transformers_models.check_name(own)
        return BackboneEntry(
            partial(transformers_models.transformers_backbone, own), pixels=lambda: transformers_models.PIXELS
        )
    if bare not in BACKBONES:
        place = f" in '{within}'" if within else ""
        raise UnknownPart(f"no backbone '{bare}'{place}", where="model name", name=bare, known=BACKBONES)
    return BACKBONES[bare]


def parse_name(name: str) -> ZooName:
    """Takes a name apart; raises UserError that names the part nobody knows and the nearest known one.

    Where a part is not known, installed plugins are loaded.
    """
    return with_installed(lambda: _parse_name(name))


def _parse_name(name: str) -> ZooName:
    name = SHORT.get(name, name)
    if _is_backbone(split_backbone(name)[0]):
        _find_backbone(name, name)
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
    # A detector's own name may hold a colon, so the longest that fits is it.
    found = max((d for d in DETECTORS if name.startswith(f"{d}:")), key=len, default=None)
    if found is None:
        head, colon, _ = name.partition(":")
        if name in DETECTORS:
            raise UserError(
                f"'{name}' is a detector without a backbone",
                where="model name",
                fix=f"write {name}:BACKBONE; see flyspeck models",
            )
        known = DETECTORS if colon else [*BACKBONES, *SHORT, *(m.name for m in LISTED)]
        raise UnknownPart(f"no '{head}' in '{name}'", where="model name", name=head, known=known)
    backbone, _, third = name.removeprefix(f"{found}:").partition(":")
    entry = _find_backbone(backbone, name)
    find_configuration = DETECTORS[found].find_configuration
    if find_configuration is not None:
        if third:
            find_configuration(third, **entry.options.get(found, {}))
        return ZooName(found, backbone, configuration=third or None)
    if third and third not in NECKS:
        raise UnknownPart(f"no neck '{third}' in '{name}'", where="model name", name=third, known=NECKS)
    return ZooName(found, backbone, third or None)


def plugins_of(name: str) -> list[str]:
    """The plugins that the parts of the model `name` come from, as files note them: `my_parts==1.2`. None for flyspeck's own."""
    parsed = parse_name(name)
    bare = split_backbone(parsed.backbone)[0]
    neck = parsed.neck or find_backbone(bare).neck
    return notes_of([("detector", parsed.detector), ("backbone", bare), ("neck", neck)])
