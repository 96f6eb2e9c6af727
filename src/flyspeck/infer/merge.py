"""One list of boxes out of overlapping tiles: each object once, its neighbours untouched.

What is different from running NMS over everything:

* Two boxes of *one* tile are never compared: the detector has judged them already, so a crowd keeps at a seam exactly the
  neighbours that it keeps elsewhere (`MergeRule.within_tile` turns this off).
* Every point of the image belongs to the tile that sees it farthest from its border: between two neighbours the middle of
  their overlap divides. A box with its centre in another tile's part is no object of its own (`MergeRule.owned`): that tile has
  judged the place with more around it, while a network's answers near a border are worse. It is a witness: if it is not cut and
  farther from its tile's border than a tenth of its longer side, a box of the other tile that it overlaps takes the better of
  the two scores, and is placed by both where the method places by several (`MergeRule.witnesses`). An object that is whole in
  some tile is whole in the tile that its centre belongs to, whatever its size: if it ends before that tile's border, its half is
  shorter than the way from its centre to the border, hence than the way to the other side of the overlap.
* A box that its tile's border cut (`flyspeck.infer.tiles.is_cut`) comes after every whole one, whatever the scores, and
  yields to a whole box of another tile that explains it: the whole box, as far as the cut one's tile could see it, has
  an IoU of at least `threshold` with it, or covers half of it or more. Classes do not matter here: half a car may well look
  like a bicycle.
* Ties are broken by content (class, coordinates, tile), so neither the order of tiles nor threads show in the result.

The search for overlaps is near-linear (`flyspeck.infer.pairs`), greedy suppression runs in vectorised rounds.

`merge_tiles` is the other merge: the rule of TinyBenchmark and huicv, for numbers to be compared with published ones.

Sources: NMM after SAHI (Akyon et al., 2022); soft-NMS: Bodla et al., 2017, the Gaussian form (eq. 3); weighted fusion:
Solovyev et al., 2021, eq. 1, with two deviations: a group forms around its best box rather than around the running mean,
and it keeps the best score instead of the mean times the share of models, as how many tiles see an object depends on
where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck import one_object
from flyspeck.errors import UserError, nearest
from flyspeck.evaluate.merging import merge_tiles
from flyspeck.infer.pairs import BoxIndex
from flyspeck.types import Detections

__all__ = ["DEFAULT", "METHODS", "MergeRule", "merge", "merge_tiles"]

METHODS = ("nms", "nmm", "soft-nms", "wbf", "tiny")
Places = Literal["own", "witnesses", "all"]
_ALONE = ("nmm", "soft-nms")  # methods that take no witnesses
_DEPTH = 0.1  # of a witness: share of its longer side that lies between it and its tile's border
_COVERED = 0.5  # share of a cut box under a whole one from which it yields
_ROUNDS = 50  # vectorised rounds before a long chain of boxes is walked one by one


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """How duplicates from overlapping tiles become one box."""

    method: Literal["nms", "nmm", "soft-nms", "wbf", "tiny"] = "nms"
    """Keep the best; join to the hull; decay the scores; average the boxes weighted by score; `tiny`: what `flyspeck.one_object`
    takes for one tiny object is one too (where no side is more than 1 / threshold times the other), and the best box moves to
    the mean of those that overlap it most."""
    metric: Literal["iou", "ios"] = "iou"
    """Intersection over union, or over the smaller box."""
    threshold: float = 0.4
    """Overlap from which two boxes are one object. Two views of an 8 px object that differ by 1 px each way have an IoU of
    0.62, by 2 px 0.39; two such objects whose centres are half a side apart have 0.33."""
    class_aware: bool = True
    """Only boxes of one class are duplicates of each other."""
    within_tile: bool = False
    """Compare boxes of one tile too."""
    owned: bool = True
    """Leave a place to the tile that sees it farthest from its border."""
    witnesses: bool = True
    """What other tiles say of such a place raises the score of what the owner found, and helps to place it; not with `nmm`, whose
    hulls would grow, nor with `soft-nms`."""
    sigma: float = 0.5
    """Soft-NMS: a score is multiplied by exp(-overlap^2 / sigma)."""
    min_score: float = 0.001
    """Soft-NMS: boxes that decay below this are dropped."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"unknown merge method '{self.method}'", fix=nearest(self.method, METHODS))
        if self.metric not in ("iou", "ios"):
            raise UserError(f"unknown merge metric '{self.metric}'", fix=nearest(self.metric, ("iou", "ios")))
        if not 0 < self.threshold <= 1:
            raise UserError(f"a merge threshold of {self.threshold}", fix="choose one in (0, 1]")

    @staticmethod
    def at(places: Places, **settings: Any) -> MergeRule:
        """The rule with `settings` by whose boxes of a place count: the owner's (`own`), confirmed by `witnesses`, or `all`."""
        return MergeRule(owned=places != "all", witnesses=places == "witnesses", **settings)

    @property
    def places(self) -> Places:
        """See `at`."""
        if not self.owned:
            return "all"
        return "witnesses" if self.witnesses and self.method not in _ALONE else "own"


