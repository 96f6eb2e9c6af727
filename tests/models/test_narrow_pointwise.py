"""Strided 1x1 convolutions of few channels train in the channels-last layout, with a plain convolution's gradients."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from flyspeck.models.backbones.bottom_heavy import bh_resnet18
from flyspeck.models.narrow_pointwise import NarrowPointwiseConv2d, use_sound_pointwise


@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 6)])
def test_gradients_are_those_of_a_plain_convolution(stride: int | tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 4, 1, stride, groups=2)
    sound = nn.Sequential(copy.deepcopy(plain))
    use_sound_pointwise(sound)
    assert isinstance(sound[0], NarrowPointwiseConv2d)
    x = torch.rand(2, 6, *size)  # contiguous: there the plain one is sound
    results = []
    for layer in (plain, sound):
        here = x.clone().requires_grad_()
        y = layer(here)
        weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        results.append([y.detach(), *torch.autograd.grad((y * weight).sum(), [here, *layer.parameters()])])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_narrow_pointwise_layers_are_changed() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(15, 8, 1))
    use_sound_pointwise(layers)
    assert [type(layer) is nn.Conv2d for layer in layers] == [True, True, True, False]


def test_the_layers_of_the_narrowest_backbone_train() -> None:
    """In a process of its own: without the guard the process is killed."""
    layers = [m for m in bh_resnet18(width=0.125).modules() if isinstance(m, NarrowPointwiseConv2d)]
    assert (8, (2, 2)) in {(layer.in_channels, layer.stride) for layer in layers}
    code = """
import torch
from flyspeck.models.narrow_pointwise import use_sound_pointwise
torch.set_num_threads(1)
layer = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, 2)).to(memory_format=torch.channels_last)
use_sound_pointwise(layer)
x = torch.rand(2, 8, 128, 128).contiguous(memory_format=torch.channels_last)
for _ in range(3):
    layer(x).sum().backward()
print("sound")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "sound"), done.stderr
