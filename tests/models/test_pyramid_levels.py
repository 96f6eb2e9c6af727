"""Pyramids by stride: every backbone with every head, from every level that it has a map for, down to stride 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import assemble, build, build_backbone, choose_pyramid
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.roi import RoIPool
from flyspeck.models.names import ZooName
from flyspeck.models.zoo import BACKBONES, DETECTORS, BackboneEntry
from flyspeck.train.build import FORMAT, build_detector, describe_model, detector_from_description
from flyspeck.train.config import ModelConfig
from flyspeck.types import FeatureSpec, ImageBatch, Targets
from one_step import FEW, Remembered, batch, finite_step

CHAIN = [name for name, entry in BACKBONES.items() if "hrnet" not in name]
OTHERS = ("tinaface_gn_dcn", "dfine", "rtdetrv2")
"""What needs a backbone of its own, and the transformers, whose levels tests/models/detr looks at."""
HEADS = [name for name, entry in DETECTORS.items() if entry.has_neck and name not in OTHERS]
ELIMINATED = ("resnet18-S1L1", "resnet50-S1L0", "mobilenet_v1-S1L0", "vgg16-S1L2", "hrnet18-S1L0")
BOX_LOSS = {"faster_rcnn": "rpn_box", "cascade_rcnn": "rpn_box", "reppoints": "box_init"}


def first_levels(entry: BackboneEntry) -> list[int]:
    return [stride.bit_length() - 1 for stride in entry.strides]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbones_entry_says_what_maps_it_gives(name):
    with torch.device("meta"):
        backbone = build_backbone(name, width=0.25)
    maps = [*backbone.specs.values(), *(spec for branch in backbone.branches.values() for spec in branch)]
    assert tuple(sorted({spec.stride for spec in maps})) == BACKBONES[name].strides


@pytest.mark.parametrize("name", CHAIN)
def test_a_level_without_a_map_is_refused_with_those_that_there_are(name):
    levels = first_levels(BACKBONES[name])
    with torch.device("meta"):
        backbone = build_backbone(name, width=0.25)
    with pytest.raises(
        UserError, match=rf"{name} has no map of level {levels[0] - 1}.*the levels {', '.join(map(str, levels))}"
    ):
        choose_pyramid(backbone, f"{levels[0] - 1}-6", name=name)
    for level in levels:
        assert choose_pyramid(backbone, f"{level}-6", name=name) == 6 - levels[-1]
        own = [2**k for k in range(level, levels[-1] + 1)]
        assert [spec.stride for spec in backbone.features] == own
        assert choose_pyramid(backbone, f"{level}-", name=name) == 0
        assert [spec.stride for spec in backbone.features] == own


def finest_detectors(name: str, first: int) -> None:
    """Every head on one run of the backbone, whose maps begin at level `first`: a step, and detections."""
    torch.manual_seed(0)
    backbone = build_backbone(name, width=1 / 16)
    num_extra = choose_pyramid(backbone, f"{first}-5", name=name)
    pixel_norm = PixelNorm((0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        remembered = Remembered(backbone(pixel_norm(batch()[0])))
    for head in HEADS:
        own: dict[str, Any] = FEW if DETECTORS[head].sections else {"depth": 1}
        detector = assemble(
            ZooName(head, name), backbone, classes="ab", pixel_norm=pixel_norm, num_extra=num_extra, channels=8, **own
        )
        assert [f.stride for f in detector.features] == [2**k for k in range(first, 6)]
        assert detector.divisor == 32
        detector.backbone = remembered
        finite_step(detector)
        with torch.no_grad():
            found = detector.eval().detect(batch()[0])
        assert [one.image_size for one in found] == list(batch()[0].sizes)


@pytest.mark.parametrize("name", CHAIN)
def test_every_head_trains_a_step_from_every_level_of(name):
    for first in first_levels(BACKBONES[name]):
        if first <= 3:
            finest_detectors(name, first)


@pytest.mark.parametrize("name", ELIMINATED)
def test_every_head_trains_a_step_from_stride_2_of_a_backbone_that_lost_a_stride(name):
    finest_detectors(name, 1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_boxes_of_a_few_pixels_are_learnt_at_stride_2(head, side):
    torch.manual_seed(0)
    own: dict[str, Any] = FEW if DETECTORS[head].sections else {"depth": 1}
    detector = build(f"{head}:bh_resnet14", width=0.125, channels=16, levels="1-5", classes="ab", **own)
    assert isinstance(detector, Detector)
    middle = torch.tensor([41.0, 31.0])  # a point of stride 2
    box = torch.cat([middle - side / 2, middle + side / 2])[None]
    target = Targets(box, torch.tensor([1]), torch.tensor([False]))
    images = ImageBatch(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)), ((64, 96),))
    losses = detector.losses(images, [target])
    assert losses[BOX_LOSS.get(head, "box")] > 0  # somebody has taken it
    assert all(torch.isfinite(value) for value in losses.values())


def test_regions_go_to_the_level_of_their_size():
    """224 px go to stride 16, and every octave below one level finer, from whatever level a pyramid begins."""
    sides = [3.5, 14, 28, 56, 112, 224, 448]
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides])
    assert RoIPool([2, 4, 8, 16, 32]).level_of(boxes).tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert RoIPool([4, 8, 16, 32]).level_of(boxes).tolist() == [0, 0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "levels", "strides"),
    [
        ("retinanet:resnet18-S1L1", None, [2, 4, 8, 16, 32]),  # the maps of 2-6, enlarged
        ("retinanet:resnet18-S1L1", "1-5", [2, 4, 8, 16, 32]),
        ("retinanet:resnet18-S1L1", "2-6", [4, 8, 16, 32, 64]),
        ("fcos:mobilenet_v2", "1-5", [2, 4, 8, 16, 32]),
        ("fcos:mobilenet_v2", "1-7", [2, 4, 8, 16, 32, 64, 128]),
        ("fcos:mobilenet_v2", "5-5", [32]),
        ("fcos:hrnet18-S1L0", "1-5", [2, 4, 8, 16, 32]),
    ],
)
def test_levels_are_strides(name, levels, strides):
    with torch.device("meta"):
        detector = build(name, width=0.25, channels=16, levels=levels)
    assert isinstance(detector, Detector)
    assert [f.stride for f in detector.features] == strides


def test_of_several_maps_of_one_stride_the_last_is_taken():
    with torch.device("meta"):
        backbone = build_backbone("resnet18-S1L1", width=0.25)
    assert (backbone.specs["stem"].stride, backbone.specs["stage1"].stride) == (2, 2)
    choose_pyramid(backbone, "1-5", name="resnet18-S1L1")
    assert backbone.outputs == ("stage1", "stage2", "stage3", "stage4")


# --- what the sides of a batch must divide by -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "levels", "divisor"),
    [
        ("retinanet:resnet18", "2-6", 32),  # stride 64 would be padded for nothing
        ("retinanet:resnet18", "3-7", 32),
        ("retinanet:resnet18", "5-5", 32),
        ("retinanet:resnet18-S1L1", None, 32),
        ("retinanet:resnet18-S1L1", "1-4", 16),
        ("ssd:mobilenet_v1", None, 1),
        ("ssd:mobilenet_v1:S1L0-DualPath19-10-S", None, 1),
        ("ssd:vgg16", None, 1),
    ],
)
def test_divisor(name, levels, divisor):
    with torch.device("meta"):
        detector = build(name, width=0.25, levels=levels)
    assert isinstance(detector, Detector)
    assert detector.divisor == divisor


@pytest.mark.parametrize(("strides", "divisor"), [((4, 8, 16, 64), 64), ((4, 12, 24), 24), ((0.5, 1, 2), 2)])
def test_divisor_of_strides_that_are_no_powers_of_two(strides, divisor):
    with torch.device("meta"):
        detector = build("retinanet:resnet18", width=0.25, channels=16)
    assert isinstance(detector, Detector)
    backbone = detector.backbone
    assert isinstance(backbone, StagedBackbone)
    names = ("stage1", "stage2", "stage3", "stage4")[: len(strides)]
    backbone.specs |= {stage: FeatureSpec(8, stride) for stage, stride in zip(names, strides, strict=True)}
    backbone.outputs = names
    detector.neck.features = backbone.features  # type: ignore[assignment]
    assert detector.divisor == divisor


# --- files of version 0.1.0 -------------------------------------------------------------------------------------------


def described(name: str, *, old: bool, **model: Any) -> dict[str, Any]:
    config = ModelConfig(name=name, width=0.25, channels=16, **model)
    description = describe_model(config, classes=("a",), mean=[0.5], std=[0.5])
    assert description.pop("format") == FORMAT
    return description if old else {**description, "format": FORMAT}


def test_an_ssd_of_version_0_1_0_is_padded_as_it_was_trained():
    assert detector_from_description(described("ssd:mobilenet_v1", old=True)).divisor == 32
    assert detector_from_description(described("ssd:mobilenet_v1", old=False)).divisor == 1


@pytest.mark.parametrize(("old", "finest"), [(True, 2), (False, 4)])
def test_levels_of_version_0_1_0_were_counted_before_an_elimination(old, finest):
    detector = detector_from_description(described("fcos:resnet18-S1L1", old=old, levels="2-6"))
    assert [f.stride for f in detector.features] == [finest * 2**i for i in range(5)]


def test_a_backbones_norms_and_stages_are_frozen_by_a_recipe():
    config = ModelConfig(name="fcos:mobilenet_v2", width=0.25, channels=16, levels="1-5", frozen_stages=1)
    detector = build_detector(config, classes=("a",), mean=[0.5], std=[0.5], load=False)
    backbone = detector.backbone
    assert isinstance(backbone, StagedBackbone)
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "stage1"}
