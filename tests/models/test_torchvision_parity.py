"""torchvision's own detectors, with random weights saved as its users save them, give the same boxes after `torchvision:NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.ops.misc import FrozenBatchNorm2d

from flyspeck.models.anchors import AnchorGrid, strided_anchors
from flyspeck.models.backbones.mobilenet_v3 import mobilenet_v3_large
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.models.layers import NORMS
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.postprocess import Suppression
from flyspeck.models.start.torchvision_keys import read_source
from flyspeck.models.start.torchvision_names import DETECTORS, published_file
from flyspeck.models.start.transfer import IMAGES, RECIPE, transfer
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections

RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fasterrcnn": (
        {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 100, "box_detections_per_img": 500},
        {"score": 0.05, "iou": 0.5, "max_detections": 500},
    ),
    "retinanet": ({"detections_per_img": 200}, {"score": 0.05, "iou": 0.5, "max_detections": 200}),
    "fcos": ({"detections_per_img": 200}, {"score": 0.2, "iou": 0.6, "max_detections": 200}),
}
"""The same limits for both."""
BOX_PX = 1e-3  # of 256 px: 4e-6 of the image, which float32 leaves
CLASSES = 5  # of ours: names do not count where both sides have the same
SIZE = (
    128,
    256,
)  # 128 divides it: elsewhere torchvision's anchors and units follow the nominal stride, ours the true one


def loud(model: nn.Module) -> None:
    """Random weights that give every class many scores on both sides of the threshold, and norms that have seen something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cls_score.weight"):
                parameter.normal_(0, 0.3, generator=generator)
            elif name.endswith("cls_logits.weight"):
                parameter.normal_(0, 0.05, generator=generator)
            elif name.endswith(("bbox_reg.weight", "bbox_pred.weight")):
                parameter.normal_(0, 0.002, generator=generator)
            elif "module_list" in name:
                parameter.mul_(0.1)  # of SSD, whose first maps are loud
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-2.0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.running_mean.normal_(0, 0.05, generator=generator)
                module.running_var.uniform_(0.9, 1.1, generator=generator)
                module.weight.uniform_(0.9, 1.1, generator=generator)  # type: ignore[operator]


def theirs_and_file(name: str, folder: Path, seed: int = 0, **more: Any) -> tuple[nn.Module, Path]:
    """torchvision's detector of five classes and its weights in a file."""
    outputs = CLASSES + DETECTORS[name].background
    size = {} if name.startswith("ssd") else {"min_size": SIZE[0], "max_size": SIZE[1]}
    builder = getattr(detection, name)
    torch.manual_seed(seed)
    theirs = builder(weights=None, weights_backbone=None, num_classes=outputs, **size, **more)
    loud(theirs)
    file = folder / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    return theirs.eval(), file


def ours(name: str, file: Path, **suppression: Any) -> tuple[Detector, list[str]]:
    """The same detector of ours, and the tensors that have no part in its source."""
    kind = DETECTORS[name]
    model: Mapping[str, Any] = kind.model
    head = dict(model["head"]) if "head" in model else {}
    if "faster" in name:
        head["proposals"] = 100
    if kind.sizes:
        first = kind.strides[0]
        octaves = len(kind.sizes) if kind.sizes[1:] else 1
        head["anchors"] = lambda features: strided_anchors(
            features, base_scale=kind.sizes[0] / first, octaves=octaves, torchvision=True
        )
    levels = {"faster": "2-6", "retina": "3-7", "fcos_r": "3-7"}.get(name[:6])
    detector = build(
        model["name"],
        classes=list("abcde"),
        pixel_norm=PixelNorm(*kind.pixels),
        norm=NORMS[model.get("norm", "none")],
        suppression=Suppression(**suppression),
        levels=levels,
        **head,
    )
    assert isinstance(detector, Detector)
    return detector.eval(), _start(detector, name, file)


