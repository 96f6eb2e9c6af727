"""How many pixels of an image one cell of a map can see: the theoretical receptive field of a chain of stages.

Of a chain of convolutions and pools of kernel k, each adds (k - 1) x dilation x the stride so far (Araujo et al., Distill,
2019). The 1x1 projection beside a residual block adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.ops import DeformConv2d

from flyspeck.models.backbones.staged import StagedBackbone

RESNET50 = {4: 35, 8: 91, 16: 267, 32: 427, 64: 555, 128: 811}
"""Pixels by stride of ResNet-50 with extra levels: what RFLA takes for every backbone."""
_BESIDE = {"downsample", "beside"}
"""Names of 1x1 convolutions that run beside a block's own."""


def receptive_fields(backbone: StagedBackbone, strides: Sequence[float]) -> tuple[float, ...]:
    """Theoretical receptive field in pixels of each pyramid level of `strides`, finest first.

    Those of `backbone`'s own maps are computed where it is a plain chain; levels above them add twice their stride (a 3x3
    convolution at that stride, as RFLA counts). The pyramid's own paths are not counted, as RFLA does not. A backbone of
    parallel branches gets ResNet-50's field at each stride.
    """
    own = chain_fields(backbone)
    fields: list[float] = []
    for stride in strides:
        if own is not None and stride in own:
            fields.append(own[stride])
        elif own is not None and fields and stride > max(own):
            fields.append(fields[-1] + 2 * stride)
        else:
            fields.append(_like_resnet50(stride))
    return tuple(fields)


def fields_of_resnet50(strides: Sequence[float]) -> tuple[float, ...]:
    """ResNet-50's field in pixels at each of `strides`, for whatever backbone: RFLA's own way."""
    return tuple(float(_like_resnet50(stride)) for stride in strides)


def chain_fields(backbone: StagedBackbone) -> dict[float, float] | None:
    """Receptive field in pixels by stride of the backbone's maps, or None where it is no plain chain."""
    field, jump = 1.0, 1.0
    found: dict[float, float] = {}
    if not isinstance(backbone, StagedBackbone) or backbone.branches:
        return None
    for name, stage in backbone.stages.items():
        for path, layer in stage.named_modules():
            if not _BESIDE.isdisjoint(path.split(".")):
                continue  # beside the main path, with the same stride
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | DeformConv2d):
                kernel, stride, dilation = _geometry(layer)
                field += (kernel - 1) * dilation * jump
                jump *= stride
        if name in backbone.outputs:
            if jump != backbone.specs[name].stride:
                return None  # something in it runs beside something else
            found[backbone.specs[name].stride] = field
    return found


def _geometry(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | DeformConv2d) -> tuple[int, int, int]:
    """Kernel, stride and dilation along x."""
    dilation = 1 if isinstance(layer, nn.AvgPool2d) else _last(layer.dilation)
    return _last(layer.kernel_size), _last(layer.stride), dilation


def _last(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[-1]


def _like_resnet50(stride: float) -> float:
    """ResNet-50's field at `stride`; between and beyond its strides in proportion to the nearest."""
    nearest = min(RESNET50, key=lambda s: abs(s - stride))
    return RESNET50[nearest] * stride / nearest
