"""Stride elimination and the dual path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.backbones.hrnet import hrnet18
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.mobilenet_v1 import mobilenet_v1
from flyspeck.models.backbones.resnet import resnet18, resnet50
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.backbones.vgg import vgg16
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.retinanet import RetinaNetHead
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.stride import DualPath, detect_finer, eliminate_strides, layers, parse_elimination
from flyspeck.types import FeatureSpec, ImageBatch
from same_detections import assert_same_detections


def strided(backbone):
    return [layer.index for layer in layers(backbone) if layer.stride > 1]


def test_layers_have_the_papers_numbers():
    with torch.device("meta"):
        assert strided(mobilenet_v1(width=0.25)) == [0, 2, 4, 6, 12]
        assert len(layers(mobilenet_v1(width=0.25))) == 14
        assert strided(vgg16(width=0.25, top_stride=1)) == [2, 5, 9, 13]
        assert len(layers(vgg16(width=0.25))) == 20
        assert strided(mobilenet_v2(width=0.25)) == [0, 2, 4, 7, 14]
        assert strided(resnet18(width=0.25)) == [0, 1, 4, 6, 8]  # conv, pool, then two blocks a stage


def test_names():
    assert parse_elimination("S1L0") == (0,)
    assert parse_elimination("S2L4-6") == (4, 6)
    with pytest.raises(UserError, match=r"says 1 strides and names 2 layers; write S2L4-6"):
        parse_elimination("S1L4-6")
    for wrong in ("S1", "L0", "S1L", "S1L0-", "S1LX", "s1l0"):
        with pytest.raises(UserError, match="is no stride elimination"):
            parse_elimination(wrong)


@pytest.mark.parametrize(
    ("build", "name", "strides"),
    [
        (mobilenet_v1, "S1L0", [2, 4, 8, 16]),
        (mobilenet_v1, "S1L4", [4, 4, 8, 16]),
        (mobilenet_v1, "S2L4-6", [4, 4, 4, 8]),
        (mobilenet_v1, "S1L12", [4, 8, 16, 16]),
        (vgg16, "S1L2", [2, 4, 8, 16]),
        (mobilenet_v2, "S1L7", [4, 8, 8, 16]),
        (resnet50, "S1L1", [2, 4, 8, 16]),
        (resnet18, "S1L8", [4, 8, 16, 16]),
        (hrnet18, "S1L0", [2, 4, 8, 16]),
    ],
)
def test_maps_grow_as_the_specs_say(build, name, strides):
    with torch.device("meta"):
        backbone = eliminate_strides(build(width=0.25), name)
        maps = backbone(torch.empty(1, 3, 64, 96))
    assert [f.stride for f in backbone.features] == strides
    for spec, feature in zip(backbone.features, maps, strict=True):
        assert feature.shape[1:] == (spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_weights_are_kept():
    torch.manual_seed(0)
    backbone = mobilenet_v1(width=0.25)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    eliminate_strides(backbone, "S1L0")
    assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)


def test_a_dense_map_holds_the_strided_one():
    """Without the stride of layer 0, layer 0 computes the same responses and those between them: every other one is old."""
    torch.manual_seed(0)
    backbone = mobilenet_v1(width=0.25).eval()
    x = torch.randn(1, 3, 32, 48)
    first = next(backbone.stages["stem"].children())
    with torch.no_grad():
        old = first(x)
        eliminate_strides(backbone, "S1L0")
        assert_close(first(x)[..., ::2, ::2], old)


def test_a_strided_pool_becomes_the_identity():
    backbone = eliminate_strides(vgg16(width=0.1), "S1L2")
    pool = layers(backbone)[2].module
    assert isinstance(pool, nn.MaxPool2d)
    x = torch.randn(1, 4, 6, 7)
    assert_close(pool(x), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S1L14", r"no layer 14: the backbone has layers 0 to 13; layers with a stride are 0 \(stride 2\), 2"),
        ("S1L5", r"layer 5 has no stride to eliminate; layers with a stride are 0 \(stride 2\), 2"),
        ("S2L0-5", r"layer 5 has no stride"),
    ],
)
def test_layers_that_cannot_be_eliminated_are_named(name, message):
    with torch.device("meta"):
        backbone = mobilenet_v1(width=0.25)
        with pytest.raises(UserError, match=message):
            eliminate_strides(backbone, name)
        assert strided(backbone) == [0, 2, 4, 6, 12]  # nothing was changed on the way


def test_the_large_path_is_the_original_network_on_every_other_pixel():
    """S1L0: layer 0 without its stride, subsampled, is layer 0 with it: so the large path gives the base's maps exactly."""
    torch.manual_seed(0)
    base = mobilenet_v1(width=0.25).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = base(x)
        dual = DualPath(eliminate_strides(base, "S1L0"), split=0)
        small, large = dual(x)[:4], dual(x)[4:]
        assert_close(large, expected)
        assert_close(small, base(x))
    assert [f.stride for f in dual.features] == [2, 4, 8, 16, 4, 8, 16, 32]
    assert [m.shape[-1] for m in (*small, *large)] == [32, 16, 8, 4, 16, 8, 4, 2]


