"""Each head's decoding for a whole batch at once, as tensors of fixed shape: the form that a graph can hold.

Heads detect image by image and keep what is above a threshold, which makes shapes depend on data. Here the best
`pre_nms` candidates of a level are kept for every image, good or bad, and the suppression drops what is not above the
threshold. The detections are the same; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.export.operators import nms_mask, pyramid_roi_align
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.detector import Head
from flyspeck.models.heads import faster_rcnn, ssd
from flyspeck.models.heads.cascade_rcnn import CascadeRCNNHead, stage_box_weights
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead
from flyspeck.models.heads.fcos import FCOSHead
from flyspeck.models.heads.reppoints import NUM_POINTS, RepPointsHead
from flyspeck.models.heads.retinanet import RetinaNetHead
from flyspeck.models.heads.roi import RoIPool
from flyspeck.models.heads.rpn import RPN
from flyspeck.models.heads.ssd import SSDHead
from flyspeck.models.postprocess import Suppression

Size = tuple[Any, Any]
"""(H, W), whole numbers or symbols for them."""
_FLOOR = -1e9  # below any logit
_UNDECIDED = -2e9


@dataclass(frozen=True)
class Kept:
    """What survived among the candidates of each image: a score of 0 where one did not."""

    boxes: Tensor
    """(B, M, 4) xyxy pixels, clipped."""
    scores: Tensor
    """(B, M)"""
    labels: Tensor
    """(B, M) int64."""

    def best(self, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `(B, D, 4)`, scores `(B, D)` and labels `(B, D)` of the `limit` best, best first."""
        scores, order = self.scores.topk(torch.sym_min(limit, self.scores.shape[1]), dim=1)
        return _rows(self.boxes, order), scores, self.labels.gather(1, order)


def decode(head: Head, maps: Sequence[Tensor], size: Size) -> Kept:
    """Detections of any head from its maps and the (H, W) of the images; raises UserError for one that has no export."""
    if type(head) not in DECODERS:
        raise UserError(f"{type(head).__name__} has no export", where="model", fix="use the run folder itself")
    return DECODERS[type(head)](head, maps, size)


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """Rows `order (B, k)` of `values (B, A, w)`: `(B, k, w)`."""
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def _flat(m: Tensor, width: int) -> Tensor:
    """A map `(B, A*width, H, W)` to `(B, H*W*A, width)` float32: by row, column, anchor."""
    return m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, width).float()


def _candidates(
    scores: Tensor, limit: int, boxes_of: Callable[[Tensor], Tensor], size: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (row, class) pairs of a level's `scores (B, A, K)`: boxes `(B, k, 4)`, scores and labels `(B, k)`."""
    classes = scores.shape[2]
    flat = scores.flatten(1)
    best, pair = flat.topk(torch.sym_min(limit, flat.shape[1]), dim=1)
    row = torch.div(pair, classes, rounding_mode="floor")
    return box_algebra.clip(boxes_of(row), *size), best, pair - row * classes


def _suppressed(levels: Sequence[tuple[Tensor, Tensor, Tensor]], classes: int, rule: Suppression) -> Kept:
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    own = labels[:, None, :] == torch.arange(classes, device=labels.device)[None, :, None]
    by_class = scores[:, None, :] * own
    mask = nms_mask(boxes, by_class, rule.iou, rule.score, rule.max_detections)
    return Kept(boxes, scores * mask.amax(1), labels)


def _fcos(head: FCOSHead, maps: Sequence[Tensor], size: Size) -> Kept:
    levels = []
    for logits, distances, central in zip(*head(maps), strict=True):
        scores = _flat(logits, head.num_classes).sigmoid() * _flat(central, 1).sigmoid()
        if head.geometric_mean:
            scores = scores.sqrt()
        points, cell = _points(logits, size, head.offset)
        sides, cells = _flat(distances, 4), torch.cat([cell, cell])

        def boxes_of(row: Tensor, points: Tensor = points, sides: Tensor = sides, cells: Tensor = cells) -> Tensor:
            point, reach = points[row], _rows(sides, row) * cells
            return torch.cat([point - reach[..., :2], point + reach[..., 2:]], -1)

        levels.append(_candidates(scores, head.suppression.pre_nms, boxes_of, size))
    return _suppressed(levels, head.num_classes, head.suppression)


def _reppoints(head: RepPointsHead, maps: Sequence[Tensor], size: Size) -> Kept:
    levels = []
    logits, _, refined = head(maps)
    for level_logits, level_points in zip(logits, refined, strict=True):
        centers, cell = _points(level_logits, size, head.offset)
        shapes = _flat(level_points, 2 * NUM_POINTS)
        boxes = head.boxes(shapes, centers, cell.expand(centers.shape[0], 2))

        def boxes_of(row: Tensor, boxes: Tensor = boxes) -> Tensor:
            return _rows(boxes, row)

        scores = _flat(level_logits, head.num_classes).sigmoid()
        levels.append(_candidates(scores, head.suppression.pre_nms, boxes_of, size))
    return _suppressed(levels, head.num_classes, head.suppression)


def _points(m: Tensor, size: Size, offset: float) -> tuple[Tensor, Tensor]:
    """Points `(H_l*W_l, 2)` (x, y) of a map and its cell `(2,)`, in pixels of images of `size`."""
    rows, columns = m.shape[-2], m.shape[-1]
    cell = torch.stack([torch.scalar_tensor(size[1] / columns), torch.scalar_tensor(size[0] / rows)])
    y = torch.arange(rows, device=m.device, dtype=torch.float32)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=m.device, dtype=torch.float32)[None].expand(rows, columns)
    return (torch.stack([x, y], -1).reshape(-1, 2) + offset) * cell, cell


