"""Region proposal network. Ren et al., 2015, arXiv:1506.01497, on a pyramid (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorBuilder, AnchorGrid, strided_anchors
from flyspeck.models.assign import sample_balanced
from flyspeck.models.assigners.base import Priors
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.assigners.max_iou import MaxIoU
from flyspeck.models.assigners.nwd import AITOD_SIZE, nwd_loss
from flyspeck.models.batch_decoding import Size, flatten_level, nms_mask, take_rows
from flyspeck.models.blocked_nms import batched_nms
from flyspeck.models.detector import DenseOutputs
from flyspeck.models.layers import ConvTower, NormBuilder, flatten_levels, init_normal
from flyspeck.models.losses import mean_over_processes, smooth_l1
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Count, Depth, Positive, Share, Thresholds, Weight
from flyspeck.types import FeatureSpec, Targets

_FLOOR = -1e9  # below any logit
_NONE = -2e9
NegativeWeight = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(anchors (A, 4), objectness logits (A,), objects (N, 4)) to sampling weights (A,) of the negatives."""


@dataclass(frozen=True)
class ProposalRule:
    """How many proposals leave the RPN."""

    pre_nms: int = 1000
    """Best anchors kept per level."""
    iou: float = 0.7
    """Suppression among the proposals of a level."""
    keep: int = 1000
    """Proposals per image."""
    min_size: float = 1e-3
    """Proposals with a shorter side, in pixels, are dropped."""


class RPNOptions(Thresholds):
    """Options of the region proposal network."""

    depth: Depth = 1
    """Convolutions before the two outputs."""
    samples: Count = 256
    """Anchors an image that the losses are taken of."""
    positive_share: Share = 0.5
    """Share of the samples that may show an object."""
    foreground: Share = 0.7
    """Overlap (IoU) with an object from which an anchor learns it."""
    background: Share = 0.3
    """Overlap (IoU) below which an anchor is background; between the two it learns nothing."""
    box_loss: Literal["smooth_l1", "nwd"] = "smooth_l1"
    """`smooth_l1` on the offsets, or the normalised Wasserstein distance of the decoded boxes."""
    box_weight: Weight = 1.0
    """Weight of the box loss against the objectness."""
    nwd_constant: Positive = AITOD_SIZE
    """C in px of `nwd`: about the mean size of the objects."""