def _start(detector: Detector, name: str, file: Path, **more: Any) -> list[str]:
    source = read_source(f"torchvision:{name}", file=file, **more)
    # Five classes of ours are those five of the file: it names none of them.
    source = replace(source, outputs=replace(source.outputs, classes=tuple("abcde")))
    report = transfer(detector, source, where=file)
    assert not report.of("skipped")
    return [one.key for one in report.keys if one.fate in ("new", "resized") and one.why not in (IMAGES, RECIPE)]


def compare(theirs: nn.Module, mine: Detector, size: tuple[int, int], *, background: bool, least: int = 51) -> None:
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(list(pixels))
        found = mine.detect(ImageBatch(pixels, (size,) * 2))
    expected = [{**one, "labels": one["labels"] - int(background)} for one in expected]
    assert_same_detections(
        found, expected, box_px=BOX_PX, score=1e-4, rule=mine.head.suppression, strays=0.01, least=least
    )


_LONG = pytest.mark.slow  # a second or two each: two of the five are enough for a quick run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fasterrcnn_resnet50_fpn", marks=_LONG),
        "fasterrcnn_resnet50_fpn_v2",
        pytest.param("retinanet_resnet50_fpn", marks=_LONG),
        pytest.param("retinanet_resnet50_fpn_v2", marks=_LONG),
        "fcos_resnet50_fpn",
    ],
)
def test_same_boxes(name: str, tmp_path: Path) -> None:
    theirs, file = theirs_and_file(name, tmp_path, **RULES[name.partition("_")[0]][0])
    mine, left = ours(name, file, **RULES[name.partition("_")[0]][1])
    assert left == []
    compare(theirs, mine, SIZE, background=DETECTORS[name].background, least=20)


def test_same_boxes_of_ssd(tmp_path: Path) -> None:
    """Its priors belong to 300x300: so many candidates a level as torchvision takes of each class come from all of them."""
    theirs, file = theirs_and_file("ssd300_vgg16", tmp_path, topk_candidates=10000, score_thresh=0.3)
    mine, left = ours("ssd300_vgg16", file, score=0.3, iou=0.45, max_detections=200, pre_nms=100000)
    assert left == []
    compare(theirs, mine, (300, 300), background=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_same_boxes_of_mobilenet(name: str, tmp_path: Path) -> None:
    """On both of its maps of stride 32, which no recipe makes: by hand, and regions are cut from the first, as it does."""
    # With these random weights few boxes of the two maps' like anchors are a rounding apart.
    theirs, file = theirs_and_file(name, tmp_path, seed=4, **RULES["fasterrcnn"][0])
    backbone = mobilenet_v3_large(outputs=("stage4", "stage5"))
    sizes = DETECTORS[name].sizes
    shapes = [(2.0 * round(s / r**0.5 / 2), 2.0 * round(s * r**0.5 / 2)) for r in (0.5, 1.0, 2.0) for s in sizes]
    mine = faster_rcnn(
        backbone,
        classes=list("abcde"),
        pixel_norm=PixelNorm(*DETECTORS[name].pixels),
        neck=FPN(backbone.features, num_extra=1),
        num_extra=2,
        anchors=lambda features: AnchorGrid([shapes] * len(features), offset=0.0),
        pool={"aligned": False},
        proposals=100,
        suppression=Suppression(**RULES["fasterrcnn"][1]),
    ).eval()
    assert _start(mine, name, file, all_maps=True) == []
    compare(theirs, mine, SIZE, background=True)


def test_published_files_of_the_first_two_add_nothing_to_the_variance(tmp_path: Path) -> None:
    """torchvision sets eps to 0 for them: what its norm then computes, ours computes from the stored variance."""
    theirs, file = theirs_and_file("fasterrcnn_resnet50_fpn", tmp_path)
    frozen = file.rename(tmp_path / published_file("fasterrcnn_resnet50_fpn")[0])
    key = "backbone.body.bn1.running_var"
    mine = read_source("torchvision:fasterrcnn_resnet50_fpn", file=frozen).state["backbone.stages.stem.1.running_var"]
    torch.testing.assert_close(mine, theirs.state_dict()[key] - 1e-5, rtol=0, atol=0)
