"""Every detector of the zoo, tiny: each detector, backbone, neck and configuration of SSD once, and the laboratory's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from every_batch import SIZES, differences
from tiny_exports import make_detector
from torch import nn

from flyspeck.errors import UserError
from flyspeck.export.parity import Difference
from flyspeck.models.deformable import DeformableConv
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.router import attach_predictor
from flyspeck.models.heads.ssd_tables import MOBILENET_V1, VGG16
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS
from flyspeck.train.config import DynamicConfig
from flyspeck.train.dynamic import make_dynamic
from flyspeck.types import ImageBatch
from spread_scores import spread_scores

CLASSES = ("dot", "dash", "dab")
"""Three: a constant of the traced batch of two goes into rows of 2 x 4 numbers a region whatever the batch, but not of 3 x 4."""
_TWO_STAGES: dict[str, Any] = {"head": {"hidden": 16, "proposals": 60}}
_GRID = {"point_channels": 4, "grid_depth": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "fcos": {"norm": "bn"},
    "retinanet": {"norm": "gn"},
    "reppoints": {"norm": "gn"},
    "faster_rcnn": _TWO_STAGES,
    "cascade_rcnn": {**_TWO_STAGES, "nms": 0.3},
    "speck": {"norm": "bn"},
    "dfine": {"norm": "bn", "levels": "2-5"},
    "rtdetrv2": {"norm": "bn", "levels": "2-5"},
    "tinaface": {"norm": "bn", "levels": "3-6"},
    "tinaface_gn_dcn": {"norm": "gn", "levels": "3-6"},
    "free_anchor": {"norm": "gn"},
    "libra_rcnn": {**_TWO_STAGES, "levels": "2-6"},
    "grid_rcnn": {"head": {**_TWO_STAGES["head"], **_GRID}, "max_detections": 20},
}
_SSD: dict[str, Any] = {"levels": None, "norm": "bn"}
_LEVELS = {"hrnet18": "2-5", "hrnet32": "2-5", "bh_hrnet18": "2-5", "bh_hrnet32": "2-5", "swin_t": "2-5"}
_DEEP = ("resnet101", "resnet152", "hrnet18", "hrnet32", "bh_hrnet18", "bh_hrnet32")
"""With statistics that fit nothing, each of their many blocks doubles what was there."""
COMPARATORS = ("free_anchor:resnet18", "libra_rcnn:resnet18", "grid_rcnn:resnet18")
CHOOSING = "dpnet:fcos:resnet18"


def names() -> list[str]:
    """All that the tables of the zoo hold; what is added there is here."""
    heads = [name for name in DETECTORS if name != "ssd" and f"{name}:resnet18" not in COMPARATORS]
    found = [f"{name}:{'resnet50' if name == 'tinaface_gn_dcn' else 'resnet18'}" for name in heads]
    found += ["fcos:resnet18-S1L1", "fcos:timm/mobilenetv3_small_100", CHOOSING]
    found += [f"faster_rcnn:resnet18:{neck}" for neck in NECKS]
    found += [f"ssd:mobilenet_v1:{name}" for name in MOBILENET_V1] + [f"ssd:vgg16:{name}" for name in VGG16]
    return [*found, *(f"fcos:{backbone}" for backbone in BACKBONES if backbone != "resnet18")]


def tiny(name: str) -> Detector:
    """The detector, narrow, its scores spread; one that chooses its factor has a predictor whose answers spread around a half."""
    host = name.removeprefix("dpnet:")
    head, _, rest = host.partition(":")
    options = {**(_SSD if head == "ssd" else OPTIONS[head])}
    parts = rest.split(":")
    if parts[0] in _LEVELS or parts[-1] in ("hrfpn", "sspnet"):
        options["levels"] = _LEVELS.get(parts[0], "2-5")
    if parts[0].startswith("timm/"):
        options["width"] = 1.0
    detector, _ = make_detector(host, classes=CLASSES, **options)
    if head == "ssd" or parts[0] in _DEEP:
        _settle_norms(detector)
    _as_if_trained(detector)
    return _choosing(detector) if host != name else detector


@torch.no_grad()
def _settle_norms(detector: Detector) -> None:
    """Batch norms have the statistics of noise. With statistics that fit nothing, maps of a narrow SSD are dead, and hundreds of
    places have the very same score: which of them are among the best 1000 is no question that has an answer."""
    norms = [m.train() for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (8, 3, 300, 300), np.uint8))
    detector.pyramid(ImageBatch(pixels, ((300, 300),) * 8))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
    spread_scores(detector)


@torch.no_grad()
def _as_if_trained(detector: Detector) -> None:
    """Offsets of a deformable convolution deviate by a cell from tap to tap and by a tenth of one from place to place; logits of
    Grid R-CNN's heat maps by 3: chosen, not measured.

    Offsets that deviate by a cell from place to place read noise from noise: each such layer doubles whatever is different
    already, and after nine of them PyTorch itself is 5e-3 of a deviation off what it gives in float64.
    """
    goals = {m.offset: 0.1 for m in detector.modules() if isinstance(m, DeformableConv)}
    torch.manual_seed(0)
    for offset in goals:
        offset.bias.normal_(0, 1)  # type: ignore[union-attr]
    goals |= {m: 3.0 for name, m in detector.named_modules() if name.endswith("grid.deconv2")}

    def scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        bias = layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else 0  # type: ignore[index]
        factor = goals[layer] / (output - bias).std().clamp(min=1e-6)
        layer.weight.mul_(factor)  # type: ignore[operator, union-attr]
        return (output - bias) * factor + bias

    hooks = [layer.register_forward_hook(scale) for layer in goals]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), np.uint8))
    detector.detect(ImageBatch(pixels, ((128, 128),)))
    for hook in hooks:
        hook.remove()
    if goals:
        spread_scores(detector)


def _choosing(detector: Detector) -> Detector:
    make_dynamic(detector, DynamicConfig())
    router = attach_predictor(detector, widths=(4, 4, 8, 8))
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        router.predictor.factors.weight.mul_(20)
        router.predictor.factors.bias.zero_()
    return detector.eval()


def matrix_of(name: str, folder: Path) -> dict[str, Difference] | str:
    """By engine, batch and size; or the reason why there is no export."""
    sizes = ((300, 300), *SIZES[1:]) if name.startswith("ssd") else SIZES
    try:
        return differences(tiny(name), folder, sizes=sizes)
    except UserError as error:
        return error.what
