"""Feature pyramid (Lin et al., 2017, arXiv:1612.03144) with one fusion factor per top-down edge (Gong et al., WACV 2021,
arXiv:2011.02298, Eq. 1):

    P'_5 = inner_5(C_5);    P'_i = inner_i(C_i) + alpha_i * upsample(P'_{i+1});    P_i = layer_i(P'_i)

The factor multiplies the upsampled inner map of the level above, before its 3x3 convolution, as the authors' code does.
There is no factor on the way to the extra levels (P6, P7), which come from the top by pooling or convolution.

The paper's Table 1: fixed factors (1 is the plain pyramid), `one` learnable, `three` (one per edge) learnable, attention,
brute force (`flyspeck tune alpha`) and the statistic S-alpha (`flyspeck alpha`, then fixed). Deviations: learnable factors
start at 1, the paper does not say where; of its attention there is Fig. 6, "the network structure of self-attention", and the
sentence that its "amount of calculation cannot be negligible" (section 3.2), but neither a formula nor released code:
`self_attention` (`SelfAttention`, 9.2 G multiply-adds of 177 at 640x512) is an interpretation, and `gate` (`FusionGate`, next
to nothing) is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError, nearest
from flyspeck.models.layers import CellAttention, ChannelNorm, ConvNorm, NormBuilder
from flyspeck.types import FeatureSpec

Extra = Literal["pool", "conv_c5", "conv_p5"]
FusionMode = Literal["one", "three", "self_attention", "gate"]
"""Who finds the factors: one learnable number, one per edge (three, on four maps), self-attention within the maps, or a gate on
their averages."""
FUSION_MODES: tuple[str, ...] = get_args(FusionMode)


class SelfAttention(nn.Module):
    """The factor of one edge by self-attention over the cells of its two maps: the paper's Fig. 6, as far as it says.

    Both maps, the finer one at the size of the other, stand side by side in the channels. 1x1 convolutions make query and key
    of an eighth of the channels and a value of all; every cell takes the mean of all values, weighted by the softmax of its
    query with their keys; the average of that goes through one linear layer. The factor is twice a sigmoid, in (0, 2), and
    starts near 1: the plain pyramid. Work grows with the square of the number of cells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(2 * channels, inner, 1, bias=False) for _ in range(2))
        self.value = nn.Conv2d(2 * channels, channels, 1)
        self.attention = CellAttention()
        self.factor = nn.Linear(channels, 1)
        nn.init.normal_(self.factor.weight, std=0.01)
        nn.init.zeros_(self.factor.bias)

    def forward(self, lateral: Tensor, above: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` of the level and of the one above to factors `(B, 1, 1, 1)`."""
        # At a ratio of 2 this is the average of 2x2 cells.
        lateral = F.interpolate(lateral, size=above.shape[-2:], mode="bilinear", align_corners=False)
        both = torch.cat([lateral, above], 1)
        attended = self.attention(self.query(both), self.key(both), self.value(both))
        return 2 * torch.sigmoid(self.factor(attended.mean((2, 3))))[..., None, None]


class FusionGate(nn.Module):
    """The factor of one edge from what its two maps contain: global averages of both, two linear layers, sigmoid.

    The factor is twice the sigmoid, in (0, 2), and starts at 1: the plain pyramid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // 4)
        self.squeeze, self.excite = nn.Linear(2 * channels, hidden), nn.Linear(hidden, 1)
        nn.init.normal_(self.excite.weight, std=0.01)
        nn.init.zeros_(self.excite.bias)

    def forward(self, lateral: Tensor, above: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` of the level and of the one above to factors `(B, 1, 1, 1)`."""
        both = torch.cat([lateral.mean((2, 3)), above.mean((2, 3))], 1)
        return 2 * torch.sigmoid(self.excite(F.relu(self.squeeze(both))))[..., None, None]


class FPN(nn.Module):
    """`features` of the backbone (finest first) to a pyramid of `len(features) + num_extra` levels of equal width.

    `extra` makes the levels above the last: `pool` subsamples the last level (P6 of Faster R-CNN); `conv_c5` and
    `conv_p5` apply 3x3 convolutions of stride 2, the first to the backbone's or the pyramid's last map (RetinaNet).
    `fusion` holds one fixed factor per edge, finest edge first: (alpha_2^3, alpha_3^4, alpha_4^5); None means 1; a
    `FusionMode` learns them. `sigma` gives the convolutions the paper's sigma-power initialisation. `upsample` is how the map
    above is enlarged. `input_norm` first
    normalises each map over its channels: the residual stream of a transformer has no norm of its own at its end.
    """

    fusion: Tensor | None

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        channels: int = 256,
        num_extra: int = 1,
        extra: Extra = "pool",
        norm: NormBuilder | None = None,
        fusion: Sequence[float] | FusionMode | None = None,
        sigma: float | None = None,
        upsample: Literal["nearest", "bilinear"] = "nearest",
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        edges = len(features) - 1
        self._add_fusion(edges, channels, fusion)
        self.input_norms = nn.ModuleList(ChannelNorm(f.channels) for f in features) if input_norm else None
        self.inner = nn.ModuleList(ConvNorm(f.channels, channels, 1, norm=norm) for f in features)
        self.layer = nn.ModuleList(self._smoothing(channels, norm) for _ in features)
        self.extra: Extra = extra
        self.upsample = upsample
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
        if sigma is not None:
            sigma_power_(self, sigma)

    def _smoothing(self, channels: int, norm: NormBuilder | None) -> nn.Module:
        """What stands behind the sum of a level."""
        return ConvNorm(channels, channels, 3, norm=norm)

    def _add_fusion(self, edges: int, channels: int, fusion: Sequence[float] | FusionMode | None) -> None:
        """`self.fusion` is a buffer (fixed), a parameter of 1 or `edges` numbers (learnable), or None with `self.gates`."""
        self.gates = nn.ModuleList()
        if isinstance(fusion, str):
            if fusion not in FUSION_MODES:
                modes = [*FUSION_MODES, "a list of factors"]
                raise UserError(f"a pyramid has no fusion '{fusion}'", where="fusion", fix=nearest(fusion, modes))
            if fusion in ("self_attention", "gate"):
                kind = SelfAttention if fusion == "self_attention" else FusionGate
                self.gates.extend(kind(channels) for _ in range(edges))
                self.fusion = None
            else:
                self.fusion = nn.Parameter(torch.ones(1 if fusion == "one" else edges))
            return
        factors = [1.0] * edges if fusion is None else [float(f) for f in fusion]
        if len(factors) != edges:
            raise UserError(
                f"a pyramid on {edges + 1} maps has {edges} top-down edges, got {len(factors)} factors",
                where="fusion",
                fix="give one factor an edge, finest first",
            )
        self.register_buffer("fusion", torch.tensor(factors))

    def factor(self, edge: int, lateral: Tensor, above: Tensor) -> Tensor:
        """The fusion factor of an edge, 0 the finest: a number, or one per image `(B, 1, 1, 1)` of its two inner maps."""
        if self.fusion is None:
            return self.gates[edge](lateral, above)
        return self.fusion[edge if len(self.fusion) > 1 else 0]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first."""
        if self.input_norms is not None:
            maps = [norm(m) for norm, m in zip(self.input_norms, maps, strict=True)]
        inner = [lateral(m) for lateral, m in zip(self.inner, maps, strict=True)]
        for i in range(len(inner) - 2, -1, -1):
            above = F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode=self.upsample)
            inner[i] = inner[i] + self.factor(i, inner[i], inner[i + 1]).to(above.dtype) * above
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


@torch.no_grad()
def sigma_power_(fpn: FPN, sigma: float) -> FPN:
    """Scales the convolutions in place (sec. 3.3): `inner_i` by sigma^(i-2), the weight of `layer_i` by sigma^-(i-2).

    With factors of 1 the pyramid then computes what it would with factors of `sigma` and the unscaled weights. The bias of
    `inner_i` is scaled too, that of `layer_i` is not. Norm layers would undo the scale: a pyramid that has them is refused.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    for i, (lateral, layer) in enumerate(zip(fpn.inner, fpn.layer, strict=True)):
        if len(lateral) > 1:  # type: ignore[arg-type]
            raise ValueError("sigma-power initialisation needs a pyramid without norm layers")
        for parameter in lateral.parameters():
            parameter.mul_(sigma**i)
        layer[0].weight.div_(sigma**i)  # type: ignore[index]
    return fpn
