"""What a head's `decode_batch` is made of: detection for a whole batch at once, as tensors of fixed shape.

`Head.detect` goes image by image and keeps what is above a threshold, so that its shapes depend on the values. A graph
(ONNX, OpenVINO) cannot hold that. Here the best `pre_nms` candidates of a level are kept for every image, good or bad,
and a score of 0 marks what did not survive. The detections are the same; the tests hold the two against each other.

How to write one, so that the graph serves every batch and every image size and not only those it was traced with:

* never `len(tensor)`, `int(...)`, `.item()` or an `if` on a size: each bakes the traced number into the file. Take `x.shape[0]`;
* sizes in the argument `size` may be symbols: use them in arithmetic only;
* suppression and RoIAlign go through `nms_mask` and `pyramid_roi_align` below (or the functions that call them): the
  exporter knows how to write these two. `register_onnx` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.postprocess import Suppression
from flyspeck.models.roi_align import pyramid_roi_align as eager_roi_align
from flyspeck.models.tiny_suppression import tiny_suppression

Size = tuple[Any, Any]
"""(H, W) of the images in pixels: whole numbers, or symbols for them while a graph is traced."""

Candidates = tuple[Tensor, Tensor, Tensor]
"""Boxes `(B, k, 4)` xyxy pixels, scores `(B, k)` and labels `(B, k)` int64 of one level."""


@dataclass(frozen=True)
class BatchDetections:
    """Of every image of a batch M candidates, in any order: a score of 0 where one did not survive."""

    boxes: Tensor
    """(B, M, 4) xyxy pixels, clipped to the image."""
    scores: Tensor
    """(B, M)"""
    labels: Tensor
    """(B, M) int64."""

    def best(self, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `(B, D, 4)`, scores `(B, D)` and labels `(B, D)` of the `limit` best, best first."""
        scores, order = self.scores.topk(torch.sym_min(limit, self.scores.shape[1]), dim=1)  # type: ignore[arg-type]
        return take_rows(self.boxes, order), scores, self.labels.gather(1, order)


def take_rows(values: Tensor, order: Tensor) -> Tensor:
    """Rows `order (B, k)` of `values (B, A, w)`: `(B, k, w)`."""
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def flatten_level(m: Tensor, width: int) -> Tensor:
    """A map `(B, A*width, H, W)` to `(B, H*W*A, width)` float32: by row, column, anchor."""
    return m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, width).float()


def level_points(m: Tensor, size: Size, offset: float) -> tuple[Tensor, Tensor]:
    """Points `(H_l*W_l, 2)` (x, y) of a map, `offset` cells into each cell, and the cell `(2,)`, in pixels of the image."""
    rows, columns = m.shape[-2], m.shape[-1]
    cell = torch.stack([torch.scalar_tensor(size[1] / columns), torch.scalar_tensor(size[0] / rows)]).to(m.device)
    y = torch.arange(rows, device=m.device, dtype=torch.float32)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=m.device, dtype=torch.float32)[None].expand(rows, columns)
    return (torch.stack([x, y], -1).reshape(-1, 2) + offset) * cell, cell


def level_candidates(scores: Tensor, limit: int, boxes_of: Callable[[Tensor], Tensor], size: Size) -> Candidates:
    """The `limit` best (row, class) pairs of a level's `scores (B, A, K)`; `boxes_of` decodes the rows `(B, k)`."""
    classes = scores.shape[2]
    flat = scores.flatten(1)
    best, pair = flat.topk(torch.sym_min(limit, flat.shape[1]), dim=1)  # type: ignore[arg-type]
    row = torch.div(pair, classes, rounding_mode="floor")
    return box_algebra.clip(boxes_of(row), *size), best, pair - row * classes


def suppress_levels(levels: Sequence[Candidates], num_classes: int, rule: Suppression) -> BatchDetections:
    """The candidates of all levels side by side, suppressed within their class."""
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    if rule.method == "none":
        return BatchDetections(boxes, scores * (scores > rule.score), labels)
    own = labels[:, None, :] == torch.arange(num_classes, device=labels.device)[None, :, None]
    by_class = scores[:, None, :] * own
    mask = nms_mask(boxes, by_class, rule.iou, rule.score, rule.max_detections)
    return _finished(boxes, scores, scores * mask.amax(1), labels, rule)


