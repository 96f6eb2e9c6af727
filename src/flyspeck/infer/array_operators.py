"""The steps of a detector that runtimes of small boards lack, in NumPy: suppression and RoIAlign. No torch here.

They are the operators of `models.batch_decoding`, by the same names and with the same arguments, and give the same up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck import one_object
from flyspeck.boxes import EPS

MOST, VOTERS, ROUNDS = 1000, 2000, 16
"""Those of `models.tiny_suppression`, which says why; `tests/infer/test_array_operators.py` holds the two together."""


def nms_mask(boxes: np.ndarray, scores: np.ndarray, iou: float, threshold: float, limit: int) -> np.ndarray:
    """Which candidates survive: boxes `(G, M, 4)`, scores `(G, C, M)` to float32 `(G, C, M)` of 1 and 0."""
    mask = np.zeros(scores.shape, np.float32)
    for group, classes in enumerate(scores):
        for category, own in enumerate(classes):
            rows = np.flatnonzero(own > threshold)
            rows = rows[np.argsort(-own[rows], kind="stable")]
            mask[group, category, rows[_greedy(boxes[group, rows], iou, limit)]] = 1
    return mask


def _greedy(boxes: np.ndarray, iou: float, limit: int) -> np.ndarray:
    """Rows of `boxes`, best first, that no better one kept overlaps by more than `iou`."""
    area = box_algebra.area(boxes)
    alive, kept = np.ones(len(boxes), bool), []
    for row in range(len(boxes)):
        if not alive[row]:
            continue
        kept.append(row)
        if len(kept) == limit:
            break
        others = row + 1 + np.flatnonzero(alive[row + 1 :])
        shared = box_algebra.paired_intersection(boxes[row], boxes[others])
        with np.errstate(invalid="ignore"):  # two boxes without area: not a number, which is above nothing
            overlap = shared / (area[row] + area[others] - shared)
        alive[others] = ~(overlap.astype(np.float64) > iou)  # as torchvision compares
    return np.array(kept, np.int64)


def tiny_suppression(
    boxes: np.ndarray, scores: np.ndarray, kept: np.ndarray, labels: np.ndarray, threshold: float, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(B, M, 4)` and scores `(B, M)` after the pass that leaves one box on each tiny object (`flyspeck.one_object`)."""
    moved, left = boxes.copy(), np.zeros_like(kept)
    for image in range(len(boxes)):
        rows = np.flatnonzero(scores[image] > threshold)
        best = np.argsort(-kept[image, rows], kind="stable")
        best = best[kept[image, rows][best] > 0][:limit]
        stay, places, after = _one_box_each(
            boxes[image, rows], scores[image, rows], labels[image, rows], best, threshold
        )
        moved[image, rows[stay]] = places
        left[image, rows[stay]] = after
    return moved, left