DEFAULT = MergeRule(method="tiny")
"""Of a prediction that is not told how to merge: the best over 18 large images of three kinds (`benchmarks/merge_rules.py`)."""


def merge(
    found: Detections,
    *,
    tiles: np.ndarray | None = None,
    tile_index: np.ndarray | None = None,
    ran: np.ndarray | None = None,
    rule: MergeRule | None = None,
) -> Detections:
    """The detections of all tiles, in the frame of the image and in any order, to those of the image.

    `tiles` (T, 4) xyxy pixels of the image and `tile_index` (N,) int, the row of `tiles` that found each box; without them
    every pair of boxes is compared and none is taken for cut. `ran` (T,) bool says which tiles the model saw: a place is left
    to no other (default: all). `found.extra["cut"]` (N,) bool marks cut boxes.
    A kept box takes the best score of the boxes of its class that it replaces. Best score first.
    """
    rule = rule or MergeRule()
    witness = np.zeros(len(found), bool)
    if rule.owned and tiles is not None and tile_index is not None:
        tiles, tile_index = np.asarray(tiles), np.asarray(tile_index)
        stays = in_own_part(found.boxes, tiles, tile_index, ran)
        if rule.places == "witnesses":
            witness = ~stays & _sees_well(found, tiles[tile_index])
            stays |= witness
        found, tile_index, witness = found[stays], tile_index[stays], witness[stays]
    order = _by_priority(found, witness, None if tiles is None or tile_index is None else tiles[tile_index])
    found, witness = found[order], witness[order]
    cut = np.asarray(found.extra.get("cut", np.zeros(len(found), bool)), bool)
    frames = own = None
    if tiles is not None and tile_index is not None:
        own = np.asarray(tile_index)[order]
        frames = np.asarray(tiles, np.float64)[own]
    work = _Work(found.boxes.astype(np.float64), found.labels, cut, own, frames, rule)
    if rule.method == "soft-nms":
        return _best_first(_soften(found, work))
    i, j = _concatenate([*work.duplicates(), *work.yielding()])
    keeper = _greedy(len(found), i, j)
    # Where the owner saw a cut box alone, the witness that explains it stays in its place.
    useful = ~witness
    useful[keeper[~witness]] = True
    return _best_first(_combine(found, cut, keeper, rule.method, useful))


def in_own_part(
    boxes: np.ndarray, tiles: np.ndarray, tile_index: np.ndarray, ran: np.ndarray | None = None
) -> np.ndarray:
    """Which boxes have their centre where no other tile that ran sees it farther from its border: `(N,)` bool.

    `tiles` (T, 4) are a grid (all rows of tiles alike, all columns alike); where they are not, all boxes stay. Two tiles may
    place one object's centre on different sides of the dividing line: up to a quarter of a box's side, and 1 px, it stays.
    """
    x, column = np.unique(tiles[:, [0, 2]], axis=0, return_inverse=True)
    y, row = np.unique(tiles[:, [1, 3]], axis=0, return_inverse=True)
    stays = np.ones(len(boxes), bool)
    if len(x) * len(y) != len(tiles):
        return stays
    at = np.empty((len(y), len(x)), np.int64)
    at[row.ravel(), column.ravel()] = np.arange(len(tiles))
    owner: list[np.ndarray] = []
    for axis, (spans, own) in enumerate(((y, row.ravel()), (x, column.ravel()))):
        low, high = boxes[:, 1 - axis].astype(np.float64), boxes[:, 3 - axis].astype(np.float64)
        middles = (spans[:-1, 1] + spans[1:, 0]) / 2
        edges = np.concatenate([[-np.inf], middles, [np.inf]])
        centre, slack = (low + high) / 2, 1 + (high - low) / 4
        mine = own[tile_index]
        stays &= (centre >= edges[mine] - slack) & (centre <= edges[mine + 1] + slack)
        owner.append(np.searchsorted(middles, centre))
    return stays if ran is None else stays | ~np.asarray(ran, bool)[at[owner[0], owner[1]]]


