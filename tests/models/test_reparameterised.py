"""Blocks that train as branches give the same as the one convolution that they become, whatever their norms have seen."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from flyspeck.models.backbones.freezing import freeze_norms
from flyspeck.models.backbones.specknet import specknet_n
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.models.layers import group_norm
from flyspeck.models.profile import profile
from flyspeck.models.receptive import receptive_fields
from flyspeck.models.reparameterised import BranchedConv, Reparameterised, merge_branches


def lived(module: nn.Module) -> nn.Module:
    """With the statistics and weights of norms that have been trained."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.running_mean, -1, 1), (norm.running_var, 0.2, 3), (norm.weight, -2, 2), (norm.bias, -1, 1)
            ):  # fmt: skip
                assert tensor is not None
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return module.eval()


SHAPES = [(6, 6, 1, 1), (6, 8, 1, 1), (6, 8, 2, 1), (6, 6, 1, 6), (8, 8, 1, 2)]


@pytest.mark.parametrize(("inputs", "outputs", "stride", "groups"), SHAPES)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
@pytest.mark.parametrize("side", [1, 2, 7])
def test_merged_is_the_same_to_rounding(inputs, outputs, stride, groups, norm, side) -> None:
    torch.manual_seed(0)
    block = lived(BranchedConv(inputs, outputs, stride=stride, groups=groups, norm=norm)).double()
    assert isinstance(block, BranchedConv)
    merged = block.merged()
    assert merged is not None
    assert len(list(merged.parameters())) == 2
    x = torch.randn(2, inputs, side, side + 1, dtype=torch.float64)
    torch.testing.assert_close(merged(x), block(x), rtol=1e-9, atol=1e-12)


def test_by_hand() -> None:
    """One channel: 3x3 kernel of ones, 1x1 kernel of 2, identity; norms with mean 1, variance 3 and eps 1, scale 4, shift 5."""
    block = BranchedConv(1, 1).eval()
    block.conv.weight.data.fill_(1)
    block.beside.weight.data.fill_(2)
    for norm in (block.norm, block.beside_norm):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.eps = 1.0
        norm.running_mean, norm.running_var = torch.tensor([1.0]), torch.tensor([3.0])
        norm.weight.data.fill_(4)
        norm.bias.data.fill_(5)
    merged = block.merged()
    assert merged is not None
    # Scale 4 / sqrt(3 + 1) = 2: corners 2, the middle 2 + 2 * 2 + 1 = 7; bias twice 5 - 1 * 2 = 3.
    assert merged.weight.flatten().tolist() == pytest.approx([2, 2, 2, 2, 7, 2, 2, 2, 2])
    assert merged.bias is not None
    assert merged.bias.tolist() == pytest.approx([6])


@pytest.mark.parametrize("norm", [group_norm, None])
def test_what_cannot_be_merged_stays(norm) -> None:
    block = BranchedConv(8, 8, norm=group_norm).eval() if norm else BranchedConv(8, 8)  # in training mode
    assert block.merged() is None
    whole = nn.Sequential(block)
    assert merge_branches(whole) == []
    assert whole[0] is block


def test_a_block_that_is_looked_at_stays() -> None:
    whole = nn.Sequential(BranchedConv(4, 4)).eval()
    whole[0].beside.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    assert merge_branches(whole) == []


def test_a_merged_form_that_differs_is_refused_and_said(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(BranchedConv):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    whole = nn.Sequential(Wrong(4, 4)).eval()
    with caplog.at_level(logging.WARNING, "flyspeck"):
        assert merge_branches(whole) == []
    assert "keeps its branches" in caplog.text
    assert isinstance(whole[0], Wrong)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_detector_is_merged_for_use_and_finds_the_same(frozen: bool) -> None:
    torch.manual_seed(0)
    detector = build("speck_n", width=0.5, channels=16, levels="1-4", blocks="rep")
    assert isinstance(detector, Detector)
    if frozen:
        freeze_norms(detector.backbone)
    lived(detector)
    images = probe_images(3, 64)
    with torch.no_grad():
        before = [m for pair in detector.head(detector.pyramid(images))[0] for m in pair]
    twin = copy.deepcopy(detector)
    folding = fold_norms(twin, lambda: twin.head(twin.pyramid(images))[0])
    assert not [m for m in twin.modules() if isinstance(m, Reparameterised | nn.BatchNorm2d)]
    assert len(folding.folded) == sum(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    with torch.no_grad():
        after = [m for pair in twin.head(twin.pyramid(images))[0] for m in pair]
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_profile_counts_the_block_as_it_runs() -> None:
    # 3x3 of 8 to 8 channels on 10x10 cells; the 1x1 beside it is gone. Weights and biases: 9 * 64 + 8.
    found = profile(BranchedConvOnImages(), (10, 10), convention="macs")
    assert found.gflops * 1e9 == pytest.approx(100 * (3 * 8 + 9 * 64))
    assert found.params == 3 * 8 + 8 + 9 * 64 + 8


class BranchedConvOnImages(nn.Sequential):
    """... after a convolution to eight channels."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 1), BranchedConv(8, 8))


def test_the_branch_beside_does_not_count_twice_in_the_receptive_field() -> None:
    # Two 3x3 convolutions at strides 1 -> 2 -> 2 (1 + 2 + 4 = 7 px at stride 2), then three at 4 (stride 2 first), ...
    backbone = specknet_n(width=0.5)
    # stem: 1 + 2*1 + 2*2 = 7; stage1: + 2*2 + n * 2*4
    blocks = len(list(backbone.stages["stage1"].children())) - 1
    assert receptive_fields(backbone, [4])[0] == 7 + 4 + 8 * blocks
