"""HRFPN: a pyramid for networks that keep their resolution. Sun et al., "High-Resolution Representations for Labeling
Pixels and Regions", arXiv:1904.04514, section 3.3 (HRNetV2p).

All maps are upsampled to the finest, concatenated and mixed by a 1x1 convolution; average pools of it are the levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.layers import ConvNorm, NormBuilder
from flyspeck.types import FeatureSpec


class HRFPN(nn.Module):
    """`features` of the backbone (finest first) to `len(features) + num_extra` levels, each half the one before."""

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        channels: int = 256,
        num_extra: int = 1,
        norm: NormBuilder | None = None,
    ) -> None:
        super().__init__()
        levels = len(features) + num_extra
        self.reduce = ConvNorm(sum(f.channels for f in features), channels, 1, norm=norm)
        self.layer = nn.ModuleList(ConvNorm(channels, channels, 3, norm=norm) for _ in range(levels))
        self.features = tuple(FeatureSpec(channels, features[0].stride * 2**i) for i in range(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first; odd sizes are rounded up on the way."""
        size = maps[0].shape[-2:]
        upsampled = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:]]
        mixed = self.reduce(torch.cat([maps[0], *upsampled], 1))
        levels = [mixed]
        for i in range(1, len(self.layer)):
            levels.append(F.avg_pool2d(mixed, kernel_size=2**i, stride=2**i, ceil_mode=True))
        return [layer(level) for layer, level in zip(self.layer, levels, strict=True)]
