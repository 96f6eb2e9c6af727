"""The box algebra, once, for NumPy arrays and torch tensors alike.

Boxes are `(..., 4)` xyxy in float pixels: half-open, origin top-left, no `+1` anywhere. A function takes and returns the
array type it was given; this module imports NumPy only, so that tiles, merging and exported models run without torch.

Pairwise functions take `(N, 4)` and `(M, 4)` and return `(N, M)`; their names are plain (`iou`). The elementwise twins
take two `(N, 4)` and return `(N,)`; their names start with `paired_`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

Array = Any  # np.ndarray or torch.Tensor, float
EPS = 1e-9


def _namespace(array: Array) -> Any:
    """The module whose functions take `array`: numpy, or torch if a tensor was passed (then it is imported already)."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def area(boxes: Array) -> Array:
    """Area in square pixels, `(..., 4) -> (...)`; a box that is inside out has area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clip(min=0) * (boxes[..., 3] - boxes[..., 1]).clip(min=0)


def size(boxes: Array) -> Array:
    """The field's size of an object: the square root of its area, in pixels."""
    return area(boxes) ** 0.5


def center(boxes: Array) -> Array:
    """Centres `(..., 2)` as (x, y)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def to_xywh(boxes: Array) -> Array:
    """Boxes in xyxy to corner-and-size `[x, y, w, h]`."""
    xp = _namespace(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def clip(boxes: Array, height: float, width: float) -> Array:
    """Boxes cut at the borders of an image of `height` x `width` pixels."""
    xp = _namespace(boxes)
    x, y = boxes[..., 0::2].clip(0, width), boxes[..., 1::2].clip(0, height)
    return xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def _overlap(a: Array, b: Array) -> Array:
    """Intersection area of broadcastable boxes."""
    xp = _namespace(a)
    low, high = xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])
    side = (high - low).clip(min=0)
    return side[..., 0] * side[..., 1]


def intersection(a: Array, b: Array) -> Array:
    """Pairwise intersection area, `(N, M)`."""
    return _overlap(a[:, None, :], b[None, :, :])


def iou(a: Array, b: Array) -> Array:
    """Pairwise intersection over union, `(N, M)`; two empty boxes give 0."""
    shared = intersection(a, b)
    return shared / (area(a)[:, None] + area(b)[None, :] - shared).clip(min=EPS)


def giou(a: Array, b: Array) -> Array:
    """Pairwise generalised IoU in (-1, 1], `(N, M)` (Rezatofighi et al., 2019)."""
    return paired_giou(a[:, None, :], b[None, :, :])


def iod(a: Array, b: Array) -> Array:
    """Pairwise intersection over the area of `a` (the detection, or the anchor), `(N, M)`.

    This is the overlap with an ignore region: how much of the box lies under it.
    """
    return intersection(a, b) / area(a)[:, None].clip(min=EPS)


def paired_intersection(a: Array, b: Array) -> Array:
    """Elementwise intersection area, `(N,)`."""
    return _overlap(a, b)


def paired_iou(a: Array, b: Array) -> Array:
    """Elementwise intersection over union, `(N,)`."""
    shared = _overlap(a, b)
    return shared / (area(a) + area(b) - shared).clip(min=EPS)


def _hull(a: Array, b: Array) -> Array:
    """Smallest boxes around both, elementwise."""
    xp = _namespace(a)
    return xp.concatenate([xp.minimum(a[..., :2], b[..., :2]), xp.maximum(a[..., 2:], b[..., 2:])], -1)


def paired_giou(a: Array, b: Array) -> Array:
    """Elementwise generalised IoU in (-1, 1], `(N,)` (Rezatofighi et al., 2019)."""
    shared = _overlap(a, b)
    union, hull = area(a) + area(b) - shared, area(_hull(a, b))
    return shared / union.clip(min=EPS) - (hull - union) / hull.clip(min=EPS)


def paired_diou(a: Array, b: Array) -> Array:
    """Elementwise distance IoU in (-1, 1], `(N,)` (Zheng et al., 2020): IoU minus the squared distance of the centres
    over the squared diagonal of the hull.
    """
    hull = _hull(a, b)
    diagonal = ((hull[..., 2:] - hull[..., :2]) ** 2).sum(-1)
    distance = ((center(a) - center(b)) ** 2).sum(-1)
    return paired_iou(a, b) - distance / diagonal.clip(min=EPS)


def encode(boxes: Array, anchors: Array, weights: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Array:
    """Regression targets `(dx, dy, dw, dh)` of `boxes` relative to `anchors`, elementwise `(N, 4)` (Faster R-CNN, sec. 3.1.2)."""
    xp = _namespace(boxes)
    anchor_wh, box_wh = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (center(boxes) - center(anchors)) / anchor_wh
    scale = xp.log(box_wh / anchor_wh)
    return xp.stack([shift[..., 0], shift[..., 1], scale[..., 0], scale[..., 1]], -1) * xp.asarray(
        weights, dtype=boxes.dtype, device=boxes.device
    )


def decode(
    deltas: Array,
    anchors: Array,
    weights: tuple[float, float, float, float] = (1, 1, 1, 1),
    max_log_scale: float = 4.135166556742356,
) -> Array:
    """The inverse of `encode`; `dw` and `dh` are capped at `max_log_scale` (ln(1000/16)) so that no box explodes."""
    xp = _namespace(deltas)
    deltas = deltas / xp.asarray(weights, dtype=deltas.dtype, device=deltas.device)
    anchor_wh = anchors[..., 2:] - anchors[..., :2]
    middle = center(anchors) + deltas[..., :2] * anchor_wh
    half = xp.exp(deltas[..., 2:].clip(max=max_log_scale)) * anchor_wh / 2
    return xp.concatenate([middle - half, middle + half], -1)
