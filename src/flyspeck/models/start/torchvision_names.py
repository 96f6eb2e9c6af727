"""torchvision's COCO detectors by name: which of our detectors each is, and which file holds its published weights.

`torchvision:NAME` takes that file from torchvision's own cache, `torchvision:NAME@FILE` any file of that model. Nothing is
downloaded: a file that is missing is named, with its address and where to put it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from flyspeck.errors import UserError, nearest

PREFIX = "torchvision:"
LICENCE = "BSD-3-Clause (torchvision); learnt from COCO, whose images are under their owners' terms"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Published:
    """One of torchvision's detectors."""

    model: Mapping[str, Any]
    """The section `model` of a recipe that makes the detector its weights go into; what a user writes wins."""
    pixels: tuple[Sequence[float], Sequence[float]] = _IMAGENET
    """Mean and deviation of each channel, in [0, 1], that it was trained with."""
    eps: float = 1e-5
    """What its norms add to a variance."""
    published_eps: float | None = None
    """... those of the published file, if that is another number."""
    own_eps: float = 1e-5
    """What our backbone's norms add."""
    strides: tuple[float, ...] = (4, 8, 16, 32, 64)
    maps: int = 4
    sizes: tuple[float, ...] = (32,)
    """Anchor sizes of a cell of the finest level, in px; empty of a detector on points."""
    background: bool = True
    """Whether its classes are counted without the background, which has an output of its own."""
    notes: tuple[str, ...] = field(default=())


_FITTED = {"fit": True}
_FASTER = {"name": "faster_rcnn:resnet50", "anchors": _FITTED, "head": {"pool": {"aligned": False}}}
_OCTAVES = (32, 40, 50)
_P3 = (8.0, 16.0, 32.0, 64.0, 128.0)
_MOBILE = Published(
    {"name": "faster_rcnn:mobilenet_v3_large", "anchors": _FITTED, "head": {"pool": {"aligned": False}}},
    own_eps=1e-3,
    strides=(32, 64),
    maps=1,
    sizes=(32, 64, 128, 256, 512),
    notes=("it looks at maps of stride 32 alone: the finer levels are new",),
)

DETECTORS: dict[str, Published] = {
    "fasterrcnn_resnet50_fpn": Published(_FASTER, published_eps=0.0),
    "fasterrcnn_resnet50_fpn_v2": Published(
        {**_FASTER, "head": {"pool": {"aligned": False}, "rpn": {"depth": 2}, "box_convs": 4, "neck_norm": "bn"}}
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILE,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _MOBILE,
    "retinanet_resnet50_fpn": Published(
        {"name": "retinanet:resnet50", "anchors": _FITTED, "head": {"extra": "conv_p5"}},
        published_eps=0.0,
        strides=_P3,
        maps=3,
        sizes=_OCTAVES,
        background=False,
    ),
    "retinanet_resnet50_fpn_v2": Published(
        {
            "name": "retinanet:resnet50",
            "anchors": _FITTED,
            "norm": "gn",
            "head": {"neck_norm": "none", "box_loss": "giou"},
        },
        strides=_P3,
        maps=3,
        sizes=_OCTAVES,
        background=False,
    ),
    "fcos_resnet50_fpn": Published(
        {"name": "fcos:resnet50", "norm": "gn", "head": {"neck_norm": "none", "tower_bias": True, "offset": 0.0}},
        strides=_P3,
        maps=3,
        sizes=(),
        background=False,
    ),
    "ssd300_vgg16": Published(
        {"name": "ssd:vgg16:torchvision", "nms": 0.45},
        pixels=((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
        strides=(),
        maps=0,
        sizes=(),
    ),
}
"""By torchvision's own names."""
REFUSED = {
    "ssdlite320_mobilenet_v3_large": "its first map has stride 16 and priors from 64 px, so that it cannot find tiny objects",
    "maskrcnn_resnet50_fpn": "it finds masks",
    "maskrcnn_resnet50_fpn_v2": "it finds masks",
    "keypointrcnn_resnet50_fpn": "it finds key points",
}
"""Why flyspeck has no detector like these."""


def is_torchvision(start: str) -> bool:
    """Whether `start` names one of torchvision's detectors."""
    return start.startswith(PREFIX)


def parse(start: str) -> tuple[str, str | None]:
    """`torchvision:NAME[@FILE]` to name and file. Raises UserError for a name that flyspeck has no detector for."""
    name, _, file = start.removeprefix(PREFIX).partition("@")
    if name in REFUSED:
        raise UserError(
            f"flyspeck has no detector like torchvision's {name}: {REFUSED[name]}",
            where="model.start",
            fix="choose fasterrcnn_resnet50_fpn_v2, or take its backbone by model.weights",
        )
    if name not in DETECTORS:
        raise UserError(f"torchvision has no detector '{name}'", where="model.start", fix=nearest(name, DETECTORS))
    return name, file or None


def section(start: str) -> Mapping[str, Any]:
    """What a recipe's section `model` is for this start, where the recipe does not say otherwise."""
    return DETECTORS[parse(start)[0]].model


def published_file(name: str) -> tuple[str, str, float]:
    """File name, address and megabytes of the published weights of `name`."""
    weights = get_model_weights(name)["DEFAULT"]
    return Path(weights.url).name, weights.url, float(weights.meta["_file_size"])


def find_file(start: str) -> Path:
    """The file that `start` means: the one that it names, or that of torchvision's cache.

    Raises UserError that names the file to bring, and where to, if it is not there.
    """
    name, given = parse(start)
    if given is not None:
        if not Path(given).is_file():
            raise UserError("no such weights file", where=given, fix="correct what follows the @ in model.start")
        return Path(given)
    file, url, megabytes = published_file(name)
    place = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not place.is_file():
        raise UserError(
            f"{PREFIX}{name} needs {file} ({megabytes:.0f} MB), which is not in torchvision's cache",
            where="model.start",
            fix=f"put {url} at {place}, or write {PREFIX}{name}@FILE",
        )
    return place