def _sees_well(found: Detections, frames: np.ndarray) -> np.ndarray:
    """Which boxes `(N,)` bool are whole and not too near a border of their tile, row of `frames`, that is not the image's."""
    low, high = found.boxes[:, :2] - frames[:, :2], frames[:, 2:] - found.boxes[:, 2:]
    low = np.where(frames[:, :2] > 0, low, np.inf)
    high = np.where(frames[:, 2:] < np.array(found.image_size[::-1]), high, np.inf)
    longer = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1, initial=0)
    deep = np.minimum(low, high).min(axis=1, initial=np.inf) >= _DEPTH * longer
    return deep & ~np.asarray(found.extra.get("cut", np.zeros(len(found), bool)), bool)


def _by_priority(found: Detections, witness: np.ndarray, frames: np.ndarray | None) -> np.ndarray:
    """Row order by content alone: whole, then witnesses, then cut; by score, cut by visible area; then class, box and tile."""
    cut = np.asarray(found.extra.get("cut", np.zeros(len(found), bool)), bool)
    visible = np.where(cut, -(found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1]), 0)
    columns = [np.where(cut, 2, witness), visible, -found.scores, found.labels, *found.boxes.T]
    if frames is not None:
        columns += list(frames.T)
    return np.lexsort(columns[::-1])


