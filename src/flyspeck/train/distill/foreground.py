"""How much every cell of a level counts: objects against background, small objects against large ones.

A plain mean drowns tiny objects: 4 px are one cell of 5,120 at stride 4 in 320 x 256. Here the cells of objects have a set
share of the weight together, and objects have theirs one by one, whatever their areas (after the focal weights of Yang et
al., 2022, arXiv:2111.11837, who divide each object's cells by its area).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.types import Targets


def cell_weights(
    targets: Sequence[Targets],
    padded: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    map_size: tuple[int, int],
    *,
    foreground: float,
    size_power: float = 0.0,
    device: torch.device | None = None,
) -> Tensor:
    """`(B, H, W)` weights that sum to 1 in every image; cells outside of the true image have none.

    `padded` is (H, W) of the batch in pixels, `sizes` those of the images. Objects have the share `foreground`
    together: object n the part proportional to `size_n ** -size_power`, spread evenly over the cells that it touches. All
    other cells share the rest evenly. With `foreground` 0, or without objects, all cells of the image count alike.
    """
    return torch.stack(
        [
            _image_weights(t.objects.to(device), padded, size, map_size, foreground, size_power)
            for t, size in zip(targets, sizes, strict=True)
        ]
    )


def _image_weights(
    objects: Tensor,
    padded: tuple[int, int],
    size: tuple[int, int],
    map_size: tuple[int, int],
    foreground: float,
    size_power: float,
) -> Tensor:
    inside = valid_cells(padded, size, map_size, objects.device)
    if foreground == 0 or len(objects) == 0:
        return inside / inside.sum()
    rows, columns = touched(objects, padded, map_size)
    rows, columns = rows * inside.amax(1), columns * inside.amax(0)
    counts = rows.sum(1) * columns.sum(1)
    shares = box_algebra.size(objects).clamp(min=1e-3) ** -size_power * (counts > 0)
    if shares.sum() == 0:  # boxes in the padding only
        return inside / inside.sum()
    shares = shares / shares.sum()
    on_objects = (rows * (shares / counts.clamp(min=1))[:, None]).T @ columns
    background = inside * (on_objects == 0)
    if background.sum() == 0:
        return on_objects
    return foreground * on_objects + (1 - foreground) * background / background.sum()


def touched(boxes: Tensor, padded: tuple[int, int], map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows `(N, H)` and columns `(N, W)`, 1 or 0: a box touches the cells whose row and column it touches."""
    found = []
    for axis in (1, 0):
        count, pixels = map_size[1 - axis], padded[1 - axis]
        edges = torch.arange(count + 1, device=boxes.device) * (pixels / count)
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        found.append(((low < edges[1:]) & (high > edges[:-1])).to(torch.float32))
    return found[0], found[1]


def valid_cells(
    padded: tuple[int, int], size: tuple[int, int], map_size: tuple[int, int], device: torch.device
) -> Tensor:
    """`(H, W)` of 1 where a cell shows some of the true image of `size` (H, W), 0 in the padding."""
    spans = [
        (torch.arange(count, device=device) * (pixels / count) < true).to(torch.float32)
        for count, pixels, true in zip(map_size, padded, size, strict=True)
    ]
    return spans[0][:, None] * spans[1]
