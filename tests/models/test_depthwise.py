"""The quick gradient of strided depthwise convolutions against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.mobilenet_v1 import SameConv2d
from flyspeck.models.depthwise import DepthwiseConv2d, use_quick_depthwise


def gradients(layer: nn.Module, x: Tensor, *, bf16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = layer(x)
    weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y.float() * weight).sum(), [x, *layer.parameters()])]


@given(
    channels=st.integers(2, 20),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(2, 3),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_gradients_are_those_of_a_plain_convolution(
    channels: int, kernel: int, stride: int, size: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=bias)
    quick = nn.Sequential(copy.deepcopy(plain))
    use_quick_depthwise(quick)
    assert isinstance(quick[0], DepthwiseConv2d)
    x = torch.rand(2, channels, *size)
    for ours, exact, rough in zip(
        gradients(quick, x, bf16=True), gradients(plain, x, bf16=False), gradients(plain, x, bf16=True), strict=True
    ):
        # bfloat16 keeps 8 bits: as near to the exact numbers as PyTorch's own way is, up to that rounding.
        allowed = (rough.float() - exact).abs().max() + 2**-7 * exact.abs().max() + 1e-6
        assert (ours.float() - exact).abs().max() <= allowed


def test_the_quick_way_is_taken_only_where_it_is_needed() -> None:
    layer = DepthwiseConv2d(4, 4, 3, 2, 1, groups=4)
    x = torch.rand(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(layer(x).grad_fn).__name__ == "_StridedBackward"
        with torch.no_grad():
            assert layer(x).grad_fn is None
        layer.stride = (1, 1)  # as stride elimination leaves it
        assert type(layer(x).grad_fn).__name__ != "_StridedBackward"
    layer.stride = (2, 2)
    assert type(layer(x).grad_fn).__name__ != "_StridedBackward", "float32 keeps PyTorch's own"


@pytest.mark.parametrize("stride", [1, 2])
def test_tensorflows_padding_stays(stride: int) -> None:
    torch.manual_seed(0)
    layer = SameConv2d(6, 6, 3, stride, groups=6)
    x = torch.rand(1, 6, 7, 8)
    exact = layer(x)
    assert exact.shape[-2:] == (-(-7 // stride), -(-8 // stride))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), exact, atol=2e-2, rtol=2e-2)


def test_the_strided_layers_of_a_backbone_are_quick() -> None:
    backbone = mobilenet_v2(width=0.25)
    strided = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1 and m.stride == (2, 2)]
    assert len(strided) == 4
    assert all(isinstance(m, DepthwiseConv2d) for m in strided)
