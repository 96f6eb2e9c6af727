"""Anchors on a pyramid, derived from the maps that are really there: nothing about strides is typed twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flyspeck.types import FeatureSpec


def anchor_shapes(
    sizes: Sequence[float], *, ratios: Sequence[float] = (0.5, 1.0, 2.0), octaves: int = 1, rounded: bool = False
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Width and height of every anchor of every level: `sizes[l] * 2^(o/octaves)` for each octave step, at each ratio h/w.

    Ordered by ratio, then octave, as torchvision orders them. `rounded` gives whole sizes and corners (its convention too).
    """
    levels = []
    for base in sizes:
        scales = [base * 2 ** (o / octaves) for o in range(octaves)]
        scales = [float(int(s)) for s in scales] if rounded else scales
        shapes = [(s / r**0.5, s * r**0.5) for r in ratios for s in scales]
        if rounded:
            # Corners are halves of the shape, rounded: so the shape is twice the rounded half.
            shapes = [(2.0 * round(w / 2), 2.0 * round(h / 2)) for w, h in shapes]
        levels.append(tuple(shapes))
    return tuple(levels)


class AnchorGrid(nn.Module):
    """Anchors `(A, 4)` for maps of any shape, ordered by level, row, column, shape.

    `shapes[l]` lists (width, height) in pixels for level l; each level has equally many. A cell's anchors are centred
    `offset` cells into it: 0.5 is the cell's middle; 0 is torchvision's convention. The cell size is the true ratio
    of image to map, which differs from the nominal stride when a dynamic factor acted in between.
    """

    def __init__(self, shapes: Sequence[Sequence[tuple[float, float]]], *, offset: float = 0.5) -> None:
        super().__init__()
        self.shapes = tuple(tuple(level) for level in shapes)
        self.offset = offset
        counts = {len(level) for level in self.shapes}
        if len(counts) != 1:
            raise ValueError(f"every level needs the same number of anchors, got {[len(s) for s in self.shapes]}")
        self.num_per_cell = counts.pop()
        self._cache: dict[tuple, Tensor] = {}

    def forward(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
        """Anchors for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        if len(map_sizes) != len(self.shapes):
            raise ValueError(f"anchors for {len(self.shapes)} levels, maps of {len(map_sizes)}")
        key = (tuple(map_sizes), padded, device)
        if key not in self._cache:
            if len(self._cache) > 64:  # dynamic sizes must not fill the memory
                self._cache.clear()
            levels = zip(self.shapes, map_sizes, strict=True)
            self._cache[key] = torch.cat([self.level(shapes, size, padded, device) for shapes, size in levels])
        return self._cache[key]

    def levels_of(self, maps: Sequence[Tensor], size: tuple[Any, Any]) -> list[Tensor]:
        """Anchors `(A_l, 4)` of each of `maps`, seen from images of `size` (H, W), whose numbers may be symbols."""
        return self.levels([(m.shape[-2], m.shape[-1]) for m in maps], size, maps[0].device)

    def levels(self, map_sizes: Sequence[tuple[Any, Any]], size: tuple[Any, Any], device: torch.device) -> list[Tensor]:
        """`forward` by level, without keeping what was made; all sizes (H, W) may be symbols."""
        return [self.level(shapes, own, size, device) for shapes, own in zip(self.shapes, map_sizes, strict=True)]

    def level(
        self, shapes: Sequence, map_size: tuple[int, int], padded: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Anchors `(A_l, 4)` of one level, whose cells have `shapes`."""
        rows, columns = map_size
        y = (torch.arange(rows, device=device, dtype=torch.float32) + self.offset) * (padded[0] / rows)
        x = (torch.arange(columns, device=device, dtype=torch.float32) + self.offset) * (padded[1] / columns)
        center = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[:, :, None, :]
        half = torch.tensor(shapes, device=device)[None, None] / 2
        return torch.cat([center - half, center + half], -1).reshape(-1, 4)


AnchorBuilder = Callable[[Sequence[FeatureSpec]], AnchorGrid]
"""What a detector's builder takes: a neck's feature specs to the anchors on them."""


def strided_anchors(
    features: Sequence[FeatureSpec],
    *,
    base_scale: float = 2.0,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    octaves: int = 1,
    torchvision: bool = False,
) -> AnchorGrid:
    """Anchors of `base_scale` x stride at each level: 8, 16, 32, 64, 128 px on strides 4-64.

    With `torchvision` their sizes and corners are whole and they are centred on the corners of the cells, as that library's.
    """
    sizes = [base_scale * f.stride for f in features]
    shapes = anchor_shapes(sizes, ratios=ratios, octaves=octaves, rounded=torchvision)
    return AnchorGrid(shapes, offset=0.0 if torchvision else 0.5)
