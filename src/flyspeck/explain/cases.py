"""Which places of which images to look at: where objects crowd, and where they cover each other. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations

KINDS = ("dense", "occluded")
Window = tuple[int, int, int, int]

_SIDES = 14  # sides of a middling object that a window shows
_SMALLEST, _LARGEST = 48, 192  # px of a window
_COVERED = 0.1  # share of a box under another from which it counts as occluded
_SAME = 0.9  # IoU from which two boxes are one object annotated twice


@dataclass(frozen=True)
class Case:
    """A place worth explaining."""

    kind: str
    """`dense`, `occluded`, `sparse`, or `chosen` for an image that was asked for."""
    row: int
    """Row of the image in its table; -1 where there is none."""
    window: Window
    """(x1, y1, x2, y2) in pixels of the file's image."""
    reason: str
    """Why it was picked, in words."""


def pick_cases(annotations: Annotations, sizes: np.ndarray, count: int) -> list[Case]:
    """Up to `count` cases in turn dense and occluded, the strongest of each kind first, no image twice; then sparse ones.

    Dense: the most objects in one window, two at least. Occluded: the largest sum of covered shares in one window, where a
    box is covered as far as it lies under another object's box (or as far as the table's `vis_ratio` says it is hidden).
    Sparse: any object, in file order. `sizes (I, 2)` are the true (height, width). Fewer come back where there are no more,
    an empty list without objects.
    """
    ranked = {kind: _ranked(annotations, sizes, kind) for kind in KINDS}
    cases: list[Case] = []
    taken: set[int] = set()
    while len(cases) < count and any(ranked.values()):
        for kind in KINDS:
            while ranked[kind] and ranked[kind][0].row in taken:
                ranked[kind].pop(0)
            if ranked[kind] and len(cases) < count:
                cases.append(ranked[kind].pop(0))
                taken.add(cases[-1].row)
    lone = [case for case in _ranked(annotations, sizes, "sparse") if case.row not in taken]
    return cases + lone[: count - len(cases)]


def whole_case(row: int, boxes: np.ndarray, size: tuple[int, int]) -> Case:
    """The case of an image that was asked for: the window around most of its objects, or its middle."""
    side = _side(boxes, size)
    if len(boxes) == 0:
        return Case("chosen", row, _around(np.array([size[1] / 2, size[0] / 2]), side, size), "no objects known")
    middle, amount = _strongest(box_algebra.center(boxes), np.ones(len(boxes)), side)
    return Case("chosen", row, _around(middle, side, size), f"{_objects(amount)} within {side} px")


def covered_shares(boxes: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
    """`(N,)` in [0, 1]: the largest share of each box `(N, 4)` under one other, or what `visible (N,)` says is hidden.

    A box annotated twice (IoU above 0.9) does not cover itself.
    """
    if len(boxes) == 0:
        return np.zeros(0)
    covered = box_algebra.iod(boxes, boxes)
    covered[box_algebra.iou(boxes, boxes) > _SAME] = 0
    shares = covered.max(1)
    if visible is not None:
        known = np.isfinite(visible) & (visible >= 0) & (visible <= 1)
        shares = np.where(known, np.maximum(shares, 1 - np.where(known, visible, 1)), shares)
    return shares


def _ranked(annotations: Annotations, sizes: np.ndarray, kind: str) -> list[Case]:
    """Every image's best window of a kind, the strongest first, in file order where they tie."""
    objects = (annotations.labels >= 0) & ~annotations.ignore & ~annotations.crowd
    objects &= box_algebra.area(annotations.boxes) > 0
    visible = annotations.extra.get("vis_ratio")
    found: list[tuple[float, Case]] = []
    for row, rows in enumerate(annotations):
        mine = np.flatnonzero(objects[rows]) + rows.start
        if len(mine) == 0:
            continue
        boxes, size = annotations.boxes[mine], (int(sizes[row][0]), int(sizes[row][1]))
        side = _side(boxes, size)
        weights = np.ones(len(mine))
        if kind == "occluded":
            weights = covered_shares(boxes, None if visible is None else visible[mine].astype(np.float64))
            weights = np.where(weights >= _COVERED, weights, 0)
        middle, amount = _strongest(box_algebra.center(boxes), weights, side)
        if amount <= (1 if kind == "dense" else 0):
            continue
        window = _around(middle, side, size)
        if kind != "occluded":
            reason = f"{_objects(amount)} within {side} px"
        else:
            reason = f"{_objects((weights > 0).sum())} covered by another, at most {100 * weights.max():.0f} %"
        found.append((amount, Case(kind, row, window, reason)))
    return [case for _, case in sorted(found, key=lambda pair: 0 if kind == "sparse" else -pair[0])]


def _objects(count: float) -> str:
    return f"{int(count)} object{'s' * (int(count) != 1)}"


def _side(boxes: np.ndarray, size: tuple[int, int]) -> int:
    """Side in pixels of a window that shows a middling object and its neighbours: at most half of a small image."""
    middling = float(np.median(box_algebra.size(boxes))) if len(boxes) else 8.0
    most = min(_LARGEST, max(_SMALLEST, min(size) // 2))
    return int(min(np.clip(_SIDES * middling, _SMALLEST, most), *size))


def _strongest(centres: np.ndarray, weights: np.ndarray, side: float) -> tuple[np.ndarray, float]:
    """The middle of the group of centres `(N, 2)` within one window that weighs most, and its weight."""
    near = np.asarray((np.abs(centres[:, None] - centres[None]) <= side / 2).all(2))
    sums = (near * weights[None]).sum(1) * (weights > 0)
    best = int(sums.argmax())
    group = near[best, :] & (weights > 0)
    return centres[group].mean(0) if group.any() else centres[best], float(sums[best])


def _around(middle: np.ndarray, side: int, size: tuple[int, int]) -> Window:
    """The square window of `side` about `middle` (x, y), moved into an image of `size` (H, W)."""
    x1 = int(np.clip(round(float(middle[0]) - side / 2), 0, max(0, size[1] - side)))
    y1 = int(np.clip(round(float(middle[1]) - side / 2), 0, max(0, size[0] - side)))
    return x1, y1, min(x1 + side, size[1]), min(y1 + side, size[0])
