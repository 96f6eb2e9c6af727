"""FreeAnchor: which anchors learn an object is learnt too. Zhang, Wan, Liu, Ji, Ye, NeurIPS 2019, arXiv:1909.02466.

A RetinaNet whose loss is a likelihood (eq. 8 to 11). Each object has a bag of the 50 anchors that overlap it best; anchor j
matches it with probability

    P_ij = (class probability of the object's class) x exp(-smooth L1 of the offsets)

* Some anchor of the bag must match: -log Mean-max(P_i1 … P_ik), which is their mean while all are small and their maximum once
  one is near 1; Mean-max(x) = sum x_j / (1 - x_j) / sum 1 / (1 - x_j).
* What matches no object is background: a focal loss on (class probability) x (1 - P(j matches)), where P(j matches) rises
  from 0 to 1 between IoU 0.6 and the best IoU of the predicted boxes with the object.

Both are weighed 0.5. The numbers are the paper's and those of its implementation in mmdetection.

Deviations: an anchor that does not overlap its object is no member of the bag (among anchors with IoU 0 the "best" 50 of
a 1 px object would lie anywhere); anchors under ignore regions are no background; objects are counted over all processes.
Not changed, though it starves tiny objects: as long as no predicted box of an object reaches IoU 0.6, all of its anchors
are punished as background while its bag pulls them up.

Numbers: the fusion-factor paper (arXiv:2011.02298, Tables 3 and 4) gives, on TinyPerson with P2-P6 and anchors from 8 px,
AP50_tiny 44.26 and MR50_tiny 89.66, worse than the RetinaNet it is built on (46.56, 88.31). It costs what RetinaNet costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import under_ignored
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.losses import mean_over_processes
from flyspeck.options import Count, Depth, Options, Share, Weight
from flyspeck.types import Targets

_BLOCK = 1 << 24  # overlaps held at once, as in `assign`
_EPS = 1e-7


@dataclass(frozen=True)
class FreeAnchorLoss:
    """The objective of a `RetinaNetHead`: class logits, offsets, anchors and targets to `matching` and `background`."""

    bag: int = 50
    """Anchors of an object that may match it."""
    iou: float = 0.6
    """Overlap of a predicted box from which its anchor may be no background."""
    alpha: float = 0.5
    """Weight of the matching part; that of the background is 1 - alpha."""
    gamma: float = 2.0
    """Of the focal loss."""
    box_weight: float = 0.75
    """Of the offsets in exp(-weight x smooth L1)."""
    box_beta: float = 0.11
    """Of the smooth L1."""

    def __call__(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """`logits (B, A, K)`, `deltas (B, A, 4)` and `anchors (A, 4)` to the two weighted losses."""
        matching, background = logits.sum() * 0, logits.sum() * 0 + deltas.sum() * 0
        for image_logits, image_deltas, target in zip(logits, deltas, targets, strict=True):
            probability = image_logits.sigmoid()
            if len(target.objects):
                matching = matching + self.matching(probability, image_deltas, anchors, target)
            taken = self.taken(image_deltas.detach(), anchors, target, probability.shape[1])
            free = probability * (1 - taken)
            if len(target.ignored):
                free = free * ~under_ignored(anchors, target.ignored)[:, None]
            background = background - (free**self.gamma * torch.log1p(-free.clamp(max=1 - _EPS))).sum()
        count = mean_over_processes(sum(len(t.objects) for t in targets), logits.device)
        return {
            "matching": self.alpha * matching / count,
            "background": (1 - self.alpha) * background / (count * self.bag),
        }

    def matching(self, probability: Tensor, deltas: Tensor, anchors: Tensor, target: Targets) -> Tensor:
        """Sum over an image's objects of -log Mean-max; `probability (A, K)`."""
        rows, member = self.bags(anchors, target.objects)
        objects = target.objects[:, None].expand(*rows.shape, 4)
        goal = box_algebra.encode(objects, anchors[rows])
        distance = F.smooth_l1_loss(deltas[rows], goal, beta=self.box_beta, reduction="none").sum(-1)
        matched = probability[rows, target.object_labels[:, None]] * torch.exp(-self.box_weight * distance)
        return -torch.log(mean_max(matched, member).clamp(min=1e-30)).sum()

    def bags(self, anchors: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the anchors `(N, bag)` of each object `(N, 4)`, best first, and whether each is a member (bool).

        The best one always is, so that an object that no anchor overlaps still has one.
        """
        size = min(self.bag, len(anchors))
        step = max(1, _BLOCK // max(len(anchors), 1))
        best = [
            box_algebra.iou(objects[start : start + step], anchors).topk(size, dim=1)
            for start in range(0, len(objects), step)
        ]
        member = torch.cat([b.values for b in best]) > 0
        member[:, 0] = True
        return torch.cat([b.indices for b in best]), member

    def taken(self, deltas: Tensor, anchors: Tensor, target: Targets, num_classes: int) -> Tensor:
        """`(A, K)` in [0, 1]: how surely each anchor's predicted box is one of the objects of a class."""
        found = torch.zeros(num_classes, len(anchors), device=anchors.device)
        boxes, objects = box_algebra.decode(deltas, anchors), target.objects
        step = max(1, _BLOCK // max(len(anchors), 1))
        for start in range(0, len(objects), step):
            overlap = box_algebra.iou(objects[start : start + step], boxes)
            best = overlap.amax(1, keepdim=True).clamp(min=self.iou + 1e-12)
            share = ((overlap - self.iou) / (best - self.iou).clamp(min=_EPS)).clamp(0, 1)
            label = target.object_labels[start : start + step, None].expand_as(share)
            found.scatter_reduce_(0, label, share, "amax")
        return found.T


def mean_max(values: Tensor, member: Tensor) -> Tensor:
    """`(N, k)` in [0, 1] to `(N,)`: sum of v / (1 - v) over sum of 1 / (1 - v), over the members (bool) of each row."""
    weight = member / (1 - values).clamp(min=1e-12)
    return (weight * values).sum(1) / weight.sum(1)


class FreeAnchorOptions(Options):
    """Options of FreeAnchor: RetinaNet's `depth`, and its own objective in the place of overlaps and losses."""

    depth: Depth = 4
    """Convolutions of each tower: 2 on a laptop."""
    bag: Count = 50
    """Anchors, those that overlap most, among which an object finds its own."""
    iou: float = Field(default=0.6, gt=0, lt=1)
    """Overlap from which a box counts as a detection of an object at all."""
    alpha: Share = 0.5
    """Share of the positive bags in the loss; the negatives have the rest."""
    gamma: float = Field(default=2.0, ge=0)
    """Focus of the negatives' loss on those with high scores."""
    box_weight: Weight = 0.75
    """Weight of the offsets in how well an anchor matches: exp(-weight x smooth L1)."""
    box_beta: float = Field(default=0.11, gt=0)
    """Where the smooth L1 loss of the box turns from a parabola into a line."""


def free_anchor(
    backbone: StagedBackbone,
    *,
    bag: int = 50,
    iou: float = 0.6,
    alpha: float = 0.5,
    gamma: float = 2.0,
    box_weight: float = 0.75,
    box_beta: float = 0.11,
    **options: Any,
) -> Detector:
    """FreeAnchor on `backbone`: `retinanet` with its `options`, trained with a `FreeAnchorLoss` of the other arguments."""
    objective = FreeAnchorLoss(bag=bag, iou=iou, alpha=alpha, gamma=gamma, box_weight=box_weight, box_beta=box_beta)
    return retinanet(backbone, objective=objective, **options)
