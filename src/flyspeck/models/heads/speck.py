"""speck: a small dense detector for objects of 2 to 32 px, to be trained from nothing and to run in real time. flyspeck's own.

A point of every level says how good its box is for each class (one number: class and quality together, so that what is ranked is
what the evaluation ranks by), and the box as an offset and a scale relative to a square of `prior_scale` cells around it. Two
light towers on every level, one for the scores and one for the boxes (YOLOX's decoupled head, arXiv:2107.08430, at a fraction of
its width), each level with weights of its own.

* Which point learns which object: a rule that looks at what the detector says (`rule`; assigners.dynamic), or `model.assigner`.
* Scores learn the quality of their box: quality focal (GFL, arXiv:2006.04388) or varifocal loss (arXiv:2008.13367).
* Boxes: CIoU, or NWD + CIoU. NWD (arXiv:2110.13389) changes with every pixel that a box of 3 px is off, where IoU is 0 already.
* `one_to_one`: a second pair of outputs, with a block of its own on the towers, through which no gradient goes back. There
  each object is learnt by one point alone, and what it finds needs no suppression: it has none. The first pair still trains the
  towers (the idea: Wang et al., DeFCN, CVPR 2021, arXiv:2012.03544; both at once: Wang et al., 2024, arXiv:2405.14458).

Facts come from the papers; what was chosen, and by which measurement, is in docs/explanation/speck.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError, nearest
from flyspeck.models.assign import BACKGROUND
from flyspeck.models.assigners.base import AssigningPart, Priors
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.assigners.dynamic import (
    Assigned,
    Closeness,
    DynamicRule,
    Grid,
    PriorFit,
    Rule,
    Said,
    assign_dynamically,
)
from flyspeck.models.assigners.nwd import AITOD_SIZE, nwd_loss
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size, decode_anchored, flatten_level, level_points
from flyspeck.models.detector import DenseOutputs, Detector, Head, PixelNorm
from flyspeck.models.heads.fcos import grid_points
from flyspeck.models.layers import NormBuilder, flatten_levels, init_normal
from flyspeck.models.losses import ciou_loss, mean_over_processes, quality_focal_loss, varifocal_loss
from flyspeck.models.necks.fpn import FusionMode
from flyspeck.models.necks.light_fpn import light_fpn
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.reparameterised import Blocks, light_block
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Count, Depth, Share, Thresholds, Weight
from flyspeck.types import FeatureSpec, Targets

BoxLoss = Literal["ciou", "nwd_ciou"]
ScoreLoss = Literal["quality_focal", "varifocal"]
Outputs = tuple[list[Tensor], list[Tensor]]
"""Class logits `(B, K, H_l, W_l)` and box offsets `(B, 4, H_l, W_l)` of every level."""
_SCORE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
}


class _Branch(nn.Module):
    """Two towers and the two outputs on top of them, on every level."""

    def __init__(
        self, channels: int, num_classes: int, *, levels: int, depth: int, blocks: Blocks, norm: NormBuilder | None
    ) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            return nn.Sequential(*(light_block(blocks, channels, channels, norm=norm) for _ in range(depth)))

        self.class_towers = nn.ModuleList(tower() for _ in range(levels))
        self.box_towers = nn.ModuleList(tower() for _ in range(levels))
        self.class_logits = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in range(levels))
        self.box_deltas = nn.ModuleList(nn.Conv2d(channels, 4, 1) for _ in range(levels))
        for layer in (*self.class_logits, *self.box_deltas):
            init_normal(layer)
        for layer in self.class_logits:
            nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]

    def towers(self, for_scores: Sequence[Tensor], for_boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of every level to maps of the same shapes."""
        scores = [tower(m) for tower, m in zip(self.class_towers, for_scores, strict=True)]
        return scores, [tower(m) for tower, m in zip(self.box_towers, for_boxes, strict=True)]

    def outputs(self, for_scores: Sequence[Tensor], for_boxes: Sequence[Tensor]) -> Outputs:
        """What stands on top of them."""
        logits = [layer(m) for layer, m in zip(self.class_logits, for_scores, strict=True)]
        return logits, [layer(m) for layer, m in zip(self.box_deltas, for_boxes, strict=True)]


class SpeckHead(Head):
    """See the head of this module.

    `rule` and what follows it up to `prior_weight` decide which point learns which object, unless `assigner` does
    (then `foreground` and `background` are the thresholds that it may use). `nwd_constant` is NWD's C in px, everywhere.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        depth: int = 2,
        blocks: Blocks = "separable",
        norm: NormBuilder | None = nn.BatchNorm2d,
        rule: Rule = "simota",
        k: int = 10,
        radius: float = 2.5,
        reach: float = 1.0,
        closeness: Closeness = "nwd",
        prior: PriorFit = "nwd",
        prior_weight: float = 1.0,
        nwd_constant: float = AITOD_SIZE,
        box_loss: BoxLoss = "nwd_ciou",
        box_weight: float = 2.0,
        score_loss: ScoreLoss = "quality_focal",
        one_to_one: bool = False,
        assigner: AssignerBuilder | None = None,
        foreground: float = 0.5,
        background: float = 0.4,
        prior_scale: float = 2.0,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        for key, value, known in (
            ("rule", rule, ("simota", "task_aligned")),
            ("closeness", closeness, ("iou", "nwd")),
            ("prior", prior, ("none", "nwd", "rfla")),
            ("box_loss", box_loss, ("ciou", "nwd_ciou")),
            ("score_loss", score_loss, tuple(_SCORE_LOSSES)),
            ("blocks", blocks, ("rep", "separable")),
        ):
            if value not in known:
                raise UserError(f"'{value}' is no {key}", where=f"model.head.{key}", fix=nearest(value, known))
        self.num_classes, self.prior_scale = num_classes, prior_scale
        self._strides = [f.stride for f in features]
        self.assigner = None if assigner is None else assigner(foreground=foreground, background=background)
        self.rule = DynamicRule(rule, k, radius, reach, closeness, prior, prior_weight, nwd_constant)
        self.nwd_constant, self.box_loss, self.box_weight = nwd_constant, box_loss, box_weight
        self.score_loss = _SCORE_LOSSES[score_loss]
        self.suppression = suppression or Suppression()
        if one_to_one:
            self.suppression = replace(self.suppression, method="none", soft=None)
        channels, levels = features[0].channels, len(features)
        self.many = _Branch(channels, num_classes, levels=levels, depth=depth, blocks=blocks, norm=norm)
        self.one = None
        if one_to_one:
            self.one = _Branch(channels, num_classes, levels=levels, depth=1, blocks=blocks, norm=norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Outputs]:
        """The outputs of which an object may have many points, and with `one_to_one` those of which it has one, which detect."""
        scores, boxes = self.many.towers(maps, maps)
        found = [self.many.outputs(scores, boxes)]
        if self.one is not None:
            own = self.one.towers([m.detach() for m in scores], [m.detach() for m in boxes])
            found.append(self.one.outputs(*own))
        return found

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` and `box`; with `one_to_one` also `one_classification` and `one_box`."""
        found: dict[str, Tensor] = {}
        for prefix, outputs in zip(("", "one_"), self(maps), strict=False):
            scores, boxes = self._branch_losses(outputs, targets, padded, one_each=bool(prefix))
            found |= {f"{prefix}classification": scores, f"{prefix}box": boxes}
        return found

    def _branch_losses(
        self, outputs: Outputs, targets: Sequence[Targets], padded: tuple[int, int], *, one_each: bool
    ) -> tuple[Tensor, Tensor]:
        logits, deltas = flatten_levels(outputs[0], self.num_classes), flatten_levels(outputs[1], 4)
        map_sizes = [(m.shape[-2], m.shape[-1]) for m in outputs[0]]
        grid = self.grid(map_sizes, padded, logits.device)
        counts = [h * w for h, w in map_sizes]
        with torch.no_grad():
            boxes = [box_algebra.decode(d, grid.priors) for d in deltas]
            learnt = [
                self.assign(grid, counts, Said(own, box), target, one_each=one_each)
                for own, box, target in zip(logits.detach(), boxes, targets, strict=True)
            ]
        rows = torch.stack([one.row for one in learnt])
        image, point = torch.nonzero(rows >= 0, as_tuple=True)
        objects = torch.cat([t.objects for t in targets])
        labels = torch.cat([t.object_labels for t in targets])
        first = torch.tensor([0, *(len(t.objects) for t in targets[:-1])], device=rows.device).cumsum(0)
        matched = first[image] + rows[image, point]

        wanted = torch.zeros_like(logits)
        wanted[image, point, labels[matched]] = torch.stack([one.quality for one in learnt])[image, point]
        counted = (rows >= BACKGROUND)[..., None]
        total = mean_over_processes(wanted.sum(), wanted.device)
        scores = (self.score_loss(logits, wanted) * counted).sum() / total
        predicted = box_algebra.decode(deltas[image, point], grid.priors[point])
        loss = ciou_loss(predicted, objects[matched])
        if self.box_loss == "nwd_ciou":
            loss = loss + nwd_loss(predicted, objects[matched], constant=self.nwd_constant)
        return scores, self.box_weight * loss / mean_over_processes(len(image), loss.device)

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        branches = ["many", *(["one"] if self.one is not None else [])]
        levels = range(len(self.many.class_logits))
        return {f"{branch}.class_logits.{level}": OutputRows(("classes",)) for branch in branches for level in levels}

    def grid(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Grid:
        """The points of all levels, in pixels of the image."""
        points, cells = grid_points(map_sizes, padded, device)
        return Grid(points, cells, _squares(points, cells * self.prior_scale))

    def assign(
        self, grid: Grid, counts: Sequence[int], said: Said, target: Targets, *, one_each: bool = False
    ) -> Assigned:
        """What the points of one image learn; `counts` of them lie on each level."""
        if self.assigner is None or one_each:
            return assign_dynamically(
                self.rule, grid, said, target.objects, target.object_labels, target.ignored, one_each=one_each
            )
        row = self.assigner(Priors.on_levels(grid.priors, counts), target.objects, target.ignored)
        quality = torch.zeros(len(row), device=row.device)
        learns = row >= 0
        quality[learns] = box_algebra.paired_iou(said.boxes[learns], target.objects[row[learns]]).clamp(0, 1)
        return Assigned(row, quality)

    def assigning_part(self) -> AssigningPart:
        """The head itself."""
        return self

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """Squares of `prior_scale` cells around the points of all levels, in pixels of the image."""
        return Priors.on_levels(self.grid(map_sizes, padded, device).priors, [h * w for h, w in map_sizes])

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """See `AssigningPart`. A rule that looks at what the detector says sees what it says at first: every prior as it is."""
        grid = self.grid(map_sizes, padded, target.boxes.device)
        said = Said(grid.priors.new_zeros(len(grid.points), self.num_classes), grid.priors)
        return self.assign(grid, [h * w for h, w in map_sizes], said, target).row

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, deltas = self(maps)[-1]
        map_sizes, rule = [(m.shape[-2], m.shape[-1]) for m in logits], self.suppression
        scores, offsets = flatten_levels(logits, self.num_classes).sigmoid(), flatten_levels(deltas, 4)
        priors = self.grid(map_sizes, padded, scores.device).priors
        found = []
        for image_scores, image_offsets, size in zip(scores, offsets, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, [h * w for h, w in map_sizes], rule.pre_nms, rule.score)
            boxes = box_algebra.decode(image_offsets[rows], priors[rows])
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, rule))
        return found

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        logits, deltas = self(maps)[-1]
        scores = [flatten_level(m, self.num_classes).sigmoid() for m in logits]
        priors = []
        for m in logits:
            points, cell = level_points(m, size, 0.5)
            priors.append(_squares(points, cell * self.prior_scale))
        return decode_anchored(scores, deltas, priors, weights=(1, 1, 1, 1), size=size, rule=self.suppression)

    def dense_outputs(self, raw: list[Outputs]) -> DenseOutputs:
        """See `Head.dense_outputs`: logits and box offsets of every point, of the outputs that train the towers."""
        logits, deltas = raw[0]
        return DenseOutputs(flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4))

    def dense_grid(self) -> Sequence[Sequence[tuple[float, float]]]:
        """See `Head.dense_grid`: the squares that boxes are told relative to."""
        return [[(self.prior_scale * stride, self.prior_scale * stride)] for stride in self._strides]


def _squares(points: Tensor, sides: Tensor) -> Tensor:
    """Boxes `(A, 4)` around points `(A, 2)`, of sides `(A, 2)` or `(2,)`."""
    return torch.cat([points - sides / 2, points + sides / 2], -1)


class SpeckOptions(Thresholds):
    """Options of speck."""

    depth: Depth = 2
    """Blocks of each tower."""
    blocks: Blocks = "separable"
    """Of the towers: `separable` (depthwise and pointwise), or `rep` (3x3 with branches in training, which become one)."""
    rule: Rule = "simota"
    """Which point learns which object, where `model.assigner` says nothing: SimOTA, or task alignment."""
    k: Count = 10
    """`simota`: IoUs whose sum is how many points an object takes; `task_aligned`: points that an object takes."""
    radius: float = Field(default=2.5, gt=0)
    """Cells from an object's centre within which a point may learn it."""
    reach: float = Field(default=1.0, ge=0)
    """A point so many cells from an object's centre may learn it from outside; from 0.5 every object has one on each level."""
    closeness: Closeness = "nwd"
    """How near a predicted box is to an object, for the rule: IoU, or the mean of IoU and NWD, which tiny boxes need."""
    prior: PriorFit = "nwd"
    """How well the square of a point fits an object joins the rule's cost: by NWD, by RFLA's distance, or not at all."""
    prior_weight: Weight = 1.0
    """How much it counts."""
    nwd_constant: float = Field(default=AITOD_SIZE, gt=0)
    """NWD's constant in px, of rule and loss: about the size of the objects."""
    box_loss: BoxLoss = "nwd_ciou"
    """CIoU, or NWD + CIoU."""
    box_weight: Weight = 2.0
    """Of the box loss."""
    score_loss: ScoreLoss = "quality_focal"
    """How scores learn the quality of their boxes."""
    one_to_one: bool = False
    """Detect by outputs of which each object has one point alone: nothing is suppressed, whatever `model.suppression` says, so
    that crowds are not thinned out."""
    foreground: Share = 0.5
    """With `model.assigner` only: similarity from which a point learns an object."""
    background: Share = 0.4
    """With `model.assigner` only: similarity below which a point is background."""
    prior_scale: float = Field(default=2.0, gt=0)
    """The square of a point has so many cells a side: boxes are told relative to it."""


def speck(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    depth: int = 2,
    norm: NormBuilder | None = nn.BatchNorm2d,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 0,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """speck on `backbone`; the neck is a `LightFPN`, or `neck`. `head` goes to `SpeckHead`."""
    neck = neck or light_fpn(backbone.features, channels=channels, num_extra=num_extra, norm=norm, fusion=fusion)
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        SpeckHead(features, num_classes=len(classes), depth=depth, norm=norm, suppression=suppression, **head),
        pixel_norm=pixel_norm,
        classes=classes,
    )