def suppress_regions(boxes: Tensor, scores: Tensor, rule: Suppression) -> BatchDetections:
    """Boxes `(B, P, K or 1, 4)` and scores `(B, P, K)` of P regions, suppressed within their class."""
    batch, count, classes = scores.shape
    by_class = boxes.expand(batch, count, classes, 4).permute(0, 2, 1, 3)
    scores = scores.permute(0, 2, 1)
    grouped = by_class.reshape(batch * classes, count, 4)
    mask = nms_mask(grouped, scores.reshape(batch * classes, 1, count), rule.iou, rule.score, rule.max_detections)
    kept = (scores * mask.reshape(batch, classes, count)).reshape(batch, -1)
    labels = torch.arange(classes, device=scores.device)[None, :, None].expand(batch, classes, count)
    return _finished(by_class.reshape(batch, -1, 4), scores.reshape(batch, -1), kept, labels.reshape(batch, -1), rule)


def _finished(boxes: Tensor, scores: Tensor, kept: Tensor, labels: Tensor, rule: Suppression) -> BatchDetections:
    """What NMS leaves (`kept`, 0 elsewhere) of the candidates, after the pass that the rule's method adds."""
    if rule.method == "tiny":
        boxes, kept = tiny_suppression(boxes, scores, kept, labels, rule.score, rule.max_detections)
    return BatchDetections(boxes, kept, labels)


def decode_anchored(
    scores: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    *,
    weights: tuple[float, float, float, float],
    size: Size,
    rule: Suppression,
) -> BatchDetections:
    """A dense head on anchors: by level scores `(B, A_l, K)`, delta maps `(B, A*4, H_l, W_l)` and anchors `(A_l, 4)`.

    `weights` scale the deltas as in `boxes.decode`.
    """
    levels: list[Candidates] = []
    for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors, strict=True):
        offsets = flatten_level(level_deltas, 4)

        def boxes_of(row: Tensor, offsets: Tensor = offsets, level_anchors: Tensor = level_anchors) -> Tensor:
            return box_algebra.decode(take_rows(offsets, row), level_anchors[row], weights)

        levels.append(level_candidates(level_scores, rule.pre_nms, boxes_of, size))
    return suppress_levels(levels, scores[0].shape[2], rule)


@torch.library.custom_op("flyspeck::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    """Which candidates survive: `boxes (G, M, 4)`, `scores (G, C, M)` to float `(G, C, M)` of 1 and 0.

    Boxes of a group and class that overlap a better one by more than `iou` do not, nor do scores not above `threshold`, nor
    more than `limit` a group and class. One operator of a graph: ONNX's `NonMaxSuppression`.
    """
    mask = torch.zeros_like(scores)
    for group in range(scores.shape[0]):
        for category in range(scores.shape[1]):
            rows = torch.nonzero(scores[group, category] > threshold).squeeze(1)
            kept = rows[nms(boxes[group, rows], scores[group, category, rows], iou)[:limit]]
            mask[group, category, kept] = 1
    return mask


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("flyspeck::pyramid_roi_align", mutates_args=())
def pyramid_roi_align(
    maps: list[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool
) -> Tensor:
    """`models.roi_align.pyramid_roi_align` as one operator of a graph: ONNX's `RoiAlign`, level by level."""
    return eager_roi_align(maps, regions, level, output, sampling, aligned).contiguous()


@pyramid_roi_align.register_fake
def _(maps: list[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool) -> Tensor:
    return maps[0].new_empty(regions.shape[0], maps[0].shape[1], output, output)


OnnxForm = Callable[[Any], Callable[..., Any]]
"""Takes onnxscript's opset 18 and gives a function of the operator's arguments that builds it of ONNX's operators."""
ONNX_FORMS: dict[str, OnnxForm] = {}
"""How further operators are written in ONNX, by name; filled by `register_onnx`."""


def register_onnx(name: str, form: OnnxForm) -> None:
    """For a head or neck with a step that no graph can hold: `form` is how `flyspeck export` writes the operator `name`.

    `name` is that of a `torch.library.custom_op` of fixed output shape, such as `mine::peaks`; in the method that is exported,
    call it in place of the step (`torch.compiler.is_exporting()` says when).
    """
    if name in ONNX_FORMS and ONNX_FORMS[name] is not form:
        raise UserError(
            f"the operator '{name}' has an ONNX form already", where="register_onnx", fix="name yours otherwise"
        )
    ONNX_FORMS[name] = form