def _anchors(grid: AnchorGrid, maps: Sequence[Tensor], size: Size) -> list[Tensor]:
    """Anchors `(A_l, 4)` of each level."""
    return [
        grid.level(shapes, (m.shape[-2], m.shape[-1]), size, m.device)
        for shapes, m in zip(grid.shapes, maps, strict=True)
    ]


def _retinanet(head: RetinaNetHead, maps: Sequence[Tensor], size: Size) -> Kept:
    logits, deltas = head(maps)
    scores = [_flat(m, head.num_classes).sigmoid() for m in logits]
    return _anchored(scores, deltas, _anchors(head.anchors, logits, size), (1, 1, 1, 1), size, head)


def _ssd(head: SSDHead, maps: Sequence[Tensor], size: Size) -> Kept:
    logits, deltas = head(maps)
    scores = [_flat(m, head.num_classes + 1).softmax(-1)[..., : head.num_classes] for m in logits]
    priors = head.priors.levels([(m.shape[-2], m.shape[-1]) for m in logits], size, logits[0].device)
    return _anchored(scores, deltas, priors, ssd.BOX_WEIGHTS, size, head)


def _anchored(
    scores: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    weights: tuple[float, float, float, float],
    size: Size,
    head: RetinaNetHead | SSDHead,
) -> Kept:
    """Levels of `scores[l] (B, A_l, K)`, delta maps and `anchors[l] (A_l, 4)` to what survives."""
    levels = []
    for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors, strict=True):
        offsets = _flat(level_deltas, 4)

        def boxes_of(row: Tensor, offsets: Tensor = offsets, level_anchors: Tensor = level_anchors) -> Tensor:
            return box_algebra.decode(_rows(offsets, row), level_anchors[row], weights)

        levels.append(_candidates(level_scores, head.suppression.pre_nms, boxes_of, size))
    return _suppressed(levels, head.num_classes, head.suppression)