def test_the_dual_path_splits_between_stages_too():
    torch.manual_seed(0)
    backbone = eliminate_strides(mobilenet_v1(width=0.25, outputs=("stage3", "stage4")), "S1L6").eval()
    with torch.no_grad():
        maps = DualPath(backbone, split=6)(torch.randn(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [8, 4, 4, 2]


def test_both_paths_reach_the_shared_weights():
    dual = DualPath(eliminate_strides(mobilenet_v1(width=0.1), "S1L0"), split=0).train()
    shared = layers(dual.path)[3].module.pw.weight
    gradients = []
    for path in (slice(0, 4), slice(4, 8)):
        dual.zero_grad()
        sum(m.square().mean() for m in dual(torch.randn(2, 3, 64, 64))[path]).backward()
        gradients.append(shared.grad.abs().sum())
    assert all(g > 0 for g in gradients)


def test_detecting_without_a_stride_is_detecting_in_the_enlarged_image():
    """A 1x1 network strided at its very beginning: an image enlarged by repetition gives the map that it has without."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.ReLU())
    stages = {"stem": stem, "stage1": nn.Sequential(nn.Conv2d(4, 4, 1))}
    specs = {"stage1": FeatureSpec(4, 2)}
    torch.manual_seed(0)
    backbone = StagedBackbone(stages, specs, outputs=("stage1",))
    neck = FPN(backbone.features, channels=4, num_extra=0)
    head = RetinaNetHead(neck.features, num_classes=1, anchors=strided_anchors(neck.features), depth=1)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    norm = PixelNorm([0.0] * 3, [1.0] * 3)
    detector = Detector(backbone, neck, head, pixel_norm=norm, classes=("x",)).eval()
    image = torch.rand(1, 3, 8, 12)
    enlarged = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    (expected,) = detector.detect(ImageBatch(enlarged, ((16, 24),)))
    eliminate_strides(backbone, (0,))
    (found,) = detect_finer(detector, ImageBatch(image, ((8, 12),)), factor=2)
    halved = replace(expected, boxes=expected.boxes / 2)
    assert_same_detections([found], [halved], box_px=1e-4, score=1e-5, rule=head.suppression)
    assert found.image_size == (8, 12)


def test_a_map_before_the_split_is_refused():
    with torch.device("meta"):
        backbone = eliminate_strides(mobilenet_v1(width=0.25), "S1L6")
        with pytest.raises(ValueError, match="a feature map lies before the split"):
            DualPath(backbone, split=6)


def test_a_image_smaller_than_the_largest_stride_is_refused():
    with torch.device("meta"):
        backbone = mobilenet_v1(width=0.25)
        with pytest.raises(UserError, match=r"20x40 px is smaller than the backbone's largest stride, 32"):
            backbone(torch.empty(1, 3, 20, 40))
        eliminate_strides(backbone, "S1L12")
        assert backbone(torch.empty(1, 3, 20, 40))[-1].shape[-2:] == (2, 3)
