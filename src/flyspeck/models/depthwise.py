"""Depthwise convolutions whose training in bfloat16 does not stall on a stride.

PyTorch's CPU kernels have no fast bfloat16 path for one of the three: the gradient to the input of a strided depthwise
convolution takes ten and more times as long as in float32 (128 against 8 ms at 8x96x128x160 on one core), and four such
layers were a quarter of a MobileNetV2 detector's training step. So this one gradient is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` that takes the quick gradient where it is needed and fits; otherwise it is one in everything."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and self._stalls and _in_bfloat16(input)):
            return super()._conv_forward(input, weight, bias)
        bias = None if bias is None else bias.bfloat16()
        return _Strided.apply(input.bfloat16(), weight.bfloat16(), bias, self.stride, self.padding)

    @property
    def _stalls(self) -> bool:
        # Not settled when the layer is made: stride elimination and dynamic pooling change the stride later.
        plain = self.padding_mode == "zeros" and self.dilation == (1, 1) and not isinstance(self.padding, str)
        return plain and max(self.stride) > 1 and _is_depthwise(self)


def use_quick_depthwise(module: nn.Module) -> None:
    """Makes every depthwise `nn.Conv2d` below `module`, torchvision's own blocks included, a `DepthwiseConv2d`, in place."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _is_depthwise(layer):
            layer.__class__ = DepthwiseConv2d  # same parameters, same state: only the method differs


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _in_bfloat16(input: Tensor) -> bool:
    if input.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") is torch.bfloat16
    return input.dtype is torch.bfloat16


_backward = torch.ops.aten.convolution_backward


class _Strided(torch.autograd.Function):
    """`F.conv2d` with a group per channel in bfloat16; the gradient to the input goes by float32."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding, ctx.bias = stride, padding, bias is not None
        return F.conv2d(input, weight, bias, stride, padding, 1, input.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        into, of_weight, of_bias = ctx.needs_input_grad[:3]
        rest = ([len(weight)] if ctx.bias else None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), input.shape[1])
        _, to_weight, to_bias = _backward(grad, input, weight, *rest, (False, of_weight, of_bias))
        if not into:
            return None, to_weight, to_bias, None, None
        to_input, exact = torch.empty_like(input), weight.float()
        # Image by image, for the whole batch in float32 does not fit the cache.
        for own, part in zip(to_input.split(1), grad.split(1), strict=True):
            like = torch.empty_like(own, dtype=torch.float32)  # only its shape and layout are read
            own.copy_(_backward(part.float(), like, exact, *rest, (True, False, False))[0])
        return to_input, to_weight, to_bias, None, None
