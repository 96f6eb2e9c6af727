"""Dual relation distillation, DRKD (Ni, Yang, Wen and Zhang, IJCAI 2023, arXiv:2302.05637): of pixels, and of objects.

* `pixels`: cells are embedded in a graph of a few nodes, a graph convolution relates the nodes, and what comes of it is laid back
  on the cells; the results of teacher and student are compared.
* `objects`: the features of all objects of an image, taken from the map by RoIAlign, give a matrix of their similarities;
  the matrices are compared, with a filter that stresses relations that are worth it.

The text of the paper could not be had beyond what it says of its parts; the forms here are chosen. The graph is that of GloRe
(Chen et al., 2019, arXiv:1811.12814), as "embeds pixel-wise features in the graph space and applies graph convolution": 16 nodes
of half the channels, a residual, one module for each network. Similarity is the cosine of features of 3x3 bins behind the
adapter, and the filter weighs a relation by the softmax over the other objects of the teacher's cosines: what the teacher sees
as alike counts most. Both are means, in the units of `base`. Of an image with more than 100 objects a hundred are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.roi_align import pyramid_roi_align
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise

MOST_OBJECTS = 100
BINS = 3
SHARPNESS = 0.5
"""Temperature of the filter."""


class RelationalTerms(PaperTerms):
    """The terms `pixels` and `objects` of each level."""

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], nodes: int = 16) -> None:
        super().__init__(pairs, wanted=wanted)
        self.adapters = pointwise(pairs, [p.name for p in pairs if self.wants(p.name, "pixels", "objects")])
        related = [p for p in pairs if self.wants(p.name, "pixels")]
        self.own_relations = nn.ModuleDict({p.name: PixelGraph(p.channels[1], nodes=nodes) for p in related})
        self.teacher_relations = nn.ModuleDict({p.name: PixelGraph(p.channels[1], nodes=nodes) for p in related})

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        found = {}
        boxes = [_some(scene.objects(i, levels[0].teacher.device)) for i in range(len(scene.targets))] if levels else []
        for level in levels:
            own = level.adapted(self.adapters[level.name])
            if self.wants(level.name, "pixels"):
                theirs = self.teacher_relations[level.name](level.teacher, level.valid)
                apart = self.own_relations[level.name](own, level.valid) - theirs
                found[f"pixels {level.name}"] = level.mean(apart.square().mean(1))
            if self.wants(level.name, "objects"):
                found[f"objects {level.name}"] = object_relations(own, level.teacher, boxes, scene.padded)
        return found


class PixelGraph(nn.Module):
    """x + W (B^T G), G = (I - A) V U: V are the nodes, B the share that each cell has in them. W begins at 0."""

    def __init__(self, channels: int, *, nodes: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.reduce, self.project = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, nodes, 1)
        self.adjacency = nn.Linear(nodes, nodes, bias=False)
        self.state = nn.Linear(inner, inner, bias=False)
        self.out = nn.Conv2d(inner, channels, 1)
        for weights in self.out.parameters():
            nn.init.zeros_(weights)

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """`(B, C, H, W)` with the relations of all cells added, 0 outside of `valid (B, H, W)`."""
        shown = valid[:, None]
        share = (self.project(maps) * shown).flatten(2)  # (B, nodes, cells)
        cells = valid.sum((1, 2))[:, None, None]
        graph = share @ self.reduce(maps).flatten(2).transpose(1, 2) / cells  # (B, nodes, inner)
        graph = torch.relu(self.state(graph - self.adjacency(graph.transpose(1, 2)).transpose(1, 2)))
        laid = (graph.transpose(1, 2) @ share).unflatten(2, maps.shape[-2:])
        return (maps + self.out(laid)) * shown


def object_relations(own: Tensor, teacher: Tensor, boxes: Sequence[Tensor], padded: tuple[int, int]) -> Tensor:
    """Mean over the objects of the batch of the filtered squared differences of their cosines; 0 where no image has two.

    Maps are `(B, C, H, W)`, `boxes` those of each image `(N_i, 4)` in px of the batch of size `padded` (H, W).
    """
    total, count = own.sum() * 0, 0
    mine, theirs = (_features(m, boxes, padded) for m in (own, teacher))
    counts = [len(b) for b in boxes]
    for here, there in zip(mine.split(counts), theirs.split(counts), strict=True):
        if len(here) < 2:
            continue
        wanted = there @ there.T
        weights = relation_filter(wanted)
        total = total + ((here @ here.T - wanted).square() * weights).sum()
        count += len(here)
    return total / max(count, 1)


def relation_filter(cosines: Tensor) -> Tensor:
    """Weights `(N, N)` of the relations of N >= 2 objects: the rows sum to 1, and an object's with itself counts nothing."""
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (cosines / SHARPNESS).masked_fill(itself, -torch.inf).softmax(1)


def _features(maps: Tensor, boxes: Sequence[Tensor], padded: tuple[int, int]) -> Tensor:
    """Features of unit length of all boxes, image by image: `(sum of N_i, C * bins)`."""
    scale = maps.new_tensor([maps.shape[-1] / padded[1], maps.shape[-2] / padded[0]]).repeat(2)
    regions = torch.cat(
        [torch.cat([torch.full((len(b), 1), float(i), device=b.device), b * scale], 1) for i, b in enumerate(boxes)]
    )
    level = torch.zeros(len(regions), dtype=torch.int64, device=maps.device)
    bins = pyramid_roi_align([maps], regions, level, BINS, 2, True)
    return F.normalize(bins.flatten(1), dim=1)


def _some(objects: Tensor) -> Tensor:
    """All of them, or a hundred."""
    if len(objects) <= MOST_OBJECTS:
        return objects
    return objects[torch.randperm(len(objects), device=objects.device)[:MOST_OBJECTS]]
