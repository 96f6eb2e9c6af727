"""Feature pyramid (Lin et al., 2017, arXiv:1612.03144) with one fusion factor per top-down edge (Gong et al., 2021,
arXiv:2011.02298):

    P'_5 = inner_5(C_5);    P'_i = inner_i(C_i) + alpha_i * upsample(P'_{i+1});    P_i = layer_i(P'_i)

The factor multiplies the upsampled inner map of the level above, before its 3x3 convolution, as the authors' code does.
There is no factor on the way to the extra levels (P6, P7), which come from the top by pooling or convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.layers import ConvNorm, NormBuilder
from flyspeck.types import FeatureSpec

Extra = Literal["pool", "conv_c5", "conv_p5"]


class FPN(nn.Module):
    """`features` of the backbone (finest first) to a pyramid of `len(features) + num_extra` levels of equal width.

    `extra` makes the levels above the last: `pool` subsamples the last level (P6 of Faster R-CNN); `conv_c5` and
    `conv_p5` apply 3x3 convolutions of stride 2, the first to the backbone's or the pyramid's last map (RetinaNet).
    `fusion` holds one factor per edge, finest edge first: (alpha_2^3, alpha_3^4, alpha_4^5); None means 1.
    """

    fusion: Tensor

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        channels: int = 256,
        num_extra: int = 1,
        extra: Extra = "pool",
        norm: NormBuilder | None = None,
        fusion: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        edges = len(features) - 1
        factors = [1.0] * edges if fusion is None else [float(f) for f in fusion]
        if len(factors) != edges:
            raise ValueError(
                f"a pyramid on {len(features)} maps has {edges} top-down edges, got {len(factors)} factors"
            )
        self.inner = nn.ModuleList(ConvNorm(f.channels, channels, 1, norm=norm) for f in features)
        self.layer = nn.ModuleList(ConvNorm(channels, channels, 3, norm=norm) for _ in features)
        self.register_buffer("fusion", torch.tensor(factors))
        self.extra: Extra = extra
        first = features[-1].channels if extra == "conv_c5" else channels
        self.extra_convs = nn.ModuleList(
            ConvNorm(first if i == 0 else channels, channels, 3, stride=2, norm=norm)
            for i in range(num_extra if extra != "pool" else 0)
        )
        self.num_extra = num_extra
        top = features[-1].stride
        self.features = (
            *(FeatureSpec(channels, f.stride) for f in features),
            *(FeatureSpec(channels, top * 2 ** (i + 1)) for i in range(num_extra)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first."""
        inner = [lateral(m) for lateral, m in zip(self.inner, maps, strict=True)]
        for i in range(len(inner) - 2, -1, -1):
            above = F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
            inner[i] = inner[i] + self.fusion[i].to(above.dtype) * above
        levels = [layer(m) for layer, m in zip(self.layer, inner, strict=True)]
        if self.extra == "pool":
            for _ in range(self.num_extra):
                levels.append(levels[-1][..., ::2, ::2])
        else:
            x = maps[-1] if self.extra == "conv_c5" else levels[-1]
            for i, conv in enumerate(self.extra_convs):
                x = conv(x if i == 0 else F.relu(x))
                levels.append(x)
        return levels
