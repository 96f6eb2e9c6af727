"""Strided 1x1 convolutions of few channels, kept from a kernel of PyTorch's that writes where it should not.

On the CPU, oneDNN's gradient to the weights of a 1x1 convolution in the channels-last layout with a stride of 2 or 4 and fewer
than 16 input channels writes beyond its memory: the process ends, or goes on with wrong numbers (seen with PyTorch 2.15 at 3, 4,
8, 10, 12 and 15 channels on maps of 64 cells a side and more). 16 channels, a stride of 1, 3x3 kernels and the contiguous layout
are sound. The narrowest bottom-heavy ResNets begin with such layers. A 1x1 convolution of stride 2 is one of stride 1 on every
second cell, and that one is sound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 16
"""Input channels of a group from which the kernel is sound."""


class NarrowPointwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d`; where it is strided and trains on the CPU, it drops the cells between before it computes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Not settled when the layer is made: stride elimination and dynamic pooling change the stride later.
        if not (torch.is_grad_enabled() and input.device.type == "cpu" and max(self.stride) > 1):
            return super()._conv_forward(input, weight, bias)
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], weight, bias, groups=self.groups)


def use_sound_pointwise(module: nn.Module) -> None:
    """Makes every 1x1 `nn.Conv2d` of few channels below `module` a `NarrowPointwiseConv2d`, in place."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _is_narrow_pointwise(layer):
            layer.__class__ = NarrowPointwiseConv2d  # same parameters, same state: only the method differs


def _is_narrow_pointwise(layer: nn.Conv2d) -> bool:
    plain = layer.kernel_size == (1, 1) and layer.padding == (0, 0)
    return plain and layer.in_channels // layer.groups < LEAST_CHANNELS