def proposals(rpn: RPN, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """`RPN.propose` for a batch: boxes `(B, P, 4)`, best first, and `(B, P)` whether they are any (1 or 0)."""
    logits, deltas = rpn(maps)
    rule = rpn.test_rule
    boxes, scores = [], []
    for level_logits, level_deltas, anchors in zip(logits, deltas, _anchors(rpn.anchors, logits, size), strict=True):
        flat = _flat(level_logits, 1)[..., 0]
        best, row = flat.topk(torch.sym_min(rule.pre_nms, flat.shape[1]), dim=1)
        found = box_algebra.clip(box_algebra.decode(_rows(_flat(level_deltas, 4), row), anchors[row]), *size)
        sides = found[..., 2:] - found[..., :2]
        best = torch.where(sides.amin(-1) >= rule.min_size, best, _UNDECIDED)
        mask = nms_mask(found, best[:, None], rule.iou, _FLOOR, rule.keep)[:, 0]
        boxes.append(found)
        scores.append(torch.where(mask > 0, best, _UNDECIDED))
    score = torch.cat(scores, 1)
    best, order = score.topk(torch.sym_min(rule.keep, score.shape[1]), dim=1)
    return _rows(torch.cat(boxes, 1), order), (best > _FLOOR).float()


def _pooled(pool: RoIPool, maps: Sequence[Tensor], regions: Tensor, size: Size) -> Tensor:
    """`RoIPool` for a batch: `regions (B, P, 4)` to `(B*P, C, S, S)`."""
    batch, count = regions.shape[0], regions.shape[1]
    image = torch.arange(batch, device=regions.device, dtype=torch.float32)[:, None, None].expand(batch, count, 1)
    level = pool.level_of(regions)
    ratios = []
    for m in maps[: len(pool.strides)]:
        x, y = torch.scalar_tensor(m.shape[-1] / size[1]), torch.scalar_tensor(m.shape[-2] / size[0])
        ratios.append(torch.stack([x, y, x, y]))
    ratio = torch.stack(ratios)[level]
    rois = torch.cat([image, regions * ratio], -1).reshape(-1, 5)
    own = [m.float() for m in maps[: len(pool.strides)]]
    return pyramid_roi_align(own, rois, level.reshape(-1), pool.output, pool.sampling, pool.aligned)


def _faster_rcnn(head: FasterRCNNHead, maps: Sequence[Tensor], size: Size) -> Kept:
    regions, alive = proposals(head.rpn, maps, size)
    logits, deltas = head.box_head(_pooled(head.pool, maps, regions, size))
    batch, count = regions.shape[0], regions.shape[1]
    scores = logits.softmax(-1)[:, : head.num_classes].reshape(batch, count, -1) * alive[..., None]
    deltas = deltas.reshape(batch, count, -1, 4)
    boxes = box_algebra.decode(deltas, regions[:, :, None, :], faster_rcnn.BOX_WEIGHTS)
    return _by_class(box_algebra.clip(boxes, *size), scores, head.suppression)


def _cascade_rcnn(head: CascadeRCNNHead, maps: Sequence[Tensor], size: Size) -> Kept:
    regions, alive = proposals(head.rpn, maps, size)
    batch, count = regions.shape[0], regions.shape[1]
    scores = torch.zeros(1, device=regions.device)
    for stage, box_head in enumerate(head.box_heads):
        logits, deltas = box_head(_pooled(head.pool, maps, regions, size))
        scores = scores + logits.softmax(-1)[:, : head.num_classes] / len(head.box_heads)
        moved = box_algebra.decode(deltas.reshape(batch, count, 4), regions, stage_box_weights(stage))
        regions = box_algebra.clip(moved, *size)
    scores = scores.reshape(batch, count, -1) * alive[..., None]
    return _by_class(regions[:, :, None, :], scores, head.suppression)


def _by_class(boxes: Tensor, scores: Tensor, rule: Suppression) -> Kept:
    """Boxes `(B, P, K or 1, 4)` and scores `(B, P, K)`: every class of an image is suppressed as a group of its own."""
    batch, count, classes = scores.shape
    by_class = boxes.expand(batch, count, classes, 4).permute(0, 2, 1, 3)
    scores = scores.permute(0, 2, 1)
    grouped = by_class.reshape(batch * classes, count, 4)
    mask = nms_mask(grouped, scores.reshape(batch * classes, 1, count), rule.iou, rule.score, rule.max_detections)
    kept = scores * mask.reshape(batch, classes, count)
    labels = torch.arange(classes, device=scores.device)[None, :, None].expand(batch, classes, count)
    return Kept(by_class.reshape(batch, -1, 4), kept.reshape(batch, -1), labels.reshape(batch, -1))


DECODERS: dict[type[Head], Callable[[Any, Sequence[Tensor], Size], Kept]] = {
    FCOSHead: _fcos,
    RetinaNetHead: _retinanet,
    SSDHead: _ssd,
    RepPointsHead: _reppoints,
    FasterRCNNHead: _faster_rcnn,
    CascadeRCNNHead: _cascade_rcnn,
}
