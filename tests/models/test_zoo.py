"""The zoo: names, the published counts, and the reasons why some pairs are refused."""

from __future__ import annotations

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.cost import profile_factors
from flyspeck.models.levels import parse_levels
from flyspeck.models.listed import LISTED
from flyspeck.models.names import ZooName, parse_name
from flyspeck.models.profile import profile
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry.name)
def test_published_counts(entry):
    with torch.device("meta"):
        model = build(entry.name)
    backbone = model.backbone if isinstance(model, Detector) else model
    if entry.counted.startswith("trainable"):
        assert isinstance(backbone, StagedBackbone)
        freeze_stages(backbone, 1)
        if entry.counted == "trainable":
            freeze_norms(backbone)
    found = profile(model, entry.size, convention=entry.convention)
    if entry.mean_of_factors:
        costs = [cost.gflops for cost in profile_factors(model, entry.size, convention=entry.convention).values()]
        assert costs[-1] < entry.gflops < costs[0]
    elif entry.gflops:
        assert found.gflops == pytest.approx(entry.gflops, rel=entry.tolerance)
    trainable = found.params_trainable
    params = {
        "all": found.params, "conv": found.params_conv, "trainable": trainable, "trainable_norms": trainable, "none": 0
    }  # fmt: skip
    assert params[entry.counted] == pytest.approx(entry.params, rel=entry.tolerance)
    assert sum(found.parts.values()) == pytest.approx(found.gflops)
    assert sum(found.stages.values()) == pytest.approx(found.parts["backbone"])


def test_every_kind_of_detector_and_of_published_backbone_is_listed():
    names = {entry.name for entry in LISTED}
    assert {"resnet50", "resnet101", "bh_resnet50", "hrnet18", "hrnet32", "bh_hrnet18", "bh_hrnet32"} <= names
    assert {
        "faster_rcnn:bh_resnet50",
        "faster_rcnn:hrnet32",
        "cascade_rcnn:resnet50:sspnet",
        "retinanet:resnet50",
    } <= names
    assert {
        "retinanet:bh_resnet50:sspnet",
        "fcos:bh_resnet50",
        "reppoints:resnet50",
        "dpnet:reppoints:resnet50",
    } <= names
    assert {"ssd:mobilenet_v1:S1L0-DualPath19-10-S", "ssd:vgg16:S1L2-DualPath"} <= names


def test_parts_of_faster_rcnn_are_those_of_the_paper():
    with torch.device("meta"):
        model = build("faster_rcnn:resnet50")
    parts = profile(model, (512, 640)).parts
    assert parts == {
        "backbone": pytest.approx(26.905, abs=1e-3),
        "neck": pytest.approx(18.574, abs=1e-3),
        "head": pytest.approx(30.104, abs=0.01),  # ReLUs of RPN and box head are modules here or there
    }


def test_names_are_taken_apart():
    assert parse_name("hrnet18") == ZooName(None, "hrnet18")
    assert parse_name("retinanet:bh_resnet50") == ZooName("retinanet", "bh_resnet50")
    assert parse_name("faster_rcnn:resnet18:hrfpn") == ZooName("faster_rcnn", "resnet18", "hrfpn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", r"no 'resnet5'.*did you mean 'resnet50'"),
        ("fcos", r"'fcos' is a detector without a backbone; write fcos:BACKBONE"),
        ("retinnet:resnet50", r"no 'retinnet' in 'retinnet:resnet50'.*did you mean 'retinanet'"),
        ("retinanet:resnet51", r"no backbone 'resnet51'.*did you mean 'resnet50'"),
        ("retinanet:resnet50:fpm", r"no neck 'fpm'.*did you mean 'fpn'"),
    ],
)
def test_an_unknown_part_names_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        parse_name(name)


def test_levels():
    assert parse_levels("3-7") == (3, 7)
    assert parse_levels("1-5") == (1, 5)
    for wrong in ("", "2", "6-2", "2-x", "2-10"):
        with pytest.raises(UserError, match="are no pyramid levels"):
            parse_levels(wrong)
    with torch.device("meta"):
        model = build("retinanet:resnet18", levels="3-7", width=0.25, channels=16)
    assert isinstance(model, Detector)
    assert [f.stride for f in model.features] == [8, 16, 32, 64, 128]


def test_a_pyramid_of_branches_cannot_begin_later():
    with pytest.raises(UserError, match=r"hrnet18 gives all its maps together, from level 2 on.*begin at level 2"):
        build("retinanet:hrnet18", levels="3-7")


def _parts(name):
    with torch.device("meta"):
        model = build(name, width=0.125, channels=32)
    return profile(model, (128, 160)).parts


WITH_NECK = [name for name, entry in DETECTORS.items() if entry.has_neck]
BOTTLENECKS_ONLY = ("tinaface_gn_dcn",)  # makes the bottlenecks of its backbone deformable, and refuses one without


@pytest.mark.parametrize("detector", WITH_NECK)
@pytest.mark.parametrize("neck", NECKS)
def test_every_detector_counts_on_every_neck(detector, neck):
    backbone = "resnet50" if detector in BOTTLENECKS_ONLY else "resnet18"
    assert all(count > 0 for count in _parts(f"{detector}:{backbone}:{neck}").values())


@pytest.mark.slow
@pytest.mark.parametrize("detector", WITH_NECK)
@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_whole_grid_counts(detector, neck, backbone):
    if detector in BOTTLENECKS_ONLY and not backbone.startswith(("resnet50", "resnet101", "resnet152", "bh_resnet50")):
        pytest.skip("its backbone has no bottlenecks")
    assert all(count > 0 for count in _parts(f"{detector}:{backbone}:{neck}").values())


def test_width_is_the_backbones_alone():
    with torch.device("meta"):
        narrow = build("faster_rcnn:resnet18", width=0.25, classes=("a", "b"))
        thin = build("faster_rcnn:resnet18", channels=48)
    assert isinstance(narrow, Detector)
    assert isinstance(thin, Detector)
    assert [f.channels for f in narrow.backbone.features] == [16, 32, 64, 128]
    assert {f.channels for f in narrow.features} == {256}
    assert [f.channels for f in thin.backbone.features] == [64, 128, 256, 512]
    assert {f.channels for f in thin.features} == {48}
    assert narrow.head.num_classes == 2


def test_a_recipe_and_a_name_build_the_same_network():
    with torch.device("meta"):
        named = build("faster_rcnn:resnet18-S1L1", width=0.5, channels=64, levels="1-5", classes=("a",))
        config = ModelConfig(name="faster_rcnn:resnet18-S1L1", width=0.5, channels=64, levels="1-5")
        written = build_detector(config, classes=("a",), mean=[0.5] * 3, std=[0.5] * 3, load=False)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (named, written)]
    assert shapes[0] == shapes[1]


def test_ssd_names():
    assert parse_name("ssd:vgg16") == ZooName("ssd", "vgg16")
    assert parse_name("ssd:mobilenet_v1:S1L0-DualPath19-10-S").configuration == "S1L0-DualPath19-10-S"
    with pytest.raises(UserError, match="no SSD configuration 'fpn'"):
        parse_name("ssd:vgg16:fpn")
    with pytest.raises(UserError, match=r"layer 5 has no stride to eliminate"), torch.device("meta"):
        build("ssd:mobilenet_v1:S1L5")


def test_stride_elimination_in_a_backbones_name():
    with torch.device("meta"):
        model = build("retinanet:resnet18-S1L1", width=0.25, channels=32)
    assert isinstance(model, Detector)
    assert [f.stride for f in model.features] == [2, 4, 8, 16, 32]
    plain = _parts("retinanet:resnet18")
    assert _parts("retinanet:resnet18-S1L1")["head"] == pytest.approx(4 * plain["head"], rel=0.05)


def test_narrow_ssd_has_narrow_extras():
    with torch.device("meta"):
        model = build("ssd:mobilenet_v1", width=0.25)
    assert isinstance(model, Detector)
    assert [f.channels for f in model.features] == [128, 256, 128, 64, 64, 32]
    assert model.head.num_classes == 80
