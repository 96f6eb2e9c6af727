"""Backbones of published detection transformers (`transformers/NAME`; extra `detr`), of the modules of the library transformers.

HGNetV2 of D-FINE (sizes B0, B2, B4 and B5) and the ResNets with a deep stem ("vd") of RT-DETRv2: chains of stages like any other,
with maps of strides 4 to 32. They are here so that published weights of those detectors have a place (`models.start.snapshot`);
any other detector takes them too. Their pixels are shares of 1, without a mean or deviation, as their authors trained them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flyspeck.errors import UserError, install, nearest
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.types import FeatureSpec

PREFIX = "transformers/"
"""What begins the name of such a backbone."""
PIXELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

_HGNET, _RESNET = "hgnet_v2", "rt_detr_resnet"
_CLASSES = {
    _HGNET: ("transformers.models.hgnet_v2", "hgnet_v2", "HGNetV2"),
    _RESNET: ("transformers.models.rt_detr", "rt_detr_resnet", "RTDetrResNet"),
}


def _hgnet(
    stem: tuple[int, int], first: int, middle: Sequence[int], outputs: Sequence[int], blocks: Sequence[int], layers: int,
    *, affine: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": _HGNET,
        "stem_channels": [3, *stem],
        "stage_in_channels": [first, *outputs[:-1]],
        "stage_mid_channels": list(middle),
        "stage_out_channels": list(outputs),
        "stage_num_blocks": list(blocks),
        "stage_numb_of_layers": [layers] * 4,
        "use_learnable_affine_block": affine,
    }


def _resnet(kind: str, depths: Sequence[int]) -> dict[str, Any]:
    first = 64 if kind == "basic" else 256
    sizes = [first * 2**stage for stage in range(4)]
    return {"model_type": _RESNET, "layer_type": kind, "depths": list(depths), "hidden_sizes": sizes}


NAMES: dict[str, dict[str, Any]] = {
    "hgnetv2_b0": _hgnet((16, 16), 16, (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3, affine=True),
    "hgnetv2_b2": _hgnet((24, 32), 32, (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4, affine=True),
    "hgnetv2_b4": _hgnet((32, 48), 48, (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6, affine=False),
    "hgnetv2_b5": _hgnet((32, 64), 64, (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6, affine=False),
    "resnet18_vd": _resnet("basic", (2, 2, 2, 2)),
    "resnet34_vd": _resnet("basic", (3, 4, 6, 3)),
    "resnet50_vd": _resnet("bottleneck", (3, 4, 6, 3)),
    "resnet101_vd": _resnet("bottleneck", (3, 4, 23, 3)),
}
"""By name, what the library's configuration is beyond its own defaults."""


def transformers_backbone(
    name: str, *, width: float = 1.0, weights: str | Path | None = None, outputs: Sequence[str] | None = None
) -> StagedBackbone:
    """The backbone `name` (without `transformers/`), with random weights or those of a file that flyspeck wrote.

    Raises UserError without the library, for a name that is not known, and for another width than 1.
    """
    check_name(name)
    if width != 1:
        raise UserError(
            f"{PREFIX}{name} has one width", where="width", fix="leave width at 1, or choose another backbone"
        )
    settings = {key: value for key, value in NAMES[name].items() if key != "model_type"}
    package, module, prefix = _CLASSES[NAMES[name]["model_type"]]
    config = getattr(_library(f"{package}.configuration_{module}"), f"{prefix}Config")(**settings)
    library = getattr(_library(f"{package}.modeling_{module}"), f"{prefix}Backbone")(config)
    channels = settings.get("stage_out_channels") or settings["hidden_sizes"]
    stages: dict[str, nn.Module] = {"stem": library.embedder}
    stages |= {f"stage{i + 1}": stage for i, stage in enumerate(library.encoder.stages)}
    for layer in library.modules():  # the library's are for loading: of width 0.02, whatever goes in
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    specs = {f"stage{i + 1}": FeatureSpec(count, 4 * 2**i) for i, count in enumerate(channels)}
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs or specs))
    if weights is not None:
        load_backbone(backbone, weights)
    return backbone


def check_name(name: str) -> None:
    """Raises UserError that names the nearest one for a `name` (without `transformers/`) that is not known."""
    if name not in NAMES:
        raise UserError(f"no backbone '{PREFIX}{name}'", where="model name", fix=nearest(name, NAMES))


def name_of(config: Mapping[str, Any]) -> str:
    """The backbone that a published `backbone_config` describes. Raises UserError that says what it is otherwise.

    What it leaves unsaid is the library's default, which is that of `hgnetv2_b4` and `resnet50_vd`.
    """
    kind = config.get("model_type")
    for name, settings in NAMES.items():
        if settings["model_type"] != kind:
            continue
        default = NAMES["hgnetv2_b4" if kind == _HGNET else "resnet50_vd"]
        if all(_plain(config.get(key, default[key])) == value for key, value in settings.items()):
            return name
    known = ", ".join(NAMES)
    raise UserError(
        f"its backbone ({kind}) is none of those that are known here", where="model.start", fix=f"these are: {known}"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or "transformers").partition(".")[0]
        raise UserError(
            f"a backbone of the library transformers needs the package '{missing}'",
            where="model.name",
            fix=install("detr"),
        ) from None
