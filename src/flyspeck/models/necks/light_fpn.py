"""A feature pyramid for small detectors: FPN (necks.fpn) with one light block on each level in place of its convolution.

The top-down edges, their fusion factors (S-alpha too) and the extra levels are FPN's own. Behind the sum of a level stands one
re-parameterised 3x3 convolution with a ReLU (models.reparameterised). There is no way back up: for objects of 2 to 32 px what a
fine map needs from a coarse one is context, and a coarse map needs nothing of a fine one.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from flyspeck.models.layers import NormBuilder
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.reparameterised import light_block


class LightFPN(FPN):
    """See the head of this module; arguments as of `FPN`. Extra levels are convolved from the pyramid's last map."""

    def _smoothing(self, channels: int, norm: NormBuilder | None) -> nn.Module:
        return light_block("rep", channels, channels, norm=norm)


light_fpn = partial(LightFPN, extra="conv_p5")
