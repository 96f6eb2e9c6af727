"""Grid R-CNN: a box is found by nine points on it. Lu, Li, Yue, Li, Yan, CVPR 2019, arXiv:1811.12030.

A Faster R-CNN whose second stage has no offsets. One branch classifies a region; another draws a heat map for each point
of a 3 x 3 grid on the object (corners, middles of sides, centre). A map stands for the region enlarged twice, so that
points outside the region can be found; each side of the box is the mean of its three points, weighed by their heat.
Features of neighbouring points inform each other, over one step and over two (sec. 3.3).

From Grid R-CNN Plus (arXiv:1906.05688), as in mmdetection: a point's map covers only that half of the enlarged region in
which the point can lie (28 of 56 cells a side), and the branch works at 7x7. Losses are binary cross entropies over all
cells, weight 15, of the maps with and without the neighbours' features; a point is a cell and its four neighbours.

Deviations: regions smaller than 1.5 px learn too (the implementation leaves out those whose enlarged side is at most 3 px);
the final boxes are suppressed once more, since two regions may turn into one box; regions under ignore regions learn nothing.
A cell of the map is 1/28 of the region's side: for an 8 px region 0.3 px, finer than any annotation.

Numbers: the fusion-factor paper (arXiv:2011.02298, Tables 3 and 4) gives AP50_tiny 47.14 (tiny1 30.65) and MR50_tiny 87.96 on
TinyPerson; its Faster R-CNN has 47.35 (30.25) and 87.57.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorBuilder
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size, suppress_levels, suppress_regions
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.heads.faster_rcnn import TwoStageOptions
from flyspeck.models.heads.roi import RoIPool, assign_regions, sample_balanced
from flyspeck.models.heads.rpn import RPN, proposal_network
from flyspeck.models.layers import NormBuilder, init_normal
from flyspeck.models.losses import mean_over_processes
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress
from flyspeck.options import Count, Share
from flyspeck.types import FeatureSpec, Targets

SIDE = 3
POINTS = SIDE * SIDE
"""Point `SIDE * column + row` of the grid."""
POOLED = 14
WHOLE, HALF = 4 * POOLED, 2 * POOLED
"""Cells a side of the enlarged region, and of the part of it that a point's map covers."""
STARTS = (0, HALF // 2, HALF)
"""First cell of that part, for the points of the first, second and third column (or row)."""
NEIGHBOURS = tuple(
    tuple(
        SIDE * x + y
        for x, y in ((c - 1, r), (c, r - 1), (c, r + 1), (c + 1, r))
        if 0 <= x < SIDE and 0 <= y < SIDE
    )
    for c in range(SIDE)
    for r in range(SIDE)
)  # fmt: skip
_LOSS_WEIGHT = 15.0
NUM_GRIDS = 100
"""Detections that the grid branch is counted with (mmdetection's rule)."""


class RegionClassifier(nn.Module):
    """Two hidden layers on a pooled region, then class logits (background last)."""

    def __init__(self, inputs: int, *, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.class_logits = nn.Linear(hidden, num_classes + 1)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.class_logits, std=0.01)

    def forward(self, pooled: Tensor) -> Tensor:
        """`(P, C, S, S)` to logits `(P, K+1)`, float32."""
        x = torch.relu(self.fc1(pooled.flatten(1)))
        return self.class_logits(torch.relu(self.fc2(x))).float()


class _Exchange(nn.Module):
    """What each point takes from its neighbours: a 5x5 depthwise and a 1x1 convolution for every edge of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.Conv2d(channels, channels, 1)
                )
                for _ in neighbours
            )
            for neighbours in NEIGHBOURS
        )

    def forward(self, own: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
        """Nine maps `(P, C, H, W)` and the nine that are sent, to each map plus what its neighbours send."""
        return [
            own[point] + torch.stack([edge(others[n]) for edge, n in zip(edges, neighbours, strict=True)]).sum(0)  # type: ignore[arg-type]
            for point, (edges, neighbours) in enumerate(zip(self.edges, NEIGHBOURS, strict=True))
        ]


class GridBranch(nn.Module):
    """Pooled regions to a heat map for each point of the grid; `point_channels` for each of them."""

    def __init__(self, inputs: int, *, point_channels: int = 64, depth: int = 8) -> None:
        super().__init__()
        self.inputs = inputs
        width = POINTS * point_channels
        groups = 4 * POINTS if point_channels % 4 == 0 else POINTS
        layers: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(inputs if i == 0 else width, width, 3, stride=2 if i == 0 else 1, padding=1)
            layers += [conv, nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.once, self.twice = _Exchange(point_channels), _Exchange(point_channels)
        self.deconv1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=POINTS)
        self.norm = nn.GroupNorm(POINTS, width)
        self.deconv2 = nn.ConvTranspose2d(width, POINTS, 4, stride=2, padding=1, groups=POINTS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for deconv in (self.deconv1, self.deconv2):
            nn.init.normal_(deconv.weight, std=0.001)
            nn.init.zeros_(deconv.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.deconv2.bias, -math.log(0.99 / 0.01))  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> Tensor:
        """`(P, C, 14, 14)` to logits `(P, 9, 28, 28)`, float32."""
        return self._heat(self._informed(self.convs(pooled)))

    def both(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the same without the neighbours' features: both are trained."""
        x = self.convs(pooled)
        return self._heat(self._informed(x)), self._heat(x)

    def _informed(self, x: Tensor) -> Tensor:
        points = x.chunk(POINTS, 1)
        return torch.cat(self.twice(points, self.once(points, points)), 1)

    def _heat(self, x: Tensor) -> Tensor:
        return self.deconv2(torch.relu(self.norm(self.deconv1(x)))).float()


def grid_targets(regions: Tensor, objects: Tensor) -> Tensor:
    """`(P, 9, 28, 28)` of 0 and 1: the cells of each point of `objects (P, 4)` in the maps of `regions (P, 4)`.

    A point is its cell and the four beside it; one that lies outside its map has none.
    """
    origin, side = _enlarged(regions)
    share = torch.linspace(0, 1, SIDE, device=regions.device)[None, :, None]
    corner, size = objects[:, None, :2], (objects[:, 2:] - objects[:, :2])[:, None]
    # (P, 3, 2): the cells of the three columns' x and of the three rows' y
    cells = ((corner + share * size - origin[:, None]) / side[:, None] * WHOLE).floor()
    cells = cells - torch.tensor(STARTS, device=regions.device)[None, :, None]
    away = (torch.arange(HALF, device=regions.device) - cells[..., None]).square()  # (P, 3, 2, 28)
    across, down = away[:, :, 0], away[:, :, 1]
    distance = across[:, :, None, None, :] + down[:, None, :, :, None]  # column, row, y, x
    return (distance <= 1).to(regions.dtype).flatten(1, 2)


def grid_boxes(logits: Tensor, regions: Tensor) -> Tensor:
    """Boxes `(P, 4)` from logits `(P, 9, 28, 28)` over `regions (P, 4)`: the inverse of `grid_targets`.

    The hottest cell is that of the largest logit: of a sure point, neighbours are equal in (0, 1), and a last digit would choose.
    """
    hottest, place = logits.flatten(2).max(2)
    strength = hottest.sigmoid()
    starts = torch.tensor(STARTS, device=logits.device)
    x = (place % HALF).view(-1, SIDE, SIDE) + starts[None, :, None]
    y = place.div(HALF, rounding_mode="floor").view(-1, SIDE, SIDE) + starts[None, None, :]
    origin, side = _enlarged(regions)
    x = (x + 0.5) / WHOLE * side[:, :1, None] + origin[:, :1, None]
    y = (y + 0.5) / WHOLE * side[:, 1:, None] + origin[:, 1:, None]
    weight = strength.view(-1, SIDE, SIDE)
    edges = []
    for column, row in ((0, slice(None)), (slice(None), 0), (SIDE - 1, slice(None)), (slice(None), SIDE - 1)):
        values = x if isinstance(column, int) else y
        w = weight[:, column, row]
        edges.append((values[:, column, row] * w).sum(1) / w.sum(1).clamp(min=1e-12))
    return torch.stack(edges, 1)


def _enlarged(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Corner (x, y) and sides of the regions enlarged twice about their centres, each `(P, 2)`."""
    side = (regions[:, 2:] - regions[:, :2]).clamp(min=1e-3)
    return regions[:, :2] - side / 2, 2 * side


def jittered(regions: Tensor, size: tuple[int, int], amplitude: float = 0.15) -> Tensor:
    """`regions (P, 4)` moved and resized at random by up to `amplitude` of their sides, clipped to an image (H, W)."""
    noise = (torch.rand(len(regions), 4, device=regions.device) * 2 - 1) * amplitude
    sides = regions[:, 2:] - regions[:, :2]
    middle = box_algebra.center(regions) + noise[:, :2] * sides
    half = sides * (1 + noise[:, 2:]) / 2
    return box_algebra.clip(torch.cat([middle - half, middle + half], 1), *size)


class GridRCNNHead(Head):
    """Proposals, a classifier of regions, and a branch of grid points for those that hold an object."""

    def __init__(
        self,
        *,
        rpn: RPN,
        pool: RoIPool,
        classifier: RegionClassifier,
        grid_pool: RoIPool,
        grid: GridBranch,
        samples: int = 512,
        positive_share: float = 0.25,
        foreground: float = 0.5,
        max_grids: int = 192,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = classifier.num_classes
        self.rpn, self.pool, self.classifier = rpn, pool, classifier
        self.grid_pool, self.grid = grid_pool, grid
        self.samples, self.positive_share, self.foreground = samples, positive_share, foreground
        self.max_grids = max_grids
        self.suppression = suppression or Suppression()

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`rpn_objectness`, `rpn_box`, `classification` (cross entropy) and `grid`."""
        proposals, losses = self.rpn.propose(maps, padded, sizes, targets)
        regions, labels, positives, objects = [], [], [], []
        for found, target, size in zip(proposals, targets, sizes, strict=True):
            all_regions, assigned = assign_regions(
                found, target, foreground=self.foreground, background=self.foreground
            )
            rows = sample_balanced(assigned, count=self.samples, positive_share=self.positive_share)
            region, matched = all_regions[rows], assigned[rows]
            positive = matched >= 0
            label = torch.full_like(matched, self.num_classes)
            label[positive] = target.object_labels[matched[positive]]
            regions.append(region)
            labels.append(label)
            positives.append(jittered(region[positive], size))
            objects.append(target.objects[matched[positive]].to(region.dtype))
        label = torch.cat(labels)
        total = mean_over_processes(len(label), label.device)
        classification = F.cross_entropy(self.classifier(self.pool(maps, regions, padded)), label, reduction="sum")
        return {
            **losses,
            "classification": classification / total,
            "grid": self._grid_loss(maps, positives, objects, padded),
        }

    def _grid_loss(
        self, maps: Sequence[Tensor], regions: Sequence[Tensor], objects: Sequence[Tensor], padded: tuple[int, int]
    ) -> Tensor:
        """Of at most `max_grids` of the batch's positive regions, drawn at random."""
        counts = [len(r) for r in regions]
        kept = torch.randperm(sum(counts), device=maps[0].device)[: self.max_grids].sort().values
        image = torch.cat([torch.full((n,), i, device=kept.device) for i, n in enumerate(counts)])[kept]
        chosen, wanted = torch.cat(list(regions))[kept], torch.cat(list(objects))[kept]
        total = mean_over_processes(len(kept), kept.device) * POINTS * HALF * HALF
        if len(kept) == 0:
            # a gradient of zero: processes that find no object must still have one for every weight
            return torch.stack([p.sum() for p in self.grid.parameters()]).sum() * 0
        split = [chosen[image == i] for i in range(len(counts))]
        goal = grid_targets(chosen, wanted)
        pair = self.grid.both(self.grid_pool(maps, split, padded))
        loss = torch.stack([F.binary_cross_entropy_with_logits(heat, goal, reduction="sum") for heat in pair]).sum()
        return _LOSS_WEIGHT * loss / total

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        proposals, _ = self.rpn.propose(maps, padded, sizes)
        scores = self.classifier(self.pool(maps, proposals, padded)).softmax(-1)[:, : self.num_classes]
        coarse = []
        for regions, score, size in zip(proposals, scores.split([len(p) for p in proposals]), sizes, strict=True):
            row, label = torch.nonzero(score > self.suppression.score, as_tuple=True)
            coarse.append(suppress(regions[row], score[row, label], label, size, self.suppression))
        counts = [len(c.boxes) for c in coarse]
        if sum(counts) == 0:
            return coarse
        logits = self.grid(self.grid_pool(maps, [c.boxes for c in coarse], padded))
        boxes = grid_boxes(logits, torch.cat([c.boxes for c in coarse])).split(counts)
        return [self._final(c, refined, size) for c, refined, size in zip(coarse, boxes, sizes, strict=True)]

    def _final(self, coarse: RawDetections, boxes: Tensor, size: tuple[int, int]) -> RawDetections:
        if self.suppression.soft is not None:  # its scores were lowered already
            return RawDetections(box_algebra.clip(boxes, *size), coarse.scores, coarse.labels)
        return suppress(boxes, coarse.scores, coarse.labels, size, self.suppression)

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`. The grid branch runs on `max_detections` regions of each image, however few hold an object."""
        regions, alive = self.rpn.propose_batch(maps, size)
        batch, count = regions.shape[0], regions.shape[1]
        logits = self.classifier(self.pool.pool_batch(maps, regions, size))
        scores = logits.softmax(-1)[:, : self.num_classes].reshape(batch, count, -1) * alive[..., None]
        coarse = suppress_regions(regions[:, :, None, :], scores, self.suppression)
        regions, scores, labels = coarse.best(self.suppression.max_detections)
        logits = self.grid(self.grid_pool.pool_batch(maps, regions, size))
        boxes = grid_boxes(logits, regions.reshape(-1, 4)).reshape(batch, -1, 4)
        return suppress_levels([(box_algebra.clip(boxes, *size), scores, labels)], self.num_classes, self.suppression)

    def counted_rules(self) -> list[tuple[object, str]]:
        """See `Head.counted_rules`."""
        return [(self, "suppression"), (self.rpn, "test_rule")]

    def run_layers(self, maps: Sequence[Tensor], *, proposals: int) -> None:
        """See `Head.run_layers`."""
        self.rpn(maps)
        self.classifier(self.pool.blank(maps, proposals))
        self.grid(self.grid_pool.blank(maps, NUM_GRIDS))


class GridRCNNOptions(TwoStageOptions):
    """Options of Grid R-CNN; `pool.output` is the classifier's, the grid's is 14."""

    point_channels: int = Field(default=64, ge=1, le=4096)
    """Channels for each of the nine points: 8 on a laptop."""
    grid_depth: int = Field(default=8, ge=1, le=64)
    """Convolutions of the grid branch."""
    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a region learns it; below, it learns background."""
    max_grids: Count = 192
    """Regions of a batch that the grid branch learns from, at most."""


def grid_rcnn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    hidden: int = 1024,
    point_channels: int = 64,
    grid_depth: int = 8,
    norm: NormBuilder | None = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    anchors: AnchorBuilder | None = None,
    suppression: Suppression | None = None,
    proposals: int = 1000,
    train_proposals: int = 1000,
    rpn: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    **head: Any,
) -> Detector:
    """Grid R-CNN on `backbone`; with maps from C2 it is the adaptive one.

    Neck, `hidden`, `proposals`, `train_proposals`, `rpn` and `pool` as of `faster_rcnn`; `pool`'s output of 7 is the
    classifier's, the grid's is 14. `point_channels` (64; 8 on a laptop) and `grid_depth` are the width for each point and
    the number of convolutions of the grid branch. `head` goes to `GridRCNNHead`.
    """
    neck = neck or FPN(backbone.features, channels=channels, num_extra=num_extra, norm=norm, fusion=fusion)
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    strides = [f.stride for f in features[: len(features) - num_extra]]
    region_pool = RoIPool(strides, **(pool or {}))
    width = features[0].channels
    return Detector(
        backbone,
        neck,
        GridRCNNHead(
            rpn=proposal_network(
                features,
                anchors=anchors,
                norm=norm,
                proposals=proposals,
                train_proposals=train_proposals,
                options=rpn or {},
            ),
            pool=region_pool,
            classifier=RegionClassifier(width * region_pool.output**2, hidden=hidden, num_classes=len(classes)),
            grid_pool=RoIPool(strides, **{**(pool or {}), "output": POOLED}),
            grid=GridBranch(width, point_channels=point_channels, depth=grid_depth),
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )
