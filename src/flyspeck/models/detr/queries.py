"""Which queries a decoder begins with: proposals of every cell, and in training objects with noise.

The library's proposals are for objects of a photograph: their anchors begin at a twentieth of the image, 16 of 320 px, and cells
within a hundredth of the border are masked, so that what lies at the rim is never proposed. Here the anchor of a cell is a
square of some cells of its own map, and every cell of the image proposes. What shows padding only never does.

Denoising (DN-DETR, Li et al., 2022, arXiv:2203.01305; contrastive as in DINO, Zhang et al., 2022, arXiv:2203.03605): objects with
noise on label and box join the queries, which must give them back; with twice the noise they must give nothing. Of an image with
more objects than there are to be such queries some are drawn, so that memory has a bound that does not depend on the image; noise
that falls into an ignore region is not punished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flyspeck.models.assign import BACKGROUND, IGNORED, under_ignored
from flyspeck.types import Targets

ANCHOR_SCALES = (1.0, 3.0)
"""Cells that the side of a cell's anchor may have where it is fitted to objects, as of other detectors' anchors."""
EPS = 1e-5
"""How near 0 and 1 coordinates come: a hundredth of a pixel of 1000."""


@dataclass(frozen=True)
class QueryRule:
    """How many queries an image gets."""

    queries: int = 300


def logit(x: Tensor) -> Tensor:
    """The inverse of the sigmoid, of numbers from `EPS` to 1 - `EPS`."""
    x = x.clamp(EPS, 1 - EPS)
    return torch.log(x / (1 - x))


def anchor_logits(map_sizes: Sequence[tuple[Any, Any]], scale: float, like: Tensor) -> Tensor:
    """Anchors of all cells of maps of (rows, columns), `(A, 4)`: centre and sides as shares of the image, before a sigmoid.

    Each is a square of `scale` cells in the middle of its cell.
    """
    place = {"device": like.device, "dtype": torch.float32}
    anchors = []
    for rows, columns in map_sizes:
        y = ((torch.arange(rows, **place) + 0.5) / rows)[:, None].expand(rows, columns)
        x = ((torch.arange(columns, **place) + 0.5) / columns)[None].expand(rows, columns)
        high, wide = torch.full_like(y, scale) / rows, torch.full_like(x, scale) / columns
        anchors.append(torch.stack([x, y, wide, high], -1).reshape(-1, 4))
    return logit(torch.cat(anchors))


def cells_inside(
    map_sizes: Sequence[tuple[int, int]],
    padded: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
) -> Tensor | None:
    """`(B, A)` bool: whose middle lies within its image; None where nothing is padded."""
    if all(tuple(size) == tuple(padded) for size in sizes):
        return None
    found = []
    for height, width in sizes:
        parts = []
        for rows, columns in map_sizes:
            y = (torch.arange(rows, device=device) + 0.5) * (padded[0] / rows) < height
            x = (torch.arange(columns, device=device) + 0.5) * (padded[1] / columns) < width
            parts.append((y[:, None] & x[None]).flatten())
        found.append(torch.cat(parts))
    return torch.stack(found)


@dataclass(frozen=True)
class Noise:
    """How objects are changed to become queries."""

    queries: int = 100
    """Objects with noise that an image has at most; each comes a second time with twice the noise. 0: none."""
    labels: float = 0.5
    """Share of them that may have another label."""
    boxes: float = 1.0
    """Sides move by up to this share of half a side."""


@dataclass(frozen=True)
class Noised:
    """Objects with noise as D queries of each image, in groups that do not see each other."""

    labels: Tensor
    """(B, D) int64; K stands for no query."""
    boxes: Tensor
    """(B, D, 4) centre and sides as shares of the image, before a sigmoid."""
    rows: Tensor
    """(B, D): the image's object that it must give back, `BACKGROUND`, or `IGNORED`."""
    groups: int
    """How often each object comes."""

    def mask(self, queries: int) -> Tensor:
        """`(D + Q, D + Q)` to be added to attention: queries see no noise, and noise sees its own group and the queries."""
        count = self.rows.shape[1]
        group = torch.arange(count, device=self.rows.device) // (count // self.groups)
        mask = torch.zeros(count + queries, count + queries, device=self.rows.device)
        mask[count:, :count] = -torch.inf
        mask[:count, :count].masked_fill_(group[:, None] != group[None], -torch.inf)
        return mask


def noised(targets: Sequence[Targets], padded: tuple[int, int], num_classes: int, noise: Noise) -> Noised | None:
    """The objects of a batch of `padded` (H, W) with noise; None where there are none, or no noise is asked for."""
    chosen = [_some(len(target.objects), noise.queries, target.boxes.device) for target in targets]
    most = max((len(rows) for rows in chosen), default=0)
    if most == 0:
        return None
    groups = max(1, noise.queries // most)
    device, height, width = targets[0].boxes.device, *padded
    scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
    shape = (len(targets), groups, 2, most)  # of each group those to be given back, then those that are nothing
    labels = torch.full(shape, num_classes, device=device)
    corners = torch.zeros(*shape, 4, device=device)
    found = torch.full(shape, IGNORED, device=device)
    for image, (target, rows) in enumerate(zip(targets, chosen, strict=True)):
        here = slice(0, len(rows))
        labels[image, ..., here] = target.object_labels[rows]
        corners[image, ..., here, :] = target.objects[rows]
        found[image, :, 0, here], found[image, :, 1, here] = rows, BACKGROUND
    real = labels < num_classes
    # Drawn on the processor, so that every device trains alike.
    drawn, others = torch.rand(shape) < noise.labels / 2, torch.randint(0, num_classes, shape)
    labels = torch.where(real & drawn.to(device), others.to(device), labels)
    corners = _moved(corners, noise.boxes).clamp(min=0).minimum(scale)
    for image, target in enumerate(targets):
        under = under_ignored(corners[image].reshape(-1, 4), target.ignored).view(shape[1:])
        found[image][under & (found[image] == BACKGROUND)] = IGNORED
    low, high = corners[..., :2] / scale[:2], corners[..., 2:] / scale[:2]
    boxes = torch.cat([(low + high) / 2, (high - low).clamp(min=0)], -1)
    batch = len(targets)
    return Noised(labels.view(batch, -1), logit(boxes).view(batch, -1, 4), found.view(batch, -1), groups)


def _some(count: int, most: int, device: torch.device) -> Tensor:
    """All rows, or `most` of them drawn at random."""
    if count <= most:
        return torch.arange(count, device=device)
    return torch.randperm(count)[:most].to(device)


def _moved(corners: Tensor, share: float) -> Tensor:
    """Boxes `(B, G, 2, N, 4)` xyxy, each side moved by up to `share` of half a side; of the second half by once to twice."""
    half = (corners[..., 2:] - corners[..., :2]).repeat(1, 1, 1, 1, 2) / 2
    step = torch.rand(corners.shape)
    step[:, :, 1] += 1
    sign = torch.randint(0, 2, corners.shape) * 2 - 1
    moved = corners + (sign * step).to(corners.device) * half * share
    low, high = moved[..., :2], moved[..., 2:]
    return torch.cat([torch.minimum(low, high), torch.maximum(low, high)], -1)
