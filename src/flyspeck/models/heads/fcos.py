"""FCOS: one box per point, no anchors. Tian et al., ICCV 2019, arXiv:1904.01355, with its later improvements.

"Adap-FCOS" of the tiny-object papers: the pyramid starts at C2 (strides 4-64) and the ranges of the sizes follow:
(-1, 16], (16, 32], (32, 64], (64, 128], (128, inf). Centerness sits on the box branch, boxes are regressed in units of
the stride, points are sampled around the centre, the box loss is GIoU, the head has no norm layers.

Which object a point learns: the smallest that contains it. Implementations write this as the maximum of `1e8 - area` in
float32, whose step is 8 there: areas of 16 and 20 px² tie, and the first in the file wins. Here it is an argmin over the
areas themselves; only equal areas leave the choice to the order of the objects.

Deviations, all by argument: points lie in the middle of their cells by the true ratio of image to map (`offset`); a
level's range is `(low, high]`, so that no distance belongs to two levels or to none; the score is the geometric mean of
class score and centerness (`geometric_mean`; the first version multiplied them); points inside ignore regions learn
nothing; the bias of the distances starts at 1 stride, because ReLU is dead where all of them start negative.

For objects smaller than a cell, which often contain no point at all (at stride 4, half of those of 2-3 px and a third of
those of 3-4 px), there are two options beyond the paper: `reach` lets the nearest points learn an object that they lie
beside (a predicted box then touches its point), and `quality="iou"` weights scores by a predicted IoU (as Wu et al.,
arXiv:1912.05992) in place of the centerness, which is 0 there.

Numbers (640x512, one class, ResNet-50, P2-P6 with P6 convolved from P5): 174.74 GFLOPs; with BH-ResNet50 174.95.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError, nearest
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.base import AssigningPart, Priors
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import (
    BatchDetections,
    Size,
    flatten_level,
    level_candidates,
    level_points,
    suppress_levels,
    take_rows,
)
from flyspeck.models.detector import DenseOutputs, Detector, Head, PixelNorm
from flyspeck.models.layers import ConvTower, NeckNorm, NormBuilder, flatten_levels, init_normal, norm_of_neck
from flyspeck.models.losses import focal_loss, mean_over_processes
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Depth, Share, Thresholds
from flyspeck.types import FeatureSpec, Targets

# Largest block of (object, point) pairs held at once.
_BLOCK = 1 << 20
QUALITIES = ("centerness", "iou")


def size_ranges(strides: Sequence[float], *, scale: float = 4.0) -> tuple[tuple[float, float], ...]:
    """The distances `(low, high]` in pixels that each level regresses: up to `scale` strides, the last without end.

    4 gives Adap-FCOS's 16, 32, 64, 128 on strides 4-64; 8 the original's 64, 128, 256, 512 on strides 8-128.
    """
    bounds = [-1.0, *(scale * s for s in strides[:-1]), math.inf]
    return tuple((bounds[i], bounds[i + 1]) for i in range(len(strides)))


def grid_points(
    map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device, *, offset: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Points `(A, 2)` (x, y) of all levels and the true size `(A, 2)` (x, y) of their cells, in pixels of the image."""
    points, cells = [], []
    for rows, columns in map_sizes:
        cell = torch.tensor([padded[1] / columns, padded[0] / rows], device=device)
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        points.append((torch.stack([x, y], -1).reshape(-1, 2) + offset) * cell)
        cells.append(cell.expand(rows * columns, 2))
    return torch.cat(points), torch.cat(cells)


def assign_points(
    points: Tensor,
    cells: Tensor,
    ranges: Tensor,
    objects: Tensor,
    ignored: Tensor,
    *,
    radius: float = 1.5,
    reach: float = 0.0,
) -> Tensor:
    """The row of `objects (N, 4)` that each point learns `(A,)`, `BACKGROUND`, or `IGNORED` inside an ignore region.

    A point claims an object that contains it, whose centre is less than `radius` cells away along both axes, and whose
    farthest side is at a distance in the point's range `(low, high]` (`ranges (A, 2)`); of several, the smallest. One whose
    centre is at most `reach` cells away along both axes counts as containing it: from 0.5 on, each has a point.
    """
    # Smallest first, in double precision, stable: of the ranks that claim a point, the least keeps it.
    order = torch.argsort(box_algebra.area(objects.double()), stable=True)
    rank = torch.full((len(points),), len(objects), dtype=torch.int64, device=points.device)
    step = max(1, _BLOCK // max(len(points), 1))
    for start in range(0, len(objects), step):
        row, point = _claims(points, cells, ranges, objects[order[start : start + step]], radius, reach)
        rank.scatter_reduce_(0, point, start + row, "amin")
    assigned = torch.cat([order, order.new_tensor([BACKGROUND])])[rank]
    if len(ignored):
        x, y = points[:, 0, None], points[:, 1, None]
        inside = (x > ignored[:, 0]) & (x < ignored[:, 2]) & (y > ignored[:, 1]) & (y < ignored[:, 3])
        assigned[(assigned == BACKGROUND) & inside.any(1)] = IGNORED
    return assigned


def _claims(
    points: Tensor, cells: Tensor, ranges: Tensor, objects: Tensor, radius: float, reach: float
) -> tuple[Tensor, Tensor]:
    """Pairs (object, point), each `(P,)`, of which the point may learn the object."""
    center = box_algebra.center(objects)
    # Every pair is asked only for what nearly all pairs fail.
    near = (points[:, 0] - center[:, 0, None]).abs() < radius * cells[:, 0]
    near &= (points[:, 1] - center[:, 1, None]).abs() < radius * cells[:, 1]
    row, point = torch.nonzero(near, as_tuple=True)
    sides = side_distances(points[point], objects[row])
    claims = sides.amin(1) > 0
    if reach > 0:
        claims |= ((points[point] - center[row]).abs() <= reach * cells[point]).all(1)
    far = sides.amax(1)
    claims &= (far > ranges[point, 0]) & (far <= ranges[point, 1])
    return row[claims], point[claims]


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances `(..., 4)` (left, top, right, bottom) from points `(..., 2)` to the sides of boxes `(..., 4)`."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def centerness(distances: Tensor) -> Tensor:
    """How central a point lies in its box, in [0, 1], from its positive `distances (N, 4)` (eq. 3)."""
    across, down = distances[:, 0::2], distances[:, 1::2]
    return ((across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))).sqrt()


class FCOSHead(Head):
    """Two towers on every level: class scores; four distances and a centerness.

    Which point learns which object is decided by centre sampling (`radius`, `range_scale`), or by `assigner`: then the
    prior of a point is a square of `prior_scale` cells around it, and a point may learn an object that it lies beside. Its
    centerness is then that of a point one hundredth of a cell inside, and its distances to the far sides count.

    `quality` is what scores are weighted by: the centerness, or the predicted IoU.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        depth: int = 4,
        norm: NormBuilder | None = None,
        radius: float = 1.5,
        reach: float = 0.0,
        range_scale: float = 4.0,
        offset: float = 0.5,
        geometric_mean: bool = True,
        centerness_weighted: bool = True,
        quality: Literal["centerness", "iou"] = "centerness",
        assigner: AssignerBuilder | None = None,
        foreground: float = 0.5,
        background: float = 0.4,
        prior_scale: float = 2.0,
        tower_bias: bool = False,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.assigner = None if assigner is None else assigner(foreground=foreground, background=background)
        self.prior_scale = prior_scale
        self.num_classes = num_classes
        if quality not in QUALITIES:
            raise UserError(f"'{quality}' is no quality", where="model.head.quality", fix=nearest(quality, QUALITIES))
        self.radius, self.reach, self.offset = radius, reach, offset
        self.quality = quality
        self.geometric_mean, self.centerness_weighted = geometric_mean, centerness_weighted
        self.ranges = size_ranges([f.stride for f in features], scale=range_scale)
        self.suppression = suppression or Suppression(iou=0.6, pre_nms=2000, max_detections=1000)
        channels = features[0].channels
        self.class_tower = ConvTower(channels, depth, levels=len(features), norm=norm, bias=tower_bias)
        self.box_tower = ConvTower(channels, depth, levels=len(features), norm=norm, bias=tower_bias)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, 1, 1)
        self.box_distances = nn.Conv2d(channels, 4, 3, 1, 1)
        self.centerness = nn.Conv2d(channels, 1, 3, 1, 1)
        self.scales = nn.Parameter(torch.ones(len(features)))
        for conv in (self.class_logits, self.box_distances, self.centerness):
            init_normal(conv)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]
        nn.init.ones_(self.box_distances.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class logits `(B, K, H_l, W_l)`, distances in cells `(B, 4, …)` ≥ 0 and quality logits `(B, 1, …)` per level."""
        logits, distances, central = [], [], []
        for i, m in enumerate(maps):
            logits.append(self.class_logits(self.class_tower(m, i)))
            x = self.box_tower(m, i)
            distances.append(F.relu(self.box_distances(x) * self.scales[i]))
            central.append(self.centerness(x))
        return logits, distances, central

    def points(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Any:
        """Points `(A, 2)`, cells `(A, 2)` and ranges `(A, 2)` of all levels, in pixels."""
        points, cells = grid_points(map_sizes, padded, device, offset=self.offset)
        counts = torch.tensor([h * w for h, w in map_sizes], device=device)
        ranges = torch.tensor(self.ranges, device=device).repeat_interleave(counts, 0)
        return points, cells, ranges

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` (focal), `box` (GIoU) and `centerness` (or `iou`), over the positive points of the batch."""
        logits, distances, central = self(maps)
        flat_logits, flat_distances = flatten_levels(logits, self.num_classes), flatten_levels(distances, 4)
        flat_central = flatten_levels(central, 1)[..., 0]
        map_sizes = [m.shape[-2:] for m in logits]
        points, cells, ranges = self.points(map_sizes, padded, flat_logits.device)
        assigned = self.assign(points, cells, ranges, [h * w for h, w in map_sizes], targets)
        image, row = torch.nonzero(assigned >= 0, as_tuple=True)
        counts = [len(t.objects) for t in targets]
        first = torch.tensor([0, *counts[:-1]], device=assigned.device).cumsum(0)
        matched = first[image] + assigned[image, row]
        objects, labels = torch.cat([t.objects for t in targets]), torch.cat([t.object_labels for t in targets])

        wanted = torch.zeros_like(flat_logits)
        wanted[image, row, labels[matched]] = 1
        counted = assigned != IGNORED
        positives = mean_over_processes(len(image), assigned.device)
        classification = (focal_loss(flat_logits, wanted) * counted[..., None]).sum() / positives
        box, quality_loss = self._box_losses(
            flat_distances[image, row],
            flat_central[image, row],
            points[row],
            cells[row],
            objects[matched],
            positives,
        )
        return {"classification": classification, "box": box, self.quality: quality_loss}

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """Squares of `prior_scale` cells around the points of all levels, in pixels of the image."""
        points, cells, _ = self.points(map_sizes, padded, device)
        return self._squares(points, cells, [h * w for h, w in map_sizes])

    def _squares(self, points: Tensor, cells: Tensor, counts: Sequence[int]) -> Priors:
        half = cells * self.prior_scale / 2
        return Priors.on_levels(torch.cat([points - half, points + half], 1), counts)

    def assign(
        self, points: Tensor, cells: Tensor, ranges: Tensor, counts: Sequence[int], targets: Sequence[Targets]
    ) -> Tensor:
        """`(B, A)` row of the image's objects, `BACKGROUND` or `IGNORED`; `counts` points lie on each level."""
        if self.assigner is None:
            found = [
                assign_points(points, cells, ranges, t.objects, t.ignored, radius=self.radius, reach=self.reach)
                for t in targets
            ]
        else:
            priors = self._squares(points, cells, counts)
            found = [self.assigner(priors, t.objects, t.ignored) for t in targets]
        return torch.stack(found)

    def assigning_part(self) -> AssigningPart:
        """The head itself."""
        return self

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """See `AssigningPart`."""
        points, cells, ranges = self.points(map_sizes, padded, target.boxes.device)
        return self.assign(points, cells, ranges, [h * w for h, w in map_sizes], [target])[0]

    def _box_losses(
        self, distances: Tensor, central: Tensor, points: Tensor, cells: Tensor, objects: Tensor, positives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of P positive points: predicted `distances (P, 4)` in cells and quality logits `(P,)` against `objects`."""
        predicted = boxes_around(points, distances, cells)
        loss = 1 - box_algebra.paired_giou(predicted, objects)
        if self.quality == "iou":
            goal = box_algebra.paired_iou(predicted.detach(), objects).clamp(0, 1)
        else:
            sides = side_distances(points, objects)
            if self.assigner is not None or self.reach > 0:  # a point may lie beside its object
                sides = torch.maximum(sides, 0.01 * cells[:, [0, 1, 0, 1]])
            goal = centerness(sides)
        if self.quality == "centerness" and self.centerness_weighted:
            box = (loss * goal).sum() / mean_over_processes(goal.sum(), goal.device, at_least=1e-6)
        else:
            box = loss.sum() / positives
        return box, F.binary_cross_entropy_with_logits(central, goal, reduction="sum") / positives

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, distances, central = self(maps)
        map_sizes = [m.shape[-2:] for m in logits]
        counts = [h * w for h, w in map_sizes]
        scores = flatten_levels(logits, self.num_classes).sigmoid() * flatten_levels(central, 1).sigmoid()
        if self.geometric_mean:
            scores = scores.sqrt()
        flat_distances = flatten_levels(distances, 4)
        points, cells, _ = self.points(map_sizes, padded, scores.device)
        found = []
        for image_scores, image_distances, size in zip(scores, flat_distances, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, counts, self.suppression.pre_nms, self.suppression.score)
            boxes = boxes_around(points[rows], image_distances[rows], cells[rows])
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, self.suppression))
        return found

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        levels = []
        for logits, distances, central in zip(*self(maps), strict=True):
            scores = flatten_level(logits, self.num_classes).sigmoid() * flatten_level(central, 1).sigmoid()
            if self.geometric_mean:
                scores = scores.sqrt()
            points, cell = level_points(logits, size, self.offset)
            sides, cells = flatten_level(distances, 4), torch.cat([cell, cell])

            def boxes_of(row: Tensor, points: Tensor = points, sides: Tensor = sides, cells: Tensor = cells) -> Tensor:
                point, reach = points[row], take_rows(sides, row) * cells
                return torch.cat([point - reach[..., :2], point + reach[..., 2:]], -1)

            levels.append(level_candidates(scores, self.suppression.pre_nms, boxes_of, size))
        return suppress_levels(levels, self.num_classes, self.suppression)

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        return {"class_logits": OutputRows(("classes",))}

    def dense_outputs(self, raw: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> DenseOutputs:
        """See `Head.dense_outputs`: class logits and distances of every point, and the centerness (or IoU) as its quality."""
        logits, distances, central = raw
        return DenseOutputs(
            flatten_levels(logits, self.num_classes), flatten_levels(distances, 4), flatten_levels(central, 1)
        )


def boxes_around(points: Tensor, distances: Tensor, cells: Tensor) -> Tensor:
    """Boxes `(N, 4)` in pixels from points `(N, 2)` and distances `(N, 4)` in units of `cells (N, 2)`."""
    return torch.cat([points - distances[:, :2] * cells, points + distances[:, 2:] * cells], 1)


class FCOSOptions(Thresholds):
    """Options of FCOS."""

    depth: Depth = 4
    """Convolutions of each tower: 2 on a laptop."""
    radius: float = Field(default=1.5, gt=0)
    """Centre sampling: cells from an object's centre within which a point may learn it."""
    reach: float = Field(default=0.0, ge=0)
    """A point so many cells from an object's centre counts as inside; from 0.5 every object has a point."""
    range_scale: float = Field(default=4.0, gt=0)
    """A level regresses distances of up to so many strides: 4 in Adap-FCOS, 8 in the original."""
    offset: Share = 0.5
    """Where in its cell a point lies: 0.5 is the middle."""
    tower_bias: bool = False
    """Convolutions of the towers have a bias before a norm too, as torchvision's; without a norm they always have one."""
    neck_norm: NeckNorm = None
    """Norm layers of its own pyramid where they are not those of `model.norm`."""
    geometric_mean: bool = True
    """Scores are the root of class score times centerness; false: their product."""
    centerness_weighted: bool = True
    """The box loss is weighted by centerness."""
    quality: Literal["centerness", "iou"] = "centerness"
    """What scores are weighted by: the centerness, or the predicted IoU."""
    foreground: Share = 0.5
    """With `model.assigner` only: similarity from which a point learns an object."""
    background: Share = 0.4
    """With `model.assigner` only: similarity below which a point is background."""
    prior_scale: float = Field(default=2.0, gt=0)
    """With `model.assigner` only: the prior of a point is a square of so many cells."""


def fcos(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    depth: int = 4,
    norm: NormBuilder | None = None,
    neck_norm: NeckNorm = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """FCOS on `backbone`; with maps from C2 and one extra level it is Adap-FCOS.

    The neck is an FPN whose extra levels are convolved from its own last map, or `neck`. `head` goes to `FCOSHead`.
    """
    neck = neck or FPN(
        backbone.features,
        channels=channels,
        num_extra=num_extra,
        extra="conv_p5",
        norm=norm_of_neck(norm, neck_norm),
        fusion=fusion,
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        FCOSHead(
            features,
            num_classes=len(classes),
            depth=depth,
            norm=norm,
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )
