"""RepPoints: an object as a set of points, and its box as their moments. Yang et al., ICCV 2019, arXiv:1904.11490.

Every cell predicts nine points twice. The first set (*init*) is learnt from the one point nearest to each object; its box
decides, by overlap, what the second (*refine*) and the class scores learn, and its points say where the deformable
convolutions of both look. Eq. 5-6: refined points are the first ones plus offsets.

It is the host of DPNet's tables: P3-P7 with base scale 4 on COCO, P2-P6 with base scale 2 on TinyPerson, GroupNorm after
every convolution of neck and head, shared by the levels in the head (batch norms are private to a level).

Deviations, all by argument or forced by moving resolutions:

* The first points start on the grid of a 3x3 kernel, so that the deformable convolutions start as plain ones and every cell
  with a box of 1.7 cells (`grid_start`). The authors start all nine in the middle, where boxes have no size and overlap
  nothing: on small sets that learns more slowly.
* Points lie in the middle of their cells by the true ratio of image to map (`offset`; mmdetection's lie in the corner: 0).
* An object's level follows the true cell sizes: `floor(log2(sqrt(wh) / scale))` where they are powers of two.
* A ReLU stands between P6 and P7, as in all our pyramids. Boxes under ignore regions learn nothing.
* Points whose variance vanishes give a box of next to no size and no gradient (the square root's would be infinite).

Numbers (ResNet-50, GN, deformable convolutions not counted): 36.62 M trainable parameters with stem and stage 1 frozen
(80 classes, P3-P7) and 168.25 GFLOPs at 796x1124; 158.92 GFLOPs at 512x640 with P2-P6 and one class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND, max_iou_assign
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
from flyspeck.models.deformable import sampled_deform_conv
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.heads.fcos import grid_points
from flyspeck.models.layers import ConvNorm, NormBuilder, flatten_levels, group_norm, init_normal, per_level
from flyspeck.models.losses import focal_loss, mean_over_processes, smooth_l1
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Count, Depth, Share, Thresholds, Weight
from flyspeck.types import FeatureSpec, Targets

NUM_POINTS = 9
"""Points of an object: as many as a 3x3 kernel has taps."""
# The places (y, x) where a plain 3x3 kernel looks: deformable offsets count from there.
_KERNEL_TAPS = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=torch.float32, device="cpu")
_MIN_VARIANCE = 1e-12
# Largest block of (object, point) pairs held at once.
_BLOCK = 1 << 22


def moment_boxes(points: Tensor, log_spread: Tensor) -> Tensor:
    """Boxes `(..., 4)` xyxy of point sets `(..., n, 2)` (x, y): mean -+ standard deviation x `exp(log_spread (2,))`.

    The moment-based conversion of sec. 3.2, with the deviation of a sample (n - 1), as the authors' code takes it.
    """
    middle = points.mean(-2)
    variance = (points - middle[..., None, :]).square().sum(-2) / (points.shape[-2] - 1)
    deviation = variance.clamp(min=_MIN_VARIANCE).sqrt()
    half = deviation * log_spread.exp()
    return torch.cat([middle - half, middle + half], -1)


def object_levels(objects: Tensor, cell_sides: Tensor, *, scale: float) -> Tensor:
    """`(N,)` the level of each object `(N, 4)`: the coarsest whose `scale` cells are no longer than the object's sqrt(wh).

    `cell_sides (L,)` are the levels' true cell sizes in pixels, ascending; objects smaller than that go to level 0.
    """
    sides = box_algebra.area(objects.double()).sqrt()
    # A hair of tolerance: the root of 32 x 32 must not fall below 32.
    bounds = (cell_sides.double() * scale) * (1 - 1e-9)
    return (sides[:, None] >= bounds).sum(1).sub(1).clamp(min=0)


def assign_nearest_points(
    points: Tensor, levels: Tensor, objects: Tensor, wanted: Tensor, *, num_points: int = 1
) -> Tensor:
    """The row of `objects (N, 4)` that each of `points (A, 2)` learns, `(A,)`, or `BACKGROUND` (init stage).

    An object takes the `num_points` points of its own level (`levels (A,)` against `wanted (N,)`) nearest to its centre,
    by the distance in units of its width and height. A point that several want learns the one nearest to it, of equals
    the first.
    """
    assigned = torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    rows, taken, gaps = [], [], []
    for level in torch.unique(wanted).tolist():
        mine, here = torch.nonzero(wanted == level).squeeze(1), torch.nonzero(levels == level).squeeze(1)
        step = max(1, _BLOCK // max(len(here), 1))
        for block in mine.split(step):
            gap, nearest = _nearest(points[here], objects[block], min(num_points, len(here)))
            rows.append(block[:, None].expand_as(nearest).reshape(-1))
            taken.append(here[nearest].reshape(-1))
            gaps.append(gap.reshape(-1))
    if not rows:
        return assigned
    row, point, gap = torch.cat(rows), torch.cat(taken), torch.cat(gaps)
    least = gap.new_full((len(points),), math.inf).scatter_reduce(0, point, gap, "amin")
    wins = gap == least[point]
    first = torch.full_like(assigned, len(objects)).scatter_reduce(0, point[wins], row[wins], "amin")
    return torch.where(first < len(objects), first, assigned)


def _nearest(points: Tensor, objects: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Normalised distances `(n, count)` and rows of the points nearest to each object; of equals the first."""
    size = (objects[:, 2:] - objects[:, :2]).clamp(min=1e-6)
    distance = ((points - box_algebra.center(objects)[:, None]) / size[:, None]).square().sum(-1).sqrt()
    if count == 1:
        row = distance.argmin(1, keepdim=True)
        return distance.gather(1, row), row
    value, row = distance.topk(count, largest=False)
    return value, row


class PointConv(DeformConv2d):
    """A 3x3 deformable convolution (Dai et al., 2017) without bias, whose offsets say where its nine taps look.

    On a GPU it is torchvision's `deform_conv2d`. On a CPU that operator's gradient is slow, and graphs of exported models
    rarely have it: there the taps are read with `grid_sample` (the same bilinear reading, zero outside the map) and summed
    by one matrix product: the same numbers up to rounding, forward 1.7 to 3 and backward about 10 times faster.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, 1, 1, bias=False)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)` and offsets `(B, 18, H, W)`, (y, x) pairs in cells from the plain kernel's taps, to `(B, C', H, W)`."""
        if input.device.type != "cpu" or mask is not None:
            return super().forward(input, offset, mask)
        return sampled_deform_conv(input, offset, self.weight, stride=1, padding=1)


class RepPointsHead(Head):
    """Two towers on every level; two sets of points and class scores a cell."""

    kernel_taps: Tensor

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        depth: int = 3,
        norm: NormBuilder | None = group_norm,
        base_scale: float | None = None,
        foreground: float = 0.5,
        background: float = 0.4,
        init_points: int = 1,
        init_weight: float = 0.5,
        refine_weight: float = 1.0,
        gradient_share: float = 0.1,
        moment_share: float = 0.01,
        grid_start: bool = True,
        offset: float = 0.5,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.levels = len(features)
        # Base scale in cells: 4 on strides 8-128 (COCO), 2 on strides 4-64 (TinyPerson).
        self.base_scale = base_scale or (4.0 if features[0].stride >= 8 else 2.0)
        self.thresholds = (foreground, background)
        self.init_points = init_points
        self.init_weight, self.refine_weight = init_weight, refine_weight
        self.gradient_share, self.moment_share = gradient_share, moment_share
        self.offset = offset
        self.suppression = suppression or Suppression(max_detections=100)
        channels = features[0].channels
        self.class_tower, self.point_tower = (_Tower(channels, depth, per_level(norm, self.levels)) for _ in range(2))
        self.activation = nn.ReLU()
        self.init_conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.init_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.class_conv = PointConv(channels, channels)
        self.class_out = nn.Conv2d(channels, num_classes, 1)
        self.refine_conv = PointConv(channels, channels)
        self.refine_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.log_spread = nn.Parameter(torch.zeros(2))
        for conv in (self.init_conv, self.init_out, self.class_out, self.refine_out):
            init_normal(conv)
        if grid_start:
            with torch.no_grad():
                self.init_out.bias.copy_(_KERNEL_TAPS.reshape(-1))  # type: ignore[union-attr]
        for conv in (self.class_conv, self.refine_conv):
            nn.init.normal_(conv.weight, std=0.01)
        nn.init.constant_(self.class_out.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]
        self.register_buffer(
            "kernel_taps", _KERNEL_TAPS.to(self.class_out.weight.device).reshape(1, -1, 1, 1), persistent=False
        )

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        return {"class_out": OutputRows(("classes",))}

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: class logits `(B, K, H_l, W_l)`, init and refined points `(B, 18, H_l, W_l)`.

        Points are nine (y, x) pairs relative to the cell's point, in cells.
        """
        logits, first, refined = [], [], []
        for level, m in enumerate(maps):
            for_class, for_points = self.class_tower(m, level), self.point_tower(m, level)
            init = self.init_out(self.activation(self.init_conv(for_points)))
            # What classes and refined points want of the places they look at counts a tenth for the first points.
            softened = (1 - self.gradient_share) * init.detach() + self.gradient_share * init
            taps = softened - self.kernel_taps
            logits.append(self.class_out(self.activation(self.class_conv(for_class, taps))))
            shift = self.refine_out(self.activation(self.refine_conv(for_points, taps)))
            first.append(init)
            refined.append(shift + init.detach())
        return logits, first, refined

    def boxes(self, points: Tensor, centers: Tensor, cells: Tensor) -> Tensor:
        """Boxes `(..., A, 4)` in pixels of predicted points `(..., A, 18)` at `centers (A, 2)` of `cells (A, 2)` (x, y)."""
        spread = self.moment_share * self.log_spread + (1 - self.moment_share) * self.log_spread.detach()
        in_cells = moment_boxes(points.unflatten(-1, (NUM_POINTS, 2)).flip(-1), spread)
        return in_cells * cells.repeat(1, 2) + centers.repeat(1, 2)

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` (focal) and `box` (smooth L1) over the refine stage's positives, `box_init` over the init stage's."""
        logits, first, refined = self(maps)
        flat_logits = flatten_levels(logits, self.num_classes)
        map_sizes = [(m.shape[-2], m.shape[-1]) for m in logits]
        centers, cells = grid_points(map_sizes, padded, flat_logits.device, offset=self.offset)
        init_boxes = self.boxes(flatten_levels(first, 2 * NUM_POINTS), centers, cells)
        refined_boxes = self.boxes(flatten_levels(refined, 2 * NUM_POINTS), centers, cells)

        by_point = [self.assign_init(map_sizes, centers, cells, t.objects) for t in targets]
        box_init = self._box_loss(init_boxes, by_point, targets, cells)
        by_overlap = [self.assign_refine(b, t) for b, t in zip(init_boxes.detach(), targets, strict=True)]
        box = self._box_loss(refined_boxes, by_overlap, targets, cells)

        wanted, counted = torch.zeros_like(flat_logits), []
        for image, (assigned, target) in enumerate(zip(by_overlap, targets, strict=True)):
            learns = torch.nonzero(assigned >= 0).squeeze(1)
            wanted[image, learns, target.object_labels[assigned[learns]]] = 1
            counted.append(assigned >= BACKGROUND)  # neither between the thresholds nor under an ignore region
        positives = mean_over_processes(wanted.sum(), flat_logits.device)
        classification = (focal_loss(flat_logits, wanted) * torch.stack(counted)[..., None]).sum() / positives
        return {
            "classification": classification,
            "box_init": box_init * self.init_weight,
            "box": box * self.refine_weight,
        }

    def assign_init(
        self, map_sizes: Sequence[tuple[int, int]], centers: Tensor, cells: Tensor, objects: Tensor
    ) -> Tensor:
        """`(A,)` object row or background of one image: who learns the first points."""
        counts = torch.tensor([h * w for h, w in map_sizes], device=cells.device)
        levels = torch.arange(len(map_sizes), device=cells.device).repeat_interleave(counts)
        sides = cells[counts.cumsum(0) - 1].prod(1).sqrt()
        wanted = object_levels(objects, sides, scale=self.base_scale)
        return assign_nearest_points(centers, levels, objects, wanted, num_points=self.init_points)

    def assign_refine(self, init_boxes: Tensor, target: Targets) -> Tensor:
        """`(A,)` object row, background or ignored, by the overlap of the first boxes `(A, 4)` with the objects."""
        foreground, background = self.thresholds
        return max_iou_assign(
            init_boxes, target.objects, target.ignored, foreground=foreground, background=background, low_quality=True
        )

    def _box_loss(self, boxes: Tensor, assigned: Sequence[Tensor], targets: Sequence[Targets], cells: Tensor) -> Tensor:
        """Smooth L1 between `boxes (B, A, 4)` and their objects in units of the base scale, over the positives."""
        total, count = boxes.sum() * 0, 0
        for mine, rows, target in zip(boxes, assigned, targets, strict=True):
            learns = torch.nonzero(rows >= 0).squeeze(1)
            unit = self.base_scale * cells[learns].repeat(1, 2)
            total = total + smooth_l1(mine[learns] / unit, target.objects[rows[learns]] / unit, beta=0.11)
            count += len(learns)
        return total / mean_over_processes(count, boxes.device)

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, _, refined = self(maps)
        map_sizes = [(m.shape[-2], m.shape[-1]) for m in logits]
        counts = [h * w for h, w in map_sizes]
        scores, points = flatten_levels(logits, self.num_classes).sigmoid(), flatten_levels(refined, 2 * NUM_POINTS)
        centers, cells = grid_points(map_sizes, padded, scores.device, offset=self.offset)
        found = []
        for image_scores, image_points, size in zip(scores, points, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, counts, self.suppression.pre_nms, self.suppression.score)
            boxes = self.boxes(image_points[rows], centers[rows], cells[rows])
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, self.suppression))
        return found

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        levels = []
        logits, _, refined = self(maps)
        for level_logits, level_shapes in zip(logits, refined, strict=True):
            centers, cell = level_points(level_logits, size, self.offset)
            boxes = self.boxes(flatten_level(level_shapes, 2 * NUM_POINTS), centers, cell.expand(centers.shape[0], 2))

            def boxes_of(row: Tensor, boxes: Tensor = boxes) -> Tensor:
                return take_rows(boxes, row)

            scores = flatten_level(level_logits, self.num_classes).sigmoid()
            levels.append(level_candidates(scores, self.suppression.pre_nms, boxes_of, size))
        return suppress_levels(levels, self.num_classes, self.suppression)


class _Tower(nn.Sequential):
    """`depth` 3x3 convolutions with norm and ReLU, shared by all pyramid levels."""

    def __init__(self, channels: int, depth: int, norm: NormBuilder | None) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [ConvNorm(channels, channels, 3, norm=norm), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        init_normal(self, std=0.01 if norm is None else 0.03)

    def forward(self, input: Tensor, level: int) -> Tensor:
        """`(B, C, H, W)` of pyramid level `level` to the same shape."""
        for layer in self:
            input = layer(input, level) if isinstance(layer, ConvNorm) else layer(input)
        return input


class RepPointsOptions(Thresholds):
    """Options of RepPoints."""

    depth: Depth = 3
    """Convolutions of each tower: 2 on a laptop."""
    base_scale: float | None = Field(default=None, gt=0)
    """A level's objects are at least so many cells long (square root of the area), and its boxes are given in units of so
    many; null takes the paper's 4, or 2 where the pyramid begins below stride 8."""
    foreground: Share = 0.5
    """Overlap (IoU) of a point's first box with an object from which its second learns that."""
    background: Share = 0.4
    """Overlap (IoU) below which a point is background; between the two it learns nothing."""
    init_points: Count = 1
    """Points, nearest to its centre, that learn an object's first box."""
    init_weight: Weight = 0.5
    """Weight of the loss of the first boxes."""
    refine_weight: Weight = 1.0
    """Weight of the loss of the second boxes."""
    gradient_share: Share = 0.1
    """Share of the second stage's gradient that reaches the first stage's points."""
    moment_share: Share = 0.01
    """Share of the gradient that reaches the factors between a point set's deviation and its box."""
    grid_start: bool = True
    """The points start as the 3x3 grid of a convolution; false: all in the middle."""
    offset: Share = 0.5
    """Where in its cell a point lies: 0.5 is the middle."""


def reppoints(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    depth: int = 3,
    norm: NormBuilder | None = group_norm,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """RepPoints on `backbone`: with maps from C3 and two extra levels COCO's, from C2 and one the tiny-object variant.

    The neck is an FPN whose extra levels are convolved from the backbone's last map, or `neck`; `norm` is that of neck and
    head. `head` goes to `RepPointsHead`.
    """
    neck = neck or FPN(
        backbone.features, channels=channels, num_extra=num_extra, extra="conv_c5", norm=norm, fusion=fusion
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        RepPointsHead(features, num_classes=len(classes), depth=depth, norm=norm, suppression=suppression, **head),
        pixel_norm=pixel_norm,
        classes=classes,
    )
