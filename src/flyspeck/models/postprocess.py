"""Raw scores and boxes to detections: threshold, top-k, clip, suppress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.models.blocked_nms import batched_nms
from flyspeck.models.soft_nms import SoftMethod, soft_nms
from flyspeck.models.tiny_suppression import one_box_each

Method = Literal["nms", "tiny", "none"]


@dataclass(frozen=True)
class RawDetections:
    """One image's detections as tensors, best score first, in the frame of the batch's image."""

    boxes: Tensor
    """(N, 4) xyxy pixels."""
    scores: Tensor
    """(N,)"""
    labels: Tensor
    """(N,) int64."""


@dataclass(frozen=True)
class Suppression:
    """How many detections leave an image, and which."""

    score: float = 0.05
    """Scores not above this are dropped."""
    iou: float = 0.5
    """Non-maximum suppression within a class: boxes that overlap a better one by more are dropped."""
    pre_nms: int = 1000
    """Best scores kept per pyramid level before the suppression."""
    max_detections: int = 500
    """Kept per image. Crowds of tiny things need more than COCO's 100."""
    soft: SoftMethod | None = None
    """Lower the scores of overlapping boxes instead of dropping them; `iou` is then the linear form's threshold."""
    method: Method = "nms"
    """`tiny`, after NMS: the best box of each tiny object is placed by all candidates, and the others lose score
    (`models.tiny_suppression`). `none`: nothing is suppressed, of a head that says each object once."""


def topk_per_level(scores: Tensor, counts: Sequence[int], limit: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Rows and classes of the candidates of one image: `scores (A, K)`, `counts[l]` rows belong to level l.

    Of each level the `limit` best (row, class) pairs above `threshold` are kept.
    """
    rows, classes, start = [], [], 0
    for count in counts:
        level = scores[start : start + count].reshape(-1)
        picked = torch.nonzero(level > threshold).squeeze(1)
        if len(picked) > limit:
            picked = picked[level[picked].topk(limit).indices]
        rows.append(start + torch.div(picked, scores.shape[1], rounding_mode="floor"))
        classes.append(picked % scores.shape[1])
        start += count
    return torch.cat(rows), torch.cat(classes)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], rule: Suppression) -> RawDetections:
    """Clips `boxes (N, 4)` to an image of `size` (H, W) and suppresses class by class as `rule` says; best score first."""
    boxes = box_algebra.clip(boxes, *size)
    if rule.method == "none":
        best = torch.argsort(scores, descending=True, stable=True)[: rule.max_detections]
        return RawDetections(boxes[best], scores[best], labels[best])
    if rule.soft is not None:
        rows, lowered = soft_nms(
            boxes, scores, labels, method=rule.soft, iou=rule.iou, min_score=rule.score, limit=rule.max_detections
        )
        return RawDetections(boxes[rows], lowered, labels[rows])
    keep = batched_nms(boxes, scores, labels, rule.iou)[: rule.max_detections]
    if rule.method == "tiny":
        keep, moved, after = one_box_each(boxes, scores, labels, keep, rule.score)
        return RawDetections(moved, after, labels[keep])
    return RawDetections(boxes[keep], scores[keep], labels[keep])