class RPN(nn.Module):
    """Objectness and box offsets for every anchor, and the proposals made of them.

    `assigner` is given the thresholds `foreground` and `background` and decides which anchor learns which object (default:
    `MaxIoU`). `box_loss` is `smooth_l1` on the offsets or `nwd` on the decoded boxes, with `nwd_constant` in px.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        anchors: AnchorGrid,
        depth: int = 1,
        norm: NormBuilder | None = None,
        train_rule: ProposalRule | None = None,
        test_rule: ProposalRule | None = None,
        samples: int = 256,
        positive_share: float = 0.5,
        foreground: float = 0.7,
        background: float = 0.3,
        negative_weight: NegativeWeight | None = None,
        assigner: AssignerBuilder | None = None,
        box_loss: Literal["smooth_l1", "nwd"] = "smooth_l1",
        box_weight: float = 1.0,
        nwd_constant: float = AITOD_SIZE,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.train_rule = train_rule or ProposalRule(pre_nms=2000, keep=1000)
        self.test_rule = test_rule or ProposalRule()
        self.samples, self.positive_share = samples, positive_share
        self.assigner = (assigner or MaxIoU)(foreground=foreground, background=background)
        self.box_loss, self.box_weight, self.nwd_constant = box_loss, box_weight, nwd_constant
        self.negative_weight = negative_weight
        channels = features[0].channels
        self.tower = ConvTower(channels, depth, levels=len(features), norm=norm)
        self.objectness = nn.Conv2d(channels, anchors.num_per_cell, 1)
        self.box_deltas = nn.Conv2d(channels, anchors.num_per_cell * 4, 1)
        init_normal(self.objectness)
        init_normal(self.box_deltas)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid maps to objectness logits `(B, A, H_l, W_l)` and deltas `(B, A*4, H_l, W_l)` per level.

        Maps beyond the anchors' levels are for the second stage alone.
        """
        towers = [self.tower(m, i) for i, m in enumerate(maps[: len(self.anchors.shapes)])]
        return [self.objectness(t) for t in towers], [self.box_deltas(t) for t in towers]

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """The anchors of all levels, for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        return Priors.on_levels(self.anchors(map_sizes, padded, device), counts)

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """See `AssigningPart`: of all anchors, before the sampling."""
        priors = self.priors(map_sizes, padded, target.boxes.device)
        return self.assigner(priors, target.objects, target.ignored)

    def propose(
        self,
        maps: Sequence[Tensor],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals `(P, 4)` of each image, best first; with `targets`, by the training rule, and the losses."""
        logits, deltas = self(maps)
        map_sizes = [m.shape[-2:] for m in logits]
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        flat_logits, flat_deltas = flatten_levels(logits, 1)[..., 0], flatten_levels(deltas, 4)
        priors = self.priors(map_sizes, padded, flat_logits.device)
        anchors = priors.boxes
        rule = self.test_rule if targets is None else self.train_rule
        proposals = [
            select_proposals(image_logits, image_deltas, anchors, counts, size, rule)
            for image_logits, image_deltas, size in zip(flat_logits.detach(), flat_deltas.detach(), sizes, strict=True)
        ]
        losses = {} if targets is None else self._losses(flat_logits, flat_deltas, priors, targets)
        return proposals, losses

    def propose_batch(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """`propose` for a graph (`models.batch_decoding`): boxes `(B, P, 4)`, best first, and `(B, P)` 1 where there is one."""
        logits, deltas = self(maps)
        rule = self.test_rule
        boxes, scores = [], []
        for level_logits, level_deltas, anchors in zip(
            logits, deltas, self.anchors.levels_of(logits, size), strict=True
        ):
            flat = flatten_level(level_logits, 1)[..., 0]
            best, row = flat.topk(torch.sym_min(rule.pre_nms, flat.shape[1]), dim=1)  # type: ignore[arg-type]
            found = box_algebra.decode(take_rows(flatten_level(level_deltas, 4), row), anchors[row])
            found = box_algebra.clip(found, *size)
            sides = found[..., 2:] - found[..., :2]
            best = torch.where(sides.amin(-1) >= rule.min_size, best, _NONE)
            mask = nms_mask(found, best[:, None], rule.iou, _FLOOR, rule.keep)[:, 0]
            boxes.append(found)
            scores.append(torch.where(mask > 0, best, _NONE))
        score = torch.cat(scores, 1)
        best, order = score.topk(torch.sym_min(rule.keep, score.shape[1]), dim=1)  # type: ignore[arg-type]
        return take_rows(torch.cat(boxes, 1), order), (best > _FLOOR).float()

    def output_rows(self) -> Mapping[str, OutputRows]:
        """For `Head.output_rows` of a head of two stages."""
        shapes = self.anchors.shapes[0]
        return {
            "objectness": OutputRows(("anchors",), shapes),
            "box_deltas": OutputRows(("anchors", "values"), shapes),
        }

    def dense_outputs(self, raw: tuple[list[Tensor], list[Tensor]]) -> DenseOutputs:
        """For `Head.dense_outputs` of a head of two stages: objectness and offsets of every anchor."""
        logits, deltas = raw
        return DenseOutputs(flatten_levels(logits, 1), flatten_levels(deltas, 4), per_class=False)

    def _losses(self, logits: Tensor, deltas: Tensor, priors: Priors, targets: Sequence[Targets]) -> dict[str, Tensor]:
        anchors = priors.boxes
        objectness, box = logits.sum() * 0, deltas.sum() * 0
        sampled = 0
        for image_logits, image_deltas, target in zip(logits, deltas, targets, strict=True):
            assigned = self.assigner(priors, target.objects, target.ignored)
            weight = None
            if self.negative_weight is not None:
                weight = self.negative_weight(anchors, image_logits.detach(), target.objects)
            rows = sample_balanced(
                assigned, count=self.samples, positive_share=self.positive_share, negative_weight=weight
            )
            wanted = (assigned[rows] >= 0).to(logits.dtype)
            objectness = objectness + F.binary_cross_entropy_with_logits(image_logits[rows], wanted, reduction="sum")
            positive = rows[wanted > 0]
            objects = target.objects[assigned[positive]]
            box = box + self._box_loss(image_deltas[positive], anchors[positive], objects)
            sampled += len(rows)
        total = mean_over_processes(sampled, logits.device)
        return {"rpn_objectness": objectness / total, "rpn_box": box * self.box_weight / total}

    def _box_loss(self, deltas: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
        if self.box_loss == "nwd":
            return nwd_loss(box_algebra.decode(deltas, anchors), objects, constant=self.nwd_constant)
        return smooth_l1(deltas, box_algebra.encode(objects, anchors), beta=1 / 9)


def select_proposals(
    logits: Tensor, deltas: Tensor, anchors: Tensor, counts: Sequence[int], size: tuple[int, int], rule: ProposalRule
) -> Tensor:
    """Proposals `(P, 4)` of one image from `logits (A,)` and `deltas (A, 4)`, suppressed within each level."""
    rows, levels, start = [], [], 0
    for level, count in enumerate(counts):
        best = logits[start : start + count].topk(min(rule.pre_nms, count)).indices + start
        rows.append(best)
        levels.append(torch.full_like(best, level))
        start += count
    row, level = torch.cat(rows), torch.cat(levels)
    boxes = box_algebra.clip(box_algebra.decode(deltas[row], anchors[row]), *size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = torch.nonzero((sides >= rule.min_size).all(1)).squeeze(1)
    boxes, level, score = boxes[kept], level[kept], logits[row[kept]]
    return boxes[batched_nms(boxes, score, level, rule.iou)[: rule.keep]]


def proposal_network(
    features: Sequence[FeatureSpec],
    *,
    anchors: AnchorBuilder | None,
    norm: NormBuilder | None,
    proposals: int,
    train_proposals: int,
    options: Mapping[str, Any],
) -> RPN:
    """The RPN of a detector with two stages, on a pyramid of `features`.

    `anchors` makes its anchors (default: `strided_anchors`), `proposals` and `train_proposals` are the regions an image that
    the second stage looks at, and those among which it samples in training. `options` are keyword arguments of `RPN`.
    """
    return RPN(
        features,
        anchors=(anchors or strided_anchors)(features),
        norm=norm,
        train_rule=ProposalRule(pre_nms=2 * train_proposals, keep=train_proposals),
        test_rule=ProposalRule(pre_nms=proposals, keep=proposals),
        **options,
    )
