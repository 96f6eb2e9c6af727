"""Cascade R-CNN: three box heads, each trained on the boxes of the one before at a higher IoU. Cai and Vasconcelos, 2018,
arXiv:1712.00726.

Stage s takes the boxes that stage s-1 refined, is trained with IoU 0.5, 0.6, 0.7 and regresses finer offsets (weights
10, 20, 30 for the centre, half of it for the sides). A detection's score is the mean of what the three heads gave its
region on the way; its box is the last stage's.

Deviations, all by argument: box regression is class-agnostic (as the paper's and the common implementations' default);
losses of the stages weigh 1, 0.5, 0.25 (as in the implementation the tiny-object papers used; `stage_weights`);
regions under ignore regions learn nothing.

Numbers (640x512, one class, ResNet-50 with the SSPNet neck, twelve anchors a cell, 1000 proposals a stage): 186.62 GFLOPs;
with BH-ResNet50 186.83.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.heads.faster_rcnn import BOX_WEIGHTS, TwoStageOptions
from flyspeck.models.heads.roi import BoxHead, RoIPool, assign_regions, sample_balanced
from flyspeck.models.heads.rpn import RPN, proposal_network
from flyspeck.models.layers import NormBuilder
from flyspeck.models.losses import mean_over_processes, smooth_l1
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Share, Weight
from flyspeck.types import FeatureSpec, Targets


class CascadeRCNNHead(Head):
    """A region proposal network and a chain of class-agnostic box heads on RoIAlign."""

    def __init__(
        self,
        *,
        rpn: RPN,
        pool: RoIPool,
        box_heads: Sequence[BoxHead],
        foreground: Sequence[float] = (0.5, 0.6, 0.7),
        stage_weights: Sequence[float] = (1.0, 0.5, 0.25),
        samples: int = 512,
        positive_share: float = 0.25,
        box_beta: float = 1.0,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        if not len(box_heads) == len(foreground) == len(stage_weights):
            raise ValueError(
                f"{len(box_heads)} box heads, {len(foreground)} IoUs, {len(stage_weights)} weights: one of each per stage"
            )
        if not all(head.class_agnostic for head in box_heads):
            raise ValueError(
                "the box heads of a cascade are class-agnostic: a stage's box goes to the next, not K boxes"
            )
        self.num_classes = box_heads[0].num_classes
        self.rpn, self.pool = rpn, pool
        self.box_heads = nn.ModuleList(box_heads)
        self.foreground, self.stage_weights = tuple(foreground), tuple(stage_weights)
        self.samples, self.positive_share, self.box_beta = samples, positive_share, box_beta
        self.suppression = suppression or Suppression()

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`rpn_objectness`, `rpn_box`, and `classification_s` (cross entropy) and `box_s` of the stages s = 1, 2, 3."""
        proposals, losses = self.rpn.propose(maps, padded, sizes, targets)
        for stage, weight in enumerate(self.stage_weights):
            drawn = [self._sample(stage, p, t) for p, t in zip(proposals, targets, strict=True)]
            regions = [d[0] for d in drawn]
            label, goal = torch.cat([d[1] for d in drawn]), torch.cat([d[2] for d in drawn])
            logits, deltas = self.box_heads[stage](self.pool(maps, regions, padded))
            total = mean_over_processes(len(label), label.device)
            positive = torch.nonzero(label < self.num_classes).squeeze(1)
            box = smooth_l1(deltas[positive, 0], goal[positive], beta=self.box_beta) / total
            losses[f"classification_{stage + 1}"] = weight * F.cross_entropy(logits, label, reduction="sum") / total
            losses[f"box_{stage + 1}"] = weight * box
            refined = self._refine(stage, regions, deltas.detach(), sizes)
            # The objects themselves were added as regions: they do not go on as proposals.
            proposals = [r[~d[3]] for r, d in zip(refined, drawn, strict=True)]
        return losses

    def _sample(self, stage: int, proposals: Tensor, target: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one image: regions `(S, 4)`, labels `(S,)` (K is background), box goals `(S, 4)`, added objects `(S,)` bool."""
        foreground = self.foreground[stage]
        regions, assigned = assign_regions(proposals, target, foreground=foreground, background=foreground)
        rows = sample_balanced(assigned, count=self.samples, positive_share=self.positive_share)
        region, matched = regions[rows], assigned[rows]
        label, goal = torch.full_like(matched, self.num_classes), torch.zeros_like(region)
        positive = matched >= 0
        label[positive] = target.object_labels[matched[positive]]
        objects = target.objects[matched[positive]].to(region.dtype)
        goal[positive] = box_algebra.encode(objects, region[positive], stage_box_weights(stage))
        return region, label, goal, rows >= len(proposals)

    def _refine(
        self, stage: int, regions: Sequence[Tensor], deltas: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Each image's regions moved by `deltas (sum P_i, 1, 4)` and clipped to the image."""
        moved = box_algebra.decode(deltas[:, 0], torch.cat(list(regions)), stage_box_weights(stage))
        parts = moved.split([len(r) for r in regions])
        return [box_algebra.clip(part, *size) for part, size in zip(parts, sizes, strict=True)]

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        regions, _ = self.rpn.propose(maps, padded, sizes)
        counts = [len(r) for r in regions]
        scores = torch.zeros(sum(counts), self.num_classes, device=maps[0].device)
        for stage, head in enumerate(self.box_heads):
            logits, deltas = head(self.pool(maps, regions, padded))
            scores = scores + logits.softmax(-1)[:, : self.num_classes] / len(self.box_heads)
            regions = self._refine(stage, regions, deltas, sizes)
        return [
            self._select(boxes, score, size)
            for boxes, score, size in zip(regions, scores.split(counts), sizes, strict=True)
        ]

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> RawDetections:
        """One image's final boxes `(P, 4)` and scores `(P, K)` to detections."""
        row, label = torch.nonzero(scores > self.suppression.score, as_tuple=True)
        return suppress(boxes[row], scores[row, label], label, size, self.suppression)

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        regions, alive = self.rpn.propose_batch(maps, size)
        batch, count = regions.shape[0], regions.shape[1]
        scores = torch.zeros(1, device=regions.device)
        for stage, box_head in enumerate(self.box_heads):
            logits, deltas = box_head(self.pool.pool_batch(maps, regions, size))
            scores = scores + logits.softmax(-1)[:, : self.num_classes] / len(self.box_heads)
            moved = box_algebra.decode(deltas.reshape(batch, count, 4), regions, stage_box_weights(stage))
            regions = box_algebra.clip(moved, *size)
        scores = scores.reshape(batch, count, -1) * alive[..., None]
        return suppress_regions(regions[:, :, None, :], scores, self.suppression)

    def assigning_part(self) -> AssigningPart:
        """The proposal network."""
        return self.rpn

    def counted_rules(self) -> list[tuple[object, str]]:
        """See `Head.counted_rules`."""
        return [(self, "suppression"), (self.rpn, "test_rule")]

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        found = {f"rpn.{name}": rows for name, rows in self.rpn.output_rows().items()}
        for i, box_head in enumerate(self.box_heads):
            found |= {f"box_heads.{i}.{name}": rows for name, rows in box_head.output_rows().items()}  # type: ignore[operator]
        return found

    def run_layers(self, maps: Sequence[Tensor], *, proposals: int) -> None:
        """See `Head.run_layers`: every stage looks at all proposals."""
        self.rpn(maps)
        for box_head in self.box_heads:
            box_head(self.pool.blank(maps, proposals))


def stage_box_weights(stage: int) -> tuple[float, float, float, float]:
    """Scale of a stage's regression targets: the offsets that are left get smaller."""
    x, y, w, h = (weight * (stage + 1) for weight in BOX_WEIGHTS)
    return x, y, w, h


class CascadeRCNNOptions(TwoStageOptions):
    """Options of Cascade R-CNN."""

    foreground: tuple[Share, Share, Share] = (0.5, 0.6, 0.7)
    """Of each stage: overlap (IoU) with an object from which a region learns it."""
    stage_weights: tuple[Weight, Weight, Weight] = (1.0, 0.5, 0.25)
    """Weight of each stage's losses."""
    box_beta: float = Field(default=1.0, gt=0)
    """Where the smooth L1 loss of the box turns from a parabola into a line."""


def cascade_rcnn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    hidden: int = 1024,
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
    assigner: AssignerBuilder | None = None,
    **head: Any,
) -> Detector:
    """Cascade R-CNN on `backbone`; with maps from C2 it is the adaptive one.

    The neck is an FPN with a subsampled extra level, or `neck`; regions are cut from all levels but the extra ones.
    `hidden` is the width of the box heads, `proposals` the regions that the first of them looks at, `train_proposals`
    those among which its training samples. `rpn`, `pool` and `head` are keyword arguments of `RPN`, `RoIPool` and
    `CascadeRCNNHead`. `assigner` is the RPN's.
    """
    neck = neck or FPN(backbone.features, channels=channels, num_extra=num_extra, norm=norm, fusion=fusion)
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    region_pool = RoIPool([f.stride for f in features[: len(features) - num_extra]], **(pool or {}))
    inputs = features[0].channels * region_pool.output**2
    box_heads = [BoxHead(inputs, hidden=hidden, num_classes=len(classes), class_agnostic=True) for _ in range(3)]
    return Detector(
        backbone,
        neck,
        CascadeRCNNHead(
            rpn=proposal_network(
                features,
                anchors=anchors,
                norm=norm,
                proposals=proposals,
                train_proposals=train_proposals,
                options={"assigner": assigner, **(rpn or {})},
            ),
            pool=region_pool,
            box_heads=box_heads,
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )
