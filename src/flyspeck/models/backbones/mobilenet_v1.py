"""MobileNetV1 (Howard et al., arXiv:1704.04861) as a staged backbone: the host of stride elimination.

Layers are numbered as the stride-elimination paper numbers them: 0 is the 3x3 convolution (stride 2, 32 channels), 1-13
are depthwise-separable ones: 1 (64), 2 (stride 2, 128), 3 (128), 4 (stride 2, 256), 5 (256), 6 (stride 2, 512), 7-11
(512), 12 (stride 2, 1024), 13 (1024). Stages: `stem` 0-1 (stride 2), `stage1` 2-3 (4), `stage2` 4-5 (8), `stage3` 6-11
(16), `stage4` 12-13 (32).

TensorFlow's weights need its 'same' padding (`tf_same`: at stride 2 the extra pixel goes right and bottom) and ReLU6; those
whose batch norms are folded into the convolutions' biases need `folded`. `CORAL` is these three together; their input is
RGB in [-1, 1] (mean and deviation 0.5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.depthwise import DepthwiseConv2d
from flyspeck.models.weights import load_backbone
from flyspeck.options import Options
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
CORAL: dict[str, Any] = {"tf_same": True, "relu6": True, "folded": True}
"""What the TensorFlow models of Coral need: `mobilenet_v1(**CORAL, weights=...)`."""

_SLICES = {"stem": (0, 2), "stage1": (2, 4), "stage2": (4, 6), "stage3": (6, 12), "stage4": (12, 14)}
_SEPARABLE = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *((1, 512),) * 5, (2, 1024), (1, 1024))


class SameConv2d(DepthwiseConv2d):
    """A convolution with TensorFlow's 'same' padding: what the stride does not need goes right and bottom.

    The kernel is odd and at least 3, the stride 1 or 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', ceil(H / stride), ceil(W / stride))`."""
        pads: list[int] = []
        for size, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True):
            # TensorFlow's rule for odd kernels and strides of 1 and 2, in its simplest form: a graph holds it as an expression of
            # the image's size, which grows from layer to layer.
            half = kernel // 2
            pads = [half if stride == 1 else half - 1 + size % 2, half, *pads]  # F.pad wants the last dimension first
        return self._conv_forward(F.pad(input, pads), self.weight, self.bias)


class _Style:
    """How the layers of one network are made."""

    def __init__(self, *, tf_same: bool, relu6: bool, folded: bool) -> None:
        self.tf_same, self.folded = tf_same, folded
        self.activation = nn.ReLU6 if relu6 else nn.ReLU

    def conv(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        same = self.tf_same and kernel > 1
        kind = SameConv2d if same else nn.Conv2d
        padding = 0 if same else kernel // 2
        return kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=self.folded)

    def norm(self, channels: int) -> nn.Module:
        return nn.Identity() if self.folded else nn.BatchNorm2d(channels)


class ConvLayer(nn.Module):
    """Layer 0: convolution, norm, activation."""

    def __init__(self, outputs: int, style: _Style) -> None:
        super().__init__()
        self.conv, self.norm, self.act = style.conv(3, outputs, 3, stride=2), style.norm(outputs), style.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Images to maps of half the size."""
        return self.act(self.norm(self.conv(x)))


class SeparableLayer(nn.Module):
    """Depthwise 3x3, norm, activation, pointwise 1x1, norm, activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, style: _Style) -> None:
        super().__init__()
        self.dw = style.conv(inputs, inputs, 3, stride=stride, groups=inputs)
        self.dw_norm, self.dw_act = style.norm(inputs), style.activation()
        self.pw = style.conv(inputs, outputs, 1)
        self.pw_norm, self.pw_act = style.norm(outputs), style.activation()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H / stride, W / stride)`, rounded up."""
        x = self.dw_act(self.dw_norm(self.dw(x)))
        return self.pw_act(self.pw_norm(self.pw(x)))


class MobileNetV1Options(Options):
    """What differs between the MobileNetV1 of the paper and that of TensorFlow's weights (`mobilenet_v1_coral`)."""

    tf_same: bool = False
    """TensorFlow's padding: a stride of 2 pads right and bottom only."""
    relu6: bool = False
    """Activations are cut at 6."""
    folded: bool = False
    """No norm layers, but a bias in each convolution."""


def mobilenet_v1(
    *,
    width: float = 1.0,
    tf_same: bool = False,
    relu6: bool = False,
    folded: bool = False,
    weights: str | Path | None = None,
    outputs: Sequence[str] = STAGES,
) -> StagedBackbone:
    """MobileNetV1: C2..C5 of 128, 256, 512, 1024 channels at strides 4, 8, 16, 32.

    `width` scales the channels. `weights` is the path of a file: flyspeck's own, or one with keys `stem.…` and
    `blocks.N.dw.…` (then mostly `**CORAL`). `outputs` are the stages whose outputs are feature maps.
    """
    style = _Style(tf_same=tf_same, relu6=relu6, folded=folded)
    channels = max(1, round(32 * width))
    layers: list[nn.Module] = [ConvLayer(channels, style)]
    widths = [channels]
    for stride, depth in _SEPARABLE:
        outgoing = max(1, round(depth * width))
        layers.append(SeparableLayer(widths[-1], outgoing, stride, style))
        widths.append(outgoing)
    stages = {name: nn.Sequential(*layers[start:stop]) for name, (start, stop) in _SLICES.items()}
    specs = {name: FeatureSpec(widths[stop - 1], 2 ** (i + 1)) for i, (name, (_, stop)) in enumerate(_SLICES.items())}
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, weights, rename=rename_coral)
    return backbone


def rename_coral(key: str) -> str | None:
    """A key of the Coral files to ours: `blocks.0.dw.weight` to `stages.stem.1.dw.weight`; the classifier to None."""
    if key.startswith("fc."):
        return None
    if key.startswith("stem."):
        return f"stages.stem.0.conv.{key.removeprefix('stem.')}"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if match is None:
        return key
    layer = int(match[1]) + 1
    for name, (start, stop) in _SLICES.items():
        if start <= layer < stop:
            return f"stages.{name}.{layer - start}.{match[2]}"
    return key
