"""Faster R-CNN on a feature pyramid. Ren et al., 2015, arXiv:1506.01497; Lin et al., 2017, arXiv:1612.03144.

"Adaptive": pyramid P2-P6 and anchors from 8 px (scale 2 on strides 4-64), as the tiny-object papers run it.

Deviations, all by argument: anchors under ignore regions and regions under them learn nothing; RoIAlign uses the
half-pixel correction (`aligned`); the number of samples is counted over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorBuilder
from flyspeck.models.assigners.base import AssigningPart
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size, suppress_regions
from flyspeck.models.detector import DenseOutputs, Detector, Head, PixelNorm
from flyspeck.models.heads.roi import BoxHead, RoIPool, RoIPoolOptions, assign_regions, sample_balanced
from flyspeck.models.heads.rpn import RPN, RPNOptions, proposal_network
from flyspeck.models.layers import NeckNorm, NormBuilder, norm_of_neck
from flyspeck.models.losses import mean_over_processes, smooth_l1
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Count, Options, Share
from flyspeck.types import FeatureSpec, Targets

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Scale of the second stage's regression targets (its offsets are smaller than the first's)."""


BoxLoss = Callable[[Tensor, Tensor], Tensor]
"""Offsets `(N, 4)` and their goals to the sum of a loss."""


class RegionSampler(Protocol):
    """Which regions train the box head."""

    def __call__(
        self, regions: Tensor, target: Targets, assigned: Tensor, *, count: int, positive_share: float
    ) -> Tensor:
        """Rows of `regions (P, 4)`; `assigned (P,)` says what each learns, as `models.assign` does."""
        ...


def _draw(regions: Tensor, target: Targets, assigned: Tensor, *, count: int, positive_share: float) -> Tensor:
    return sample_balanced(assigned, count=count, positive_share=positive_share)


class FasterRCNNHead(Head):
    """A region proposal network, RoIAlign on the levels that `pool` names, and one box head.

    `sampler` (default: at random) and `box_loss` (default: smooth L1 with `box_beta`) are those of the box head. With
    `hardest` it learns from that many of an image's samples, those with the largest loss (online hard example mining,
    Shrivastava et al., 2016, arXiv:1604.03540).
    """

    def __init__(
        self,
        *,
        rpn: RPN,
        pool: RoIPool,
        box_head: BoxHead,
        samples: int = 512,
        positive_share: float = 0.25,
        foreground: float = 0.5,
        box_beta: float = 1 / 9,
        sampler: RegionSampler | None = None,
        box_loss: BoxLoss | None = None,
        hardest: int | None = None,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = box_head.num_classes
        self.hardest = hardest
        self.rpn, self.pool, self.box_head = rpn, pool, box_head
        self.samples, self.positive_share = samples, positive_share
        self.foreground = foreground
        self.sampler = sampler or _draw
        self.box_loss = box_loss or partial(smooth_l1, beta=box_beta)
        self.suppression = suppression or Suppression()

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`rpn_objectness`, `rpn_box`, `classification` (cross entropy) and `box`."""
        proposals, losses = self.rpn.propose(maps, padded, sizes, targets)
        regions, labels, goals = [], [], []
        for found, target in zip(proposals, targets, strict=True):
            region, label, goal = self.sample(found, target)
            regions.append(region)
            labels.append(label)
            goals.append(goal)
        logits, deltas = self.box_head(self.pool(maps, regions, padded))
        label, goal = torch.cat(labels), torch.cat(goals)
        if self.hardest is not None:
            rows = self.hard_rows(logits.detach(), deltas.detach(), label, goal, [len(region) for region in regions])
            logits, deltas, label, goal = logits[rows], deltas[rows], label[rows], goal[rows]
        total = mean_over_processes(len(label), label.device)
        positive = torch.nonzero(label < self.num_classes).squeeze(1)
        column = self.column(label[positive])
        box = self.box_loss(deltas[positive, column], goal[positive])
        return {
            **losses,
            "classification": F.cross_entropy(logits, label, reduction="sum") / total,
            "box": box / total,
        }

    def hard_rows(self, logits: Tensor, deltas: Tensor, label: Tensor, goal: Tensor, counts: Sequence[int]) -> Tensor:
        """Of each image's `counts[i]` rows, the `hardest` with the largest loss of class and box."""
        loss = F.cross_entropy(logits, label, reduction="none")
        positive = torch.nonzero(label < self.num_classes).squeeze(1)
        boxes = deltas[positive, self.column(label[positive])]
        loss[positive] += torch.func.vmap(self.box_loss)(boxes[:, None], goal[positive][:, None])  # row by row
        found, start = [], 0
        for count in counts:
            found.append(start + loss[start : start + count].topk(min(self.hardest or count, count)).indices)
            start += count
        return torch.cat(found)

    def column(self, label: Tensor) -> Tensor:
        """Which of a region's boxes is that of the class `label (N,)`."""
        return torch.zeros_like(label) if self.box_head.class_agnostic else label

    def sample(self, proposals: Tensor, target: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Regions `(S, 4)` of one image to train on, their labels `(S,)` (K is background) and box goals `(S, 4)`."""
        regions, assigned = assign_regions(proposals, target, foreground=self.foreground, background=self.foreground)
        rows = self.sampler(regions, target, assigned, count=self.samples, positive_share=self.positive_share)
        region, matched = regions[rows], assigned[rows]
        label = torch.full_like(matched, self.num_classes)
        goal = torch.zeros_like(region)
        positive = matched >= 0
        label[positive] = target.object_labels[matched[positive]]
        goal[positive] = box_algebra.encode(
            target.objects[matched[positive]].to(region.dtype), region[positive], BOX_WEIGHTS
        )
        return region, label, goal

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        proposals, _ = self.rpn.propose(maps, padded, sizes)
        logits, deltas = self.box_head(self.pool(maps, proposals, padded))
        probabilities = logits.softmax(-1)[:, : self.num_classes]
        found, start = [], 0
        for regions, size in zip(proposals, sizes, strict=True):
            rows = slice(start, start + len(regions))
            found.append(self.select(regions, probabilities[rows], deltas[rows], size))
            start += len(regions)
        return found

    def select(self, regions: Tensor, scores: Tensor, deltas: Tensor, size: tuple[int, int]) -> RawDetections:
        """One image's regions `(P, 4)`, class scores `(P, K)` and deltas `(P, K or 1, 4)` to detections."""
        row, label = torch.nonzero(scores > self.suppression.score, as_tuple=True)
        boxes = box_algebra.decode(deltas[row, self.column(label)], regions[row], BOX_WEIGHTS)
        return suppress(boxes, scores[row, label], label, size, self.suppression)

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        regions, alive = self.rpn.propose_batch(maps, size)
        logits, deltas = self.box_head(self.pool.pool_batch(maps, regions, size))
        batch, count = regions.shape[0], regions.shape[1]
        scores = logits.softmax(-1)[:, : self.num_classes].reshape(batch, count, -1) * alive[..., None]
        boxes = box_algebra.decode(deltas.reshape(batch, count, -1, 4), regions[:, :, None, :], BOX_WEIGHTS)
        return suppress_regions(box_algebra.clip(boxes, *size), scores, self.suppression)

    def assigning_part(self) -> AssigningPart:
        """The proposal network."""
        return self.rpn

    def counted_rules(self) -> list[tuple[object, str]]:
        """See `Head.counted_rules`."""
        return [(self, "suppression"), (self.rpn, "test_rule")]

    def run_layers(self, maps: Sequence[Tensor], *, proposals: int) -> None:
        """See `Head.run_layers`."""
        self.rpn(maps)
        self.box_head(self.pool.blank(maps, proposals))

    def dense_part(self) -> nn.Module:
        """The proposal network."""
        return self.rpn

    def dense_outputs(self, raw: tuple[list[Tensor], list[Tensor]]) -> DenseOutputs:
        """See `Head.dense_outputs`: those of the proposal network."""
        return self.rpn.dense_outputs(raw)

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        found = {f"rpn.{name}": rows for name, rows in self.rpn.output_rows().items()}
        return found | {f"box_head.{name}": rows for name, rows in self.box_head.output_rows().items()}

    def dense_grid(self) -> Sequence[Sequence[tuple[float, float]]]:
        """The anchors of each level."""
        return self.rpn.anchors.shapes

    def propose(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `Head.propose`."""
        return self.rpn.propose(maps, padded, sizes)[0]

    def region_outputs(
        self, maps: Sequence[Tensor], regions: Sequence[Tensor], padded: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """See `Head.region_outputs`."""
        return self.box_head(self.pool(maps, regions, padded))


class TwoStageOptions(Options):
    """What detectors have in common that look at proposals a second time."""

    hidden: int = Field(default=1024, ge=1, le=65536)
    """Width of the box head's hidden layers: 256 on a laptop."""
    proposals: Count = 1000
    """Regions an image that the box head looks at: 300 on a laptop, where an image holds fewer objects."""
    train_proposals: Count = 1000
    """Regions an image among which the box head's training samples."""
    samples: Count = 512
    """Regions an image that the box head's losses are taken of: 128 on a laptop."""
    positive_share: Share = 0.25
    """Share of the samples that may show an object."""
    rpn: RPNOptions = RPNOptions()
    """The region proposal network."""
    pool: RoIPoolOptions = RoIPoolOptions()
    """How regions are cut from the pyramid."""


class FasterRCNNOptions(TwoStageOptions):
    """Options of Faster R-CNN."""

    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a region learns it; below, it learns background."""
    box_beta: float = Field(default=1 / 9, gt=0)
    """Where the smooth L1 loss of the box turns from a parabola into a line."""
    box_convs: int = Field(default=0, ge=0, le=8)
    """3x3 convolutions with batch norm before the box head's hidden layers, which are then one: 4 in torchvision's second."""
    neck_norm: NeckNorm = None
    """Norm layers of its own pyramid where they are not those of `model.norm`."""


def faster_rcnn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    hidden: int = 1024,
    norm: NormBuilder | None = None,
    neck_norm: NeckNorm = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    anchors: AnchorBuilder | None = None,
    suppression: Suppression | None = None,
    proposals: int = 1000,
    train_proposals: int = 1000,
    rpn: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    assigner: AssignerBuilder | None = None,
    box_convs: int = 0,
    **head: Any,
) -> Detector:
    """Faster R-CNN on `backbone`; with maps from C2 it is the adaptive one.

    The neck is an FPN with a subsampled extra level, or `neck`; regions are cut from all levels but the extra ones.
    `hidden` is the width of the box head (256 on a laptop), `proposals` the regions that it looks at (300 on a laptop,
    where an image holds fewer objects), `train_proposals` those among which training samples. `rpn`, `pool` and `head`
    are keyword arguments of `RPN`, `RoIPool` and `FasterRCNNHead`. `assigner` is the RPN's.
    `box_convs` come before the box head's hidden layers, `neck_norm` is the FPN's where it differs from `norm`.
    """
    neck = neck or FPN(
        backbone.features, channels=channels, num_extra=num_extra, norm=norm_of_neck(norm, neck_norm), fusion=fusion
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    pooled = features[: len(features) - num_extra]
    region_pool = RoIPool([f.stride for f in pooled], **(pool or {}))
    width = features[0].channels
    box_head = BoxHead(
        width * region_pool.output**2, hidden=hidden, num_classes=len(classes), convs=box_convs, channels=width
    )
    return Detector(
        backbone,
        neck,
        FasterRCNNHead(
            rpn=proposal_network(
                features,
                anchors=anchors,
                norm=norm,
                proposals=proposals,
                train_proposals=train_proposals,
                options={"assigner": assigner, **(rpn or {})},
            ),
            pool=region_pool,
            box_head=box_head,
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )
