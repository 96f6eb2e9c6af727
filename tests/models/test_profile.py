"""Counters: golden values by hand, a slow twin, and the published numbers of the backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flyspeck.errors import UserError
from flyspeck.models.backbones.bottom_heavy import bh_hrnet18, bh_hrnet32, bh_resnet50
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.hrnet import hrnet18, hrnet32
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet18, resnet50
from flyspeck.models.profile import measure_latency, profile

AT = (512, 640)


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


class _OneOfEach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AdaptiveAvgPool2d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = self.up(self.average(self.pool(self.relu(self.norm(self.conv(x))))))
        return self.linear(torch.relu(x.permute(0, 2, 3, 1)))


# On an 8x8 image: the convolution gives 4 channels of 4x4 = 64 numbers, each of 27 multiply-adds and a bias; the norm
# counts 2 x 64, the ReLU 64; the max pool reads 64 and gives 4x2x2, the average pool reads 16 and gives 16; the upsampled
# map has 64; the linear layer makes 16 rows of 4 x 5 multiply-adds and adds its 5 biases once.
@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("macs", 64 * 27 + 16 * 20),
        ("mmcv", (64 * 27 + 64) + 128 + 64 + 64 + 16 + 64 + (16 * 20 + 5)),
        ("ptflops", (64 * 27 + 64) + 128 + 64 + 64 + (16 * 20 + 5)),
        ("thop", 64 * 27 + 4 * 64 + 16 * 20),
    ],
)
def test_conventions_on_one_layer_of_each_kind(convention, expected):
    assert profile(_OneOfEach(), (8, 8), convention=convention).gflops * 1e9 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2, hrnet18])
def test_macs_agree_with_pytorchs_own_flop_counter(build):
    model = on_meta(build)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 96, 64, device="meta"))
    assert profile(model, (96, 64), convention="macs").gflops * 1e9 == pytest.approx(counter.get_total_flops() / 2)


def test_a_shared_module_counts_at_each_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x):
            return self.conv(self.conv(x))

    assert profile(Twice(), (4, 4)).gflops * 1e9 == pytest.approx(2 * 16 * 9)


# Name, all parameters, convolution parameters, GFLOPs by the mmcv convention at 512x640 (papers: 26.91, 27.12, 51.93, 21.71).
@pytest.mark.parametrize(
    ("build", "params", "conv", "gflops"),
    [
        (resnet50, 23_508_032, 23_454_912, 26.91),
        (bh_resnet50, 10_948_160, 10_913_472, 27.12),
        (hrnet32, 29_305_536, None, 51.93),
        (hrnet18, 9_562_260, None, 21.71),
    ],
)
def test_backbones_have_the_published_counts(build, params, conv, gflops):
    found = profile(on_meta(build), AT)
    assert found.params == params
    assert conv is None or found.params_conv == conv
    assert found.gflops == pytest.approx(gflops, rel=1e-3)


@pytest.mark.parametrize(("build", "params", "gflops"), [(bh_hrnet18, 5.85e6, 21.66), (bh_hrnet32, 12.36e6, 51.89)])
def test_bottom_heavy_hrnets_are_near_the_published_counts(build, params, gflops):
    found = profile(on_meta(build), AT)
    assert found.params == pytest.approx(params, rel=0.03)
    assert found.gflops == pytest.approx(gflops, rel=0.03)


def test_share_of_gflops_by_stage_is_the_papers_metric_2():
    expected = {
        resnet50: {"stem": 0.792, "stage1": 4.443, "stage2": 6.769, "stage3": 9.604, "stage4": 5.296},
        bh_resnet50: {"stem": 0.650, "stage1": 10.505, "stage2": 9.645, "stage3": 3.876, "stage4": 2.438},
    }
    for build, stages in expected.items():
        found = profile(on_meta(build), AT)
        assert found.stages == pytest.approx(stages, abs=6e-4)
        assert sum(found.stages.values()) == pytest.approx(found.gflops)


def test_trainable_parameters_follow_what_is_frozen():
    model = resnet50(width=0.25)
    freeze_stages(model, 1)
    freeze_norms(model)
    convs = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 4 and not name.startswith(("stages.stem", "stages.stage1"))
    ]
    assert profile(model, (64, 64)).params_trainable == sum(p.numel() for p in convs)


def test_paper_counts_resnet50_by_convolutions_of_stages_2_to_4():
    model = on_meta(resnet50)
    freeze_stages(model, 1)
    freeze_norms(model)
    assert profile(model, (64, 64)).params_trainable == pytest.approx(23.23e6, rel=1e-3)


def test_profiling_leaves_the_model_alone():
    model = resnet18(width=0.25).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile(model, (64, 64))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_peak_memory_holds_input_and_output_of_the_widest_layer():
    # 1x1 convolutions 3 -> 8 -> 2 on 16x16 float32: the peak is input (768) + hidden (2048) + output (512) numbers, for
    # the image is held by the caller; the weights are 3*8 + 8*2 numbers.
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    expected = 4 * (24 + 16 + 2048 + 512 + 768)
    assert profile(model, (16, 16)).peak_memory_mb * 1e6 == pytest.approx(expected, abs=1)


def test_json_has_the_documented_keys():
    content = profile(resnet18(width=0.25), (64, 96), name="resnet18").to_json()
    assert set(content) == {
        "name", "size", "convention", "params", "params_trainable", "params_conv", "gflops", "parts", "stages",
        "peak_memory_mb",
    }  # fmt: skip
    assert content["parts"] == {"backbone": pytest.approx(content["gflops"])}


def test_latency_restores_the_number_of_threads():
    before = torch.get_num_threads()
    found = measure_latency(resnet18(width=0.1), (32, 32), runs=3, warmup=1, threads=1)
    assert found.p10_ms <= found.median_ms <= found.p90_ms
    assert (found.runs, found.threads, torch.get_num_threads()) == (3, 1, before)


def test_unknown_convention_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mmcv'"):
        profile(nn.Conv2d(3, 3, 1), (8, 8), convention="mmvc")
