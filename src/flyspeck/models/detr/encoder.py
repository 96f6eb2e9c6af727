"""The hybrid encoder of RT-DETR and D-FINE as a neck (Zhao et al., 2023, arXiv:2304.08069): any backbone's maps to a pyramid.

Each map goes through a 1x1 convolution; within the coarsest map every cell attends to all others; then the maps are fused from
the coarsest to the finest and back. The blocks are the library's (`detr.library`), and so is which goes with which; the walk
through them is written here, so that sides need not be powers of two of each other (dynamic pooling), positions are computed
for any size, and a graph can be traced with free sizes. At a stride of 4 there is no attention within a map, whose cost grows
with the square of its cells: there the decoder samples a few points for each query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.detr.library import Kind, Shape, begin_anew, build_encoder
from flyspeck.models.layers import ConvNorm, NormBuilder
from flyspeck.types import FeatureSpec

_TEMPERATURE = 10_000.0


class CellMixing(nn.Module):
    """Layers of self-attention over the cells of one map `(B, C, H, W)`, with sinusoids of row and column as positions."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, m: Tensor) -> Tensor:
        """To the same shape."""
        batch, channels, height, width = m.shape
        positions = cell_positions(height, width, channels, m)
        cells = m.flatten(2).transpose(1, 2)
        for layer in self.layers:
            cells = layer(cells, attention_mask=None, spatial_position_embeddings=positions)
        return cells.transpose(1, 2).reshape(batch, channels, height, width)

    def multiply_adds(self, m: Tensor) -> int:
        """Of the products of queries, keys and values of a map `(B, C, H, W)`, which no layer does."""
        cells = m.shape[-2] * m.shape[-1]
        return len(self.layers) * m.shape[0] * 2 * cells**2 * m.shape[1]


def cell_positions(height: Any, width: Any, channels: int, like: Tensor) -> Tensor:
    """`(1, H*W, C)`: sine and cosine of the row, then of the column, at a quarter of the channels each, float32."""
    place = {"device": like.device, "dtype": torch.float32}
    steps = torch.arange(channels // 4, **place) / (channels // 4)
    rates = 1.0 / _TEMPERATURE**steps
    rows = torch.arange(height, **place)[:, None] * rates
    columns = torch.arange(width, **place)[:, None] * rates
    of_rows = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(height, width, channels // 2)
    of_columns = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, width, channels // 2)
    return torch.cat([of_rows, of_columns], -1).reshape(1, -1, channels).to(like.dtype)


class HybridEncoder(nn.Module):
    """See the head of this module. `num_extra` maps above the backbone's are convolved from its last."""

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        *,
        kind: Kind,
        channels: int,
        num_extra: int = 0,
        heads: int = 8,
        ffn: int | None = None,
        encoder_layers: int = 1,
        expansion: float = 1.0,
        depth: float = 1.0,
        norm: NormBuilder | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        strides = [spec.stride for spec in inputs]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(num_extra)]
        self.features = tuple(FeatureSpec(channels, stride) for stride in strides)
        shape = Shape(
            channels, len(strides), heads=heads, ffn=ffn or 4 * channels, encoder_layers=encoder_layers,
            expansion=expansion, depth=depth,
        )  # fmt: skip
        library: Any = build_encoder(kind, shape, norm=norm)
        self.input_proj = nn.ModuleList(ConvNorm(spec.channels, channels, 1, norm=norm) for spec in inputs)
        self.extra = nn.ModuleList(ConvNorm(channels, channels, 3, stride=2, norm=norm) for _ in range(num_extra))
        for own in (self.input_proj, self.extra):
            begin_anew(own)
        self.mixing = CellMixing(library.aifi[0].layers) if encoder_layers else None
        self.lateral_convs, self.fpn_blocks = library.lateral_convs, library.fpn_blocks
        self.downsample_convs, self.pan_blocks = library.downsample_convs, library.pan_blocks

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps `(B, C_l, H_l, W_l)`, finest first, to maps `(B, C, H_l, W_l)`, and those of the extra levels."""
        levels = [project(m) for project, m in zip(self.input_proj, maps, strict=True)]
        for convolve in self.extra:
            levels.append(convolve(levels[-1]))
        if self.mixing is not None:
            levels[-1] = self.mixing(levels[-1])
        for i, (lateral, block) in enumerate(zip(self.lateral_convs, self.fpn_blocks, strict=True)):
            place = len(levels) - 1 - i
            levels[place] = lateral(levels[place])
            finer = levels[place - 1]
            above = F.interpolate(levels[place], size=finer.shape[-2:], mode="nearest")
            levels[place - 1] = block(torch.cat([above, finer], 1))
        for place, (down, block) in enumerate(zip(self.downsample_convs, self.pan_blocks, strict=True)):
            coarser, halved = levels[place + 1], down(levels[place])
            if torch.compiler.is_exporting() or halved.shape != coarser.shape:  # a graph's sizes cannot be compared
                halved = F.interpolate(halved, size=coarser.shape[-2:], mode="nearest")
            levels[place + 1] = block(torch.cat([halved, coarser], 1))
        return levels
