"""Balanced samples, levels and losses: by hand, and on boxes of a few pixels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.build import build
from flyspeck.models.necks.fpn import FPN
from flyspeck.types import FeatureSpec, ImageBatch, Targets
from flyspeck_lab.comparators import libra_rcnn as libra
from flyspeck_lab.comparators.libra_rcnn import (
    BalancedPyramid,
    IoUBalancedSampler,
    NonLocal,
    balanced_l1,
    sample_per_object,
)
from loss_battery import SHIFTS, check_a_step_against_the_gradient, check_equal_boxes, check_sums, encoded


def test_balanced_l1_by_hand_and_by_its_gradient():
    # b = e^3 - 1. At 0.5: (0.5 / b)(b / 2 + 1) ln(b / 2 + 1) - 0.25; at 2: 3 + 1.5 / b - 0.5.
    b = math.exp(3) - 1
    inner = 0.5 / b * (b / 2 + 1) * math.log(b / 2 + 1) - 0.25
    zero = torch.zeros(1)
    assert_close(balanced_l1(torch.tensor([0.5]), zero), torch.tensor(inner))
    assert_close(balanced_l1(torch.tensor([-2.0]), zero), torch.tensor(2.5 + 1.5 / b))
    x = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    balanced_l1(x, torch.zeros_like(x)).backward()
    expected = torch.where(x.abs() < 1, 0.5 * torch.log(b * x.abs() + 1), 1.5) * x.sign()
    assert_close(x.grad, expected.detach())
    assert torch.autograd.gradcheck(lambda v: balanced_l1(v, torch.zeros_like(v)), x[::7].detach().requires_grad_())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 40))
def test_positives_are_even_over_objects(owners, count):
    assigned = torch.tensor([*owners, BACKGROUND, IGNORED])
    rows = sample_per_object(assigned, count)
    assert len(rows) == min(count, len(owners)) == len(set(rows.tolist()))
    have = torch.bincount(assigned[rows], minlength=6).tolist()
    total = torch.bincount(torch.tensor(owners), minlength=6).tolist()
    for i in range(6):
        for j in range(6):
            # Nobody is two ahead of one who has more to give.
            assert have[i] <= have[j] + 1 or have[j] == total[j]


def test_negatives_are_even_over_bins():
    # 90 easy ones (IoU 0), 6 in the middle bin, 30 in the top bin; 36 wanted: 12 a bin, the middle's lack from anywhere.
    overlap = torch.tensor([0.0] * 90 + [0.25] * 6 + [0.4] * 30)
    torch.manual_seed(0)
    picked = IoUBalancedSampler().even_over_bins(overlap, 36)
    assert len(set(picked.tolist())) == 36
    counts = [int((overlap[picked] == v).sum()) for v in (0.0, 0.25, 0.4)]
    assert counts[1] == 6
    assert min(counts[0], counts[2]) >= 12
    # What lies beyond the last bin (an object's neighbour of another class, say) belongs to it.
    assert len(IoUBalancedSampler().even_over_bins(torch.tensor([0.9, 0.1, 0.6]), 2)) == 2


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_sampling_around_boxes_of_a_few_pixels(side):
    torch.manual_seed(0)  # which of equals are drawn is chance
    x = torch.arange(0, 60.0)
    regions = torch.stack([x, x, x + side, x + side], 1)
    box = torch.tensor([[20.0, 20, 20 + side, 20 + side], [20.0, 20, 20 + side, 20 + side]])
    target = Targets(box, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
    assigned = torch.full((60,), BACKGROUND)
    assigned[20] = 0
    rows = IoUBalancedSampler()(regions, target, assigned, count=12, positive_share=0.25)
    assert len(set(rows.tolist())) == 12
    assert 20 in rows.tolist()
    if side > 1:
        assert {19, 21} & set(rows.tolist())  # the nearest negatives, of 59


def test_sampling_without_objects_and_with_few_regions():
    empty = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    regions, assigned = torch.rand(9, 4), torch.full((9,), BACKGROUND)
    assert len(IoUBalancedSampler()(regions, empty, assigned, count=4, positive_share=0.25)) == 4
    assert len(IoUBalancedSampler()(regions, empty, assigned, count=40, positive_share=0.25)) == 9
    assigned[:] = IGNORED
    assert len(IoUBalancedSampler()(regions, empty, assigned, count=4, positive_share=0.25)) == 0


FEATURES = [FeatureSpec(6, 4), FeatureSpec(8, 8), FeatureSpec(8, 16), FeatureSpec(8, 32)]


def maps(height=50, width=36):
    generator = torch.Generator().manual_seed(0)
    ratios = [f.stride // 4 for f in FEATURES]
    sizes = [(2, f.channels, -(-height // r), -(-width // r)) for f, r in zip(FEATURES, ratios, strict=True)]
    return [torch.randn(size, generator=generator) for size in sizes]


def test_a_new_pyramid_is_the_plain_one_plus_the_mean_of_its_levels():
    torch.manual_seed(0)
    neck = FPN(FEATURES, channels=16)
    balanced = BalancedPyramid(neck)
    assert balanced.features == neck.features
    plain, levels = neck(maps()), balanced(maps())
    size = plain[2].shape[-2:]
    finer = [nn.functional.adaptive_max_pool2d(level, size) for level in plain[:2]]
    coarser = [nn.functional.interpolate(level, size=size) for level in plain[3:]]
    mean = torch.stack([*finer, plain[2], *coarser]).mean(0)
    assert_close(levels[2], plain[2] + mean)
    assert_close(levels[0], plain[0] + nn.functional.interpolate(mean, size=plain[0].shape[-2:]))
    assert_close(levels[4], plain[4] + nn.functional.adaptive_max_pool2d(mean, plain[4].shape[-2:]))


def test_non_local_equals_the_loop_over_cells(monkeypatch):
    torch.manual_seed(0)
    layer = NonLocal(4)
    nn.init.normal_(layer.out.weight)
    for conv in (layer.query, layer.key, layer.value):
        nn.init.normal_(conv.weight)
    x = torch.randn(1, 4, 2, 3)
    with torch.no_grad():
        q, k, v = (conv(x)[0].flatten(1).T for conv in (layer.query, layer.key, layer.value))
        seen = torch.stack([torch.softmax(k @ cell, 0) @ v for cell in q])
        expected = x + layer.out(seen.T.reshape(1, 4, 2, 3))
        assert_close(layer(x), expected)
        monkeypatch.setattr(libra, "MAX_KEYS", 3)  # keys of 2 x 2 cells: the same shape, and still finite
        assert layer(x).shape == x.shape


@pytest.mark.parametrize("size", [(9, 14), (5, 5), (3, 4), (17, 23), (1, 30)])
def test_the_graph_of_a_balanced_pyramid_takes_every_size(size, pyramid_file):
    """Maps of any size, those whose keys are halved once, twice or not at all among them."""
    pyramid, session = pyramid_file
    torch.manual_seed(1)
    maps = [torch.randn(3, 8, 4 * size[0] - 1, 4 * size[1] - 2), torch.randn(3, 8, 2 * size[0], 2 * size[1])]
    maps += [torch.randn(3, 8, *size), torch.randn(3, 8, *(math.ceil(s / 2) for s in size))]
    with torch.no_grad():
        wanted = pyramid(maps)
    found = session.run(None, {f"map{i}": m.numpy() for i, m in enumerate(maps)})
    for one, other in zip(wanted, found, strict=True):
        assert_close(torch.from_numpy(other), one, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def pyramid_file(tmp_path_factory):
    """A pyramid whose attention counts, of at most 12 keys, and its file in ONNX Runtime."""
    import onnxruntime

    from flyspeck.export.onnx import as_onnx

    class Given(nn.Module):
        features = tuple(FeatureSpec(8, stride) for stride in (4, 8, 16, 32))

        def forward(self, maps):
            return list(maps)

    class Starred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pyramid = BalancedPyramid(Given())

        def forward(self, *maps):
            return tuple(self.pyramid(maps))

    torch.manual_seed(0)
    module = Starred().eval()
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(conv.weight, std=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libra, "MAX_KEYS", 12)
        examples = [torch.randn(2, 8, 64 // 2**i, 80 // 2**i) for i in range(4)]
        names = [f"map{i}" for i in range(4)]
        model = as_onnx(module, examples, inputs=names, outputs=[f"out{i}" for i in range(4)])
        yield module.pyramid, onnxruntime.InferenceSession(model.SerializeToString())


def test_a_supervised_neck_keeps_its_losses():
    torch.manual_seed(0)
    detector = build("libra_rcnn:resnet18:sspnet", width=0.125, channels=32, classes=("a",), hidden=16, proposals=20)
    box = torch.tensor([[10.0, 10, 14, 14]])
    target = Targets(box, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    images = ImageBatch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ((64, 64),))
    inner = build("faster_rcnn:resnet18:sspnet", width=0.125, channels=32, classes=("a",), hidden=16, proposals=20)
    assert set(detector.losses(images, [target])) == set(inner.losses(images, [target]))


@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_step_of_balanced_l1_comes_nearer_to_a_tiny_box(side, shift):
    check_a_step_against_the_gradient(encoded(balanced_l1), side, shift)
    check_equal_boxes(encoded(balanced_l1), side)
    check_sums(encoded(balanced_l1))
