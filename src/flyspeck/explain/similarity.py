"""How alike two models see the same images, level by level, and how far each looks at the objects.

Alike: linear CKA (Kornblith et al., 2019, arXiv:1905.00414) of the cells of two maps, in [0, 1]. It needs no adapter where
the models' channels differ, and no training: it does not change if channels are rotated or scaled together. It is computed
over the cells of all images at once, for all cells and, since tiny objects are few of them, for the cells under objects.
Where fewer cells are compared than a map has channels, any two maps look alike: coarse levels need more images.

Looking at objects: the share of a level's attention (mean squares over the channels) that lies in cells under objects, over
the share of the area that they are; 1 is what a map without any preference has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyspeck.explain.maps import level_names
from flyspeck.models.detector import Detector
from flyspeck.train.distill.levels import resized
from flyspeck.types import ImageBatch

PER_IMAGE = 256
"""Cells of an image and level that are compared at most: all images weigh alike, coarse levels give all they have."""


@dataclass(frozen=True)
class View:
    """One image as one model takes it, and where its objects lie there."""

    images: ImageBatch
    boxes: np.ndarray
    """(N, 4) in the frame of `images`."""


@dataclass(frozen=True)
class LevelSimilarity:
    """Two models on one level."""

    level: str
    cka: float
    """Over all cells."""
    cells: int
    """How many were compared."""
    cka_objects: float
    """Over the cells under objects; NaN where fewer than ten were seen."""
    object_cells: int


@dataclass
class _Cells:
    """Cells of one level that were gathered: `(n, C)` of each model, and which lie under objects."""

    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    under: list[Tensor] = field(default_factory=list)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of `x (n, C)` and `y (n, D)`: |y'x|^2 / (|x'x| |y'y|) of the centred columns; NaN if one never varies."""
    x, y = (m.double() - m.double().mean(0) for m in (x, y))
    shared, own, other = (x.T @ y).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    scale = float(own * other)
    return float(shared) / scale if scale > 0 else float("nan")


def object_cover(boxes: np.ndarray, padded: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """`(h, w)` in [0, 1]: the share of each of `cells` (h, w) of an image of `padded` (H, W) px that lies under boxes."""
    mask = torch.zeros(padded)
    height, width = padded
    for x1, y1, x2, y2 in boxes.tolist():
        # whole pixels, at least one: a box of a fraction of a pixel is still somewhere
        left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
        mask[top : max(top + 1, round(y2)), left : max(left + 1, round(x2))] = 1
    return F.adaptive_avg_pool2d(mask[None, None], cells)[0, 0]


@torch.no_grad()
def compare_levels(
    first: Detector, second: Detector, views: Iterable[tuple[View, View]], *, seed: int = 0
) -> list[LevelSimilarity]:
    """CKA of every level that both models have (the same stride in pixels of the file), finest first.

    `views` are the same images as each model takes them; a model that sees them enlarged is compared where it sees the
    same part of the image in a cell: its map is brought to the other's size. Levels are paired by the size of their maps.
    """
    gathered: dict[str, _Cells] = {}
    generator = torch.Generator().manual_seed(seed)
    for one, other in views:
        maps, others = first.eval().pyramid(one.images), second.eval().pyramid(other.images)
        for name, i, j in pair_levels(first, second, one, other):
            a, b = maps[i], resized(others[j], (maps[i].shape[-2], maps[i].shape[-1]))
            cover = object_cover(one.boxes, _size(one.images), (a.shape[-2], a.shape[-1])).flatten()
            rows = torch.randperm(cover.numel(), generator=generator)[:PER_IMAGE]
            # objects first: they are few, and a random draw would miss most of them
            under = torch.nonzero(cover > 0).squeeze(1)[:PER_IMAGE]
            cells = gathered.setdefault(name, _Cells())
            for store, m in ((cells.first, a), (cells.second, b)):
                flat = m[0].flatten(1).T.float().cpu()
                store.append(torch.cat([flat[rows], flat[under]]))
            cells.under.append(torch.cat([torch.zeros(len(rows)), torch.ones(len(under))]).bool())
    return [_level(name, cells) for name, cells in gathered.items()]


def _level(name: str, cells: _Cells) -> LevelSimilarity:
    x, y, under = torch.cat(cells.first), torch.cat(cells.second), torch.cat(cells.under)
    count = int(under.sum())
    return LevelSimilarity(
        name,
        linear_cka(x[~under], y[~under]),
        int((~under).sum()),
        linear_cka(x[under], y[under]) if count >= 10 else float("nan"),
        count,
    )


def pair_levels(first: Detector, second: Detector, one: View, other: View) -> list[tuple[str, int, int]]:
    """(name in the first model, its index, the second's index) of levels of one stride in pixels of the file."""
    ratio = _size(other.images)[0] / _size(one.images)[0]
    pairs = []
    for i, (name, spec) in enumerate(zip(level_names(first.features), first.features, strict=True)):
        for j, theirs in enumerate(second.features):
            if abs(theirs.stride / ratio / spec.stride - 1) < 0.1:
                pairs.append((name, i, j))
                break
    return pairs


@torch.no_grad()
def attention_on_objects(detector: Detector, views: Sequence[View]) -> dict[str, float]:
    """Level to the attention on cells under objects over what chance gives: means over the images that have objects."""
    ratios: dict[str, list[float]] = {name: [] for name in level_names(detector.features)}
    for view in views:
        if len(view.boxes) == 0:
            continue
        maps = detector.eval().pyramid(view.images)
        for name, m in zip(ratios, maps, strict=True):
            energy = m[0].float().square().mean(0).cpu()
            cover = object_cover(view.boxes, _size(view.images), (energy.shape[0], energy.shape[1]))
            chance = float(cover.mean() * energy.mean())
            if chance > 0:
                ratios[name].append(float((energy * cover).mean()) / chance)
    return {name: float(np.mean(values)) if values else float("nan") for name, values in ratios.items()}


def _size(images: ImageBatch) -> tuple[int, int]:
    return int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
