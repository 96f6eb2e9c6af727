"""Bottom-heavy backbones, by name and by rule; HRNet's maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.bottom_heavy import bh_hrnet18, bh_resnet14, bh_resnet18, bh_resnet50, bottom_heavy
from flyspeck.models.backbones.hrnet import HRStage, hrnet18, hrnet32, staged_hrnet
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet18, resnet34, resnet50
from flyspeck.models.necks.hrfpn import HRFPN
from flyspeck.models.profile import profile


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (bh_resnet50, (64, 128)),
        (bh_resnet50, (33, 47)),
        (hrnet18, (72, 100)),
        (hrnet32, (33, 47)),
        (bh_hrnet18, (35, 64)),
    ],
)
def test_maps_have_the_promised_channels_and_strides(build, size):
    backbone = on_meta(build, width=0.25)
    maps = backbone(torch.empty(1, 3, *size, device="meta"))
    assert [spec.stride for spec in backbone.features] == [4, 8, 16, 32]
    for spec, feature in zip(backbone.features, maps, strict=True):
        # every stride-2 step rounds up
        assert feature.shape == (1, spec.channels, -(-size[0] // spec.stride), -(-size[1] // spec.stride))


def test_hrnet_stages_run_one_by_one():
    backbone = hrnet18(width=0.25).eval()
    x = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        whole = backbone(x)
        middle = backbone.run(x, stop="stage3")
        assert [m.shape[1] for m in middle] == [4, 8, 16]
        assert_close(backbone.run(middle, start="stage3"), whole)


@pytest.mark.parametrize(
    ("stem", "strides"), [("standard", 4), ("bottom_heavy", 4), ("stage1_stride", 4), ("stride1", 4)]
)
def test_every_stem_has_total_stride_4(stem, strides):
    backbone = on_meta(staged_hrnet, branch_width=8, stem=stem, width=0.5)
    maps = backbone(torch.empty(1, 3, 64, 64, device="meta"))
    assert maps[0].shape[-1] * strides == 64


def test_other_bh_hrnet_fits_of_the_head_of_the_file():
    # The stem with both convolutions at stride 1: 12.340 M, 52.013 GFLOPs.
    stages = (HRStage(1, (4, 4)), HRStage(2, (4, 4, 4)), HRStage(3, (1, 1, 1, 1)))
    found = profile(on_meta(staged_hrnet, branch_width=32, stem="stride1", stage1_blocks=12, stages=stages), (512, 640))
    assert (found.params / 1e6, found.gflops) == (pytest.approx(12.340, abs=1e-3), pytest.approx(52.013, abs=1e-3))


def test_hrfpn_gives_levels_that_halve():
    neck = HRFPN(hrnet18(width=0.25).features, channels=16)
    maps = [torch.randn(1, c, h, w) for c, h, w in ((4, 25, 30), (8, 13, 15), (16, 7, 8), (32, 4, 4))]
    assert [tuple(m.shape) for m in neck(maps)] == [
        (1, 16, 25, 30), (1, 16, 13, 15), (1, 16, 7, 8), (1, 16, 4, 4), (1, 16, 2, 2)
    ]  # fmt: skip
    assert [f.stride for f in neck.features] == [4, 8, 16, 32, 64]


def test_the_rule_on_resnet50_is_the_papers_network():
    net, moved = bottom_heavy(on_meta(resnet50))
    assert moved.after == {"stage1": 7, "stage2": 6, "stage3": 2, "stage4": 1}
    assert moved.delayed_stem
    named = on_meta(bh_resnet50)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}
    assert moved.gflops_after == pytest.approx(27.12, rel=1e-3)
    assert "stage1 3 -> 7" in str(moved)


@pytest.mark.parametrize("build", [resnet18, resnet34, mobilenet_v2])
def test_the_rule_keeps_gflops_and_strides(build):
    before = on_meta(build)
    net, moved = bottom_heavy(before, size=(256, 320))
    assert moved.gflops_after == pytest.approx(moved.gflops_before, rel=0.02)
    assert moved.params_after < moved.params_before
    assert moved.after["stage1"] > moved.before["stage1"]
    assert moved.after["stage3"] < moved.before["stage3"]
    assert net.features == before.features
    shapes = [m.shape for m in net(torch.empty(1, 3, 64, 64, device="meta"))]
    assert shapes == [m.shape for m in before(torch.empty(1, 3, 64, 64, device="meta"))]


def test_blocks_that_stay_keep_their_weights_and_new_ones_are_fresh():
    torch.manual_seed(0)
    before = resnet18(width=0.25)
    net, _ = bottom_heavy(before, size=(64, 64))
    old, new = before.stages["stage2"], net.stages["stage2"]
    assert_close(new[1].conv1.weight, old[1].conv1.weight, rtol=0, atol=0)
    assert (new[2].conv1.weight != old[1].conv1.weight).all()
    assert_close(new[2].conv1.weight.std(), old[1].conv1.weight.std(), rtol=0.1, atol=0)
    net.train()(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_networks_without_movable_blocks_are_refused():
    with pytest.raises(UserError, match=r"stage2 is not a chain of blocks.*staged_hrnet"):
        bottom_heavy(on_meta(hrnet18, width=0.25))
    with pytest.raises(UserError, match="no block can be moved"):
        bottom_heavy(on_meta(resnet18, width=0.25), keep=1.0)


def test_the_small_one_has_no_pool_and_the_usual_maps():
    """Two, two, one and one blocks of two convolutions, one for each of four projections, and the stem: 17."""
    backbone = bh_resnet14(width=0.25)
    assert not any(isinstance(m, nn.MaxPool2d) for m in backbone.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == 1 + 2 * (2 + 2 + 1 + 1) + 4
    assert [(f.channels, f.stride) for f in backbone.features] == [(16, 4), (32, 8), (64, 16), (128, 32)]
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 24), (1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]


def test_resnet18_and_its_twin_cost_the_same() -> None:
    with torch.device("meta"):
        pair = resnet18(), bh_resnet18()
    first, second = (profile(net, (512, 640)).gflops for net in pair)
    assert abs(first / second - 1) < 0.01