@dataclass(frozen=True)
class _Work:
    """The columns of one merge, sorted by priority: a pair's first row always has the right of way."""

    boxes: np.ndarray
    labels: np.ndarray
    cut: np.ndarray
    own: np.ndarray | None
    frames: np.ndarray | None
    rule: MergeRule

    def duplicates(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (i, j), i < j, that overlap by the rule's metric and threshold."""
        for i, j, overlap in self.overlaps():
            hit = overlap >= self.rule.threshold
            if self.rule.method == "tiny":
                rest = np.flatnonzero(~hit)
                hit[rest] = self._one_tiny_object(i[rest], j[rest])
            yield i[hit], j[hit]

    def _one_tiny_object(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Which of the pairs show one tiny object."""
        a, b = self.boxes[i], self.boxes[j]
        longer = [(boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) for boxes in (a, b)]
        alike = self.rule.threshold * np.maximum(*longer) <= np.minimum(*longer)
        return alike & one_object.is_one(_intersection(a, b), _area(a), _area(b))

    def overlaps(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pairs (i, j), i < j, that may be duplicates, with the rule's metric.

        With "ios" and in soft-NMS every overlapping pair is given, else those that can reach the threshold.
        """
        rule = self.rule
        every = rule.metric == "ios" or rule.method == "soft-nms"
        index = BoxIndex(self.boxes, self.labels if rule.class_aware else None)
        for i, j in index.pairs(max_ratio=np.inf if every else 1 / rule.threshold):
            i, j = self._between_tiles(i, j)
            shared = _intersection(self.boxes[i], self.boxes[j])
            i, j, shared = (column[shared > 0] for column in (i, j, shared))
            area_i, area_j = _area(self.boxes[i]), _area(self.boxes[j])
            whole = np.minimum(area_i, area_j) if rule.metric == "ios" else area_i + area_j - shared
            yield i, j, shared / whole

    def yielding(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (i, j), i < j, where j is cut and i, from another tile, explains it."""
        if self.frames is None or self.own is None or not self.cut.any():
            return
        index = BoxIndex(self.boxes)
        for j, i in index.around(np.flatnonzero(self.cut), max_ratio=1 / min(_COVERED, self.rule.threshold)):
            first = (i < j) & (self.own[i] != self.own[j]) & (~self.cut[i] | (self.labels[i] == self.labels[j]))
            i, j = i[first], j[first]
            seen, part = _cap(self.boxes[i], self.frames[j]), self.boxes[j]
            shared = _intersection(seen, part)
            union = _area(seen) + _area(part) - shared
            explains = shared >= self.rule.threshold * union
            explains |= ~self.cut[i] & (shared >= _COVERED * _area(part))
            explains &= shared > 0
            yield i[explains], j[explains]

    def _between_tiles(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.own is None or self.rule.within_tile:
            return i, j
        apart = self.own[i] != self.own[j]
        return i[apart], j[apart]


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]).clip(min=0) * (boxes[:, 3] - boxes[:, 1]).clip(min=0)


def _cap(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The part of each box inside its row of `frames`; inside out where there is none."""
    return np.concatenate([np.maximum(boxes[:, :2], frames[:, :2]), np.minimum(boxes[:, 2:], frames[:, 2:])], axis=1)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _area(_cap(a, b))


def _concatenate(chunks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *(c[0] for c in chunks)]), np.concatenate([none, *(c[1] for c in chunks)])


def _greedy(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """For each of `n` rows the row that replaces it, itself where it is kept: greedy suppression by pairs (i < j).

    A row is kept once all its rivals of higher rank are suppressed; every round settles all rows whose rivals are settled.
    """
    kept, settled = np.zeros(n, bool), np.ones(n, bool)
    settled[i], settled[j] = False, False
    kept[settled] = True
    a, b = i, j
    for _ in range(_ROUNDS):
        if not len(a):
            break
        beaten = np.zeros(n, bool)
        beaten[b] = True
        free = ~settled & ~beaten
        kept[free] = settled[free] = True
        settled[b[kept[a]]] = True
        open_pair = ~(settled[a] | settled[b])
        # A row whose last rival was suppressed has no open pair left; it is free in the next round, or at the end.
        a, b = a[open_pair], b[open_pair]
    if len(a):
        _walk(a, b, kept, settled)
    kept[~settled] = True
    keeper = np.arange(n)
    lost = kept[i] & ~kept[j]
    keeper[j[lost]] = n
    np.minimum.at(keeper, j[lost], i[lost])
    return keeper


def _walk(a: np.ndarray, b: np.ndarray, kept: np.ndarray, settled: np.ndarray) -> None:
    """Settle long chains in order of rank, in place."""
    order = np.argsort(a, kind="stable")
    starts = np.flatnonzero(np.diff(a[order], prepend=-1))
    rows, others = a[order][starts], np.split(b[order], starts[1:])
    for row, rivals in zip(rows.tolist(), others, strict=True):
        if not settled[row]:
            kept[row] = settled[row] = True
            settled[rivals[~kept[rivals]]] = True


def _combine(found: Detections, cut: np.ndarray, keeper: np.ndarray, method: str, useful: np.ndarray) -> Detections:
    """One detection per kept row that is `useful`, from the rows that it replaces."""
    keep = keeper == np.arange(len(keeper))
    same_class = found.labels == found.labels[keeper]
    scores = found.scores.copy()
    np.maximum.at(scores, keeper[same_class], found.scores[same_class])
    boxes = found.boxes.astype(np.float64)
    # A cut box has nothing to add to a whole one's place. A hull grows by it; a mean would be drawn to where it was cut.
    member = same_class & (~cut | (cut[keeper] if method == "nmm" else keep))
    to, rows = keeper[member], np.flatnonzero(member)
    if method == "nmm":
        np.minimum.at(boxes[:, 0], to, found.boxes[rows, 0])
        np.minimum.at(boxes[:, 1], to, found.boxes[rows, 1])
        np.maximum.at(boxes[:, 2], to, found.boxes[rows, 2])
        np.maximum.at(boxes[:, 3], to, found.boxes[rows, 3])
    elif method in ("wbf", "tiny"):
        weights = found.scores[rows].astype(np.float64).clip(min=1e-9)
        if method == "tiny":
            overlap = box_algebra.paired_iou(boxes[rows], boxes[to])
            weights = np.where(rows == to, weights, weights * one_object.vote(overlap))
        total = np.bincount(to, weights, len(keeper))
        for side in range(4):
            summed = np.bincount(to, weights * found.boxes[rows, side], len(keeper))
            boxes[keep, side] = summed[keep] / total[keep]
    return replace(found, boxes=boxes.astype(np.float32), scores=scores)[keep & useful]


def _soften(found: Detections, work: _Work) -> Detections:
    """Cut boxes yield first; then, best first, each box decays the scores of those it overlaps."""
    i, j = _concatenate(list(work.yielding()))
    alive = _greedy(len(found), i, j) == np.arange(len(found))
    near: dict[int, list[tuple[int, float]]] = {}
    for a, b, overlap in work.overlaps():
        both = alive[a] & alive[b]
        decay = np.exp(-(overlap[both] ** 2) / work.rule.sigma)
        for x, y, factor in zip(a[both].tolist(), b[both].tolist(), decay.tolist(), strict=True):
            near.setdefault(x, []).append((y, factor))
            near.setdefault(y, []).append((x, factor))
    scores = found.scores.astype(np.float64)
    _decay(scores, near, cut=work.cut)
    final = scores.astype(np.float32)
    return replace(found, scores=final)[alive & (final >= work.rule.min_score)]


def _decay(scores: np.ndarray, near: dict[int, list[tuple[int, float]]], *, cut: np.ndarray) -> None:
    """Soft-NMS in place over the graph `near`: take the best box left, decay its neighbours, repeat (lazy heap)."""
    import heapq

    heap = [(bool(cut[row]), -scores[row], row) for row in near]
    heapq.heapify(heap)
    done: set[int] = set()
    while heap:
        _, negative, row = heapq.heappop(heap)
        if row in done or -negative != scores[row]:
            continue
        done.add(row)
        for other, factor in near[row]:
            if other not in done:
                scores[other] *= factor
                heapq.heappush(heap, (bool(cut[other]), -scores[other], other))


def _best_first(found: Detections) -> Detections:
    return found[np.lexsort([*found.boxes.T[::-1], found.labels, -found.scores])]