def _one_box_each(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`models.tiny_suppression.one_box_each`."""
    head, moved, after = kept[:MOST], boxes[kept], scores[kept].copy()
    i, j = np.nonzero(np.triu(_meeting(boxes[head], labels[head], boxes[head], labels[head]), 1))
    a, b = boxes[head[i]], boxes[head[j]]
    same = one_object.is_one(box_algebra.paired_intersection(a, b), box_algebra.area(a), box_algebra.area(b))
    stays = _settled(i[same], j[same], len(head))
    voters = np.argsort(-scores, kind="stable")[:VOTERS]
    best = np.flatnonzero(stays)
    rows = head[best]
    moved[best] = _placed(boxes[rows], labels[rows], boxes[voters], labels[voters], scores[voters])
    after[: len(head)] *= np.where(stays, 1, one_object.DUPLICATE).astype(after.dtype)
    order = np.argsort(-after, kind="stable")
    order = order[after[order] > threshold]
    return kept[order], moved[order], after[order]


def _meeting(boxes: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> np.ndarray:
    meet = labels[:, None] == other_labels[None]
    for low, high in ((0, 2), (1, 3)):
        meet &= boxes[:, None, low] < others[None, :, high]
        meet &= others[None, :, low] < boxes[:, None, high]
    return meet


def _settled(i: np.ndarray, j: np.ndarray, number: int) -> np.ndarray:
    stays = np.ones(number, bool)
    for _ in range(ROUNDS):
        before, stays = stays, np.ones(number, bool)
        stays[j[before[i]]] = False
        if (stays == before).all():
            break
    return stays


def _placed(
    boxes: np.ndarray, labels: np.ndarray, voters: np.ndarray, voter_labels: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    i, j = np.nonzero(_meeting(boxes, labels, voters, voter_labels))
    a, b = boxes[i], voters[j]
    weight = one_object.vote(box_algebra.paired_iou(a, b)) * scores[j]
    total = np.bincount(i, weight, len(boxes)).clip(min=EPS)
    shift = np.stack([np.bincount(i, weight * (b - a)[:, side], len(boxes)) for side in range(4)], 1)
    return (boxes + shift / total[:, None]).astype(boxes.dtype)


def pyramid_roi_align(
    maps: Sequence[np.ndarray], regions: np.ndarray, level: np.ndarray, output: int, sampling: int, aligned: bool
) -> np.ndarray:
    """RoIAlign of regions `(R, 5)` (image, x1, y1, x2, y2 in cells of the map that `level (R,)` names): `(R, C, S, S)` float32.

    `maps` are `(B, C, H_l, W_l)`; each of the `S`x`S` bins, S being `output`, is the mean of `sampling`x`sampling` points.
    """
    pooled = np.zeros((len(regions), maps[0].shape[1], output, output), np.float32)
    for number, cells in enumerate(maps):
        rows = np.flatnonzero(level == number)
        if not len(rows):
            continue
        own = regions[rows].astype(np.float32)
        across, left = _axis(own[:, 1], own[:, 3], cells.shape[3], output, sampling, aligned)
        down, top = _axis(own[:, 2], own[:, 4], cells.shape[2], output, sampling, aligned)
        for place, row in enumerate(rows.tolist()):
            image = cells[int(own[place, 0])]
            # (C, S, k, W) by rows, then (C, S, S): sums of k weighted cells along each axis.
            strips = np.einsum("csku,sk->csu", image[:, top[place]], down[place])
            pooled[row] = np.einsum("cstk,tk->cst", strips[:, :, left[place]], across[place])
    return pooled


def _axis(
    low: np.ndarray, high: np.ndarray, size: int, output: int, sampling: int, aligned: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis the weights `(R, S, 2 * sampling)` of the cells that each bin reads, and those cells.

    Points up to one cell outside the map read its border, points farther off read nothing.
    """
    if aligned:
        low, high = low - np.float32(0.5), high - np.float32(0.5)
    side = high - low if aligned else (high - low).clip(min=1)
    step = (side / np.float32(output))[:, None, None]
    within = np.arange(sampling, dtype=np.float32) + np.float32(0.5)
    point = (
        low[:, None, None] + np.arange(output, dtype=np.float32)[:, None] * step + within * step / np.float32(sampling)
    )
    inside = (point >= -1) & (point <= size)
    point = point.clip(0, size - 1)
    cell = np.floor(point)
    share = inside.astype(np.float32) / np.float32(sampling)
    weights = np.stack([(1 - (point - cell)) * share, (point - cell) * share], -1)
    cell = cell.astype(np.int64)
    cells = np.stack([cell, np.minimum(cell + 1, size - 1)], -1)
    shape = (len(low), output, 2 * sampling)
    return weights.reshape(shape), cells.reshape(shape)


ARRAY_OPERATORS: dict[str, Callable[..., Any]] = {
    "nms_mask": nms_mask,
    "pyramid_roi_align": pyramid_roi_align,
    "tiny_suppression": tiny_suppression,
}
"""By the names that a plan has them under (`flyspeck.export.stages`)."""
