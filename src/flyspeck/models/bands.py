"""A backbone for images of other than three bands: its first convolution widened by one stated rule.

Of the weights `W[:, r], W[:, g], W[:, b]` that three bands had, with `C` bands:

* three or more: the first three keep their own, each further band takes their mean; all are multiplied by `3 / C`;
* two: each takes the mean, multiplied by `3 / 2`.

Their sum is the same either way, so that an image of the same value in all bands gives the same activation as before, whatever
`C` is, and pretrained weights begin where they were. Without pretrained weights the new ones are drawn anew, normally distributed
with `sqrt(3 / C)` times the deviation of those before: activations then have the same variance on independent bands.

One band needs none of this: it is normalised by its own statistics and repeated (`PixelNorm`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError

RGB = 3


def input_conv(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and layer of the convolution that takes the image: the backbone's first. Raises UserError where it has none."""
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer
    raise UserError(
        f"{type(backbone).__name__} has no convolution that takes the image, so that its bands are three",
        where="model.name",
        fix="set data.channels to 1 or 3, or choose another backbone",
    )


def input_bands(backbone: nn.Module) -> int:
    """Bands of the tensor that a backbone takes; 3 where it does not begin with a convolution."""
    try:
        return input_conv(backbone)[1].in_channels
    except UserError:
        return RGB


def widen(backbone: nn.Module, bands: int, *, pretrained: bool) -> None:
    """Lets `backbone`, made for three bands, take `bands` (two or more), in place; see the head of this module.

    Raises UserError where its first convolution does not take three plain bands.
    """
    if bands == RGB:
        return
    name, conv = input_conv(backbone)
    if conv.in_channels != RGB or conv.groups != 1:
        raise UserError(
            f"the first convolution of {type(backbone).__name__} ('{name}') takes {conv.in_channels} bands in"
            f" {conv.groups} group(s), and cannot be widened to {bands}",
            where="model.name",
            fix="set data.channels to 1 or 3, or choose another backbone",
        )
    old = conv.weight
    with torch.no_grad():
        new = widened(old, bands) if pretrained else _drawn(old, bands)
    conv.weight = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
    conv.in_channels = bands


def widened(weight: Tensor, bands: int) -> Tensor:
    """`(out, 3, k, k)` weights for `bands`, two or more, by the rule at the head of this module."""
    mean = weight.mean(1, keepdim=True)
    if bands < RGB:
        return mean.expand(-1, bands, -1, -1) * (RGB / bands)
    return torch.cat([weight, mean.expand(-1, bands - RGB, -1, -1)], dim=1) * (RGB / bands)


def _drawn(weight: Tensor, bands: int) -> Tensor:
    new = weight.new_empty(weight.shape[0], bands, *weight.shape[2:])
    if weight.is_meta:
        return new
    return new.normal_(0.0, float(weight.std()) * math.sqrt(RGB / bands))
