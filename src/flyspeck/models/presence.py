"""A network of some ten thousand weights that says where in a coarse image something may be: the first look of skipping.

Six 3x3 convolutions, three of them of stride 2, the last two dilated: a cell of 8x8 coarse pixels is judged from 63x63.
It is our own design and follows no paper. The idea of deciding by a cheap statistic before the detector runs is DPNet's
(its factor predictor).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CELL = 8
"""Coarse pixels between the centres of two cells; cell (i, j) is centred on pixel (8 i, 8 j)."""


class PresenceNet(nn.Module):
    """`(B, C, h, w)` uint8, or float in [0, 1], to logits `(B, ceil(h / 8), ceil(w / 8))`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        plan = [(len(mean), width, 2, 1), (width, 3 * width // 2, 2, 1), (3 * width // 2, 2 * width, 2, 1)]
        plan += [(2 * width, 2 * width, 1, 1), (2 * width, 2 * width, 1, 2)]
        layers: list[nn.Module] = []
        for before, after, stride, dilation in plan:
            layers += [
                nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * width, 1, 1))
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, -3.0)  # most cells are empty

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        scale = 255.0 if pixels.dtype == torch.uint8 else 1.0
        x = (pixels.to(torch.float32) - self.mean * scale) / (self.std * scale)
        return self.layers(x.contiguous(memory_format=torch.channels_last))[:, 0]

    def folded(self) -> PresenceNet:
        """For inference: the norms are folded into the convolutions, in place. Not to be trained further."""
        self.eval()
        layers = list(self.layers)
        out: list[nn.Module] = []
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                conv = out.pop()
                assert isinstance(conv, nn.Conv2d)
                out.append(fuse_conv_bn_eval(conv, layer))
            else:
                out.append(layer)
        self.layers = nn.Sequential(*out)
        return self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
