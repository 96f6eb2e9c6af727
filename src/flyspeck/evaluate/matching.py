"""The one matcher: detections in order of score take ground truths greedily, under rules that a protocol states.

Every number of `flyspeck.evaluate` follows from `match`: AP, miss rate, error analysis, curves. It has no loop over
detections. Two facts make that possible:

* Only pairs that overlap matter, and of tiny objects few do. `overlapping_pairs` finds them by a search along x, so time
  and memory grow with the number of overlapping pairs, not with detections times ground truths.
* Greedy matching in order of score is a serial dictatorship, and that is the one stable matching of detections that
  have preferences and ground truths that all prefer the better-scored detection. Deferred acceptance (Gale and Shapley,
  1962) finds it in a few vectorised rounds, for all images and classes at once.

A ground truth that is not ignored is always preferred to an ignored one, and the two sets are disjoint, so the matching is
done in turns: first the counted ground truths, then the ignored ones for the detections left over, then the second pass
that some references have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

CHUNK = 4_000_000  # pairs examined at a time: 4M rows of temporaries stay under about 300 MB


@dataclass(frozen=True)
class SecondPass:
    """What TinyBenchmark does with a detection that matched nothing: is it under an ignored ground truth?

    Its measure is `R = v / (1 + v) * (1 + g / d)` with v the overlap of the first pass, g the ground truth's area field
    and d the detection's area. For an IoU `v` and `g = w * h` that is IoD; where v is an IoD already, it is not.
    """

    threshold: Literal["iou", "harmonic", "half"] = "iou"
    """`iou`: R >= t, the matching threshold. `harmonic`: R >= 2t / (1 + t) (huicv). `half`: R > 0.5 for every t."""


@dataclass(frozen=True)
class MatchRule:
    """How a detection and a ground truth come together."""

    strict: bool = False
    """True: overlap must exceed the threshold; False: reach it."""
    pixel: float = 0.0
    """Added to both ends when measuring widths: 1 where a benchmark's boxes are inclusive pixels."""
    candidates: Literal["all", "best"] = "all"
    """`all`: the best ground truth still free. `best`: the best of all, and nothing if that one is taken (VOC, WIDER)."""
    iod_for: Literal["crowd", "flagged", "ignored", "never"] = "crowd"
    """Which ground truths are measured by IoD, intersection over the detection's area, instead of IoU."""
    ignored_choice: Literal["best", "first"] = "best"
    """Which ignored ground truth a detection takes: the one with most overlap, or the first in file order."""
    unlimited: Literal["crowd", "flagged", "ignored"] = "crowd"
    """Which ground truths can take any number of detections."""
    second_pass: SecondPass | None = None


@dataclass(frozen=True)
class Pairs:
    """Overlapping pairs, sorted by detection and then by ground truth, each in the order of its table."""

    detection: np.ndarray
    """(P,) int64."""
    truth: np.ndarray
    """(P,) int64."""
    iou: np.ndarray
    """(P,) float64."""
    iod: np.ndarray
    """(P,) float64, intersection over the detection's area."""

    def select(self, rows: np.ndarray) -> Pairs:
        """The pairs that a mask selects."""
        return Pairs(self.detection[rows], self.truth[rows], self.iou[rows], self.iod[rows])


@dataclass(frozen=True)
class Matching:
    """The outcome for one set of ignored ground truths and one threshold."""

    truth: np.ndarray
    """(N,) the ground truth that each detection took, -1 for none; a counted and an ignored one look alike here."""
    ignored: np.ndarray
    """(N,) bool: took an ignored ground truth, so it neither counts for nor against the detector."""


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows that own `counts` items each: the owner of every item, and the item's number within its owner."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def overlapping_pairs(
    boxes: np.ndarray,
    group: np.ndarray,
    truth_boxes: np.ndarray,
    truth_group: np.ndarray,
    *,
    sides: np.ndarray | None = None,
    truth_sides: np.ndarray | None = None,
    pixel: float = 0.0,
) -> Pairs:
    """Pairs of the same group (image and class) with an intersection of positive area.

    `boxes` (N, 4) and `truth_boxes` (M, 4) are xyxy float64 pixels, `group` and `truth_group` int64. `sides` (N, 2) and
    `truth_sides` (M, 2) are widths and heights where the source gives them exactly (COCO's xywh); by default they are the
    corners' differences plus `pixel`.
    """
    sides = boxes[:, 2:] - boxes[:, :2] + pixel if sides is None else sides
    truth_sides = truth_boxes[:, 2:] - truth_boxes[:, :2] + pixel if truth_sides is None else truth_sides
    if not len(boxes) or not len(truth_boxes):
        none = np.zeros(0, np.int64)
        return Pairs(none, none, np.zeros(0), np.zeros(0))
    found = [
        _pairs_of_width(boxes, group, truth_boxes, truth_group, members, pixel)
        for members in _by_width(truth_boxes[:, 2] - truth_boxes[:, 0] + pixel)
    ]
    detection, truth, shared = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((truth, detection))
    detection, truth, shared = detection[order], truth[order], shared[order]
    area, truth_area = sides[:, 0] * sides[:, 1], truth_sides[:, 0] * truth_sides[:, 1]
    own = area[detection]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = shared / (own + truth_area[truth] - shared)
        iod = shared / own
    return Pairs(detection, truth, iou, iod)


def _by_width(widths: np.ndarray) -> list[np.ndarray]:
    """Rows grouped by width within a factor of 8, so that one wide region does not widen everybody's search."""
    octave = np.floor(np.log2(np.maximum(widths, 1.0)) / 3).astype(np.int64)
    return [np.flatnonzero(octave == value) for value in np.unique(octave)]


def _pairs_of_width(
    boxes: np.ndarray,
    group: np.ndarray,
    truth_boxes: np.ndarray,
    truth_group: np.ndarray,
    members: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping pairs with the ground truths `members`: (detection, truth, intersection)."""
    left, width = truth_boxes[members, 0], float((truth_boxes[members, 2] - truth_boxes[members, 0]).max()) + pixel
    low = min(float(boxes[:, 0].min()), float(left.min()))
    span = max(float(boxes[:, 2].max()), float(left.max())) - low + width + 2 * pixel + 2
    groups, codes = np.unique(truth_group[members], return_inverse=True)
    # A key orders ground truths by group and then by left edge; the slack covers its rounding, and the exact test below
    # drops what the slack lets in.
    keys = codes * span + (left - low)
    order = np.argsort(keys, kind="stable")
    keys, sorted_members = keys[order], members[order]
    slack = 1e-6 + 4 * float(np.spacing(keys[-1] + span))
    code = np.searchsorted(groups, group)
    known = groups[np.minimum(code, len(groups) - 1)] == group
    base = code * span - low
    start = np.searchsorted(keys, base + boxes[:, 0] - width - slack, side="left")
    stop = np.searchsorted(keys, base + boxes[:, 2] + pixel + slack, side="right")
    counts = np.where(known, np.maximum(stop - start, 0), 0)
    bounds = np.searchsorted(np.cumsum(counts), np.arange(CHUNK, counts.sum() + CHUNK, CHUNK), side="right")
    pieces, begin = [], 0
    for end in [*np.unique(bounds).tolist(), len(counts)]:
        if end <= begin:
            continue
        owner, number = _expand(counts[begin:end])
        detection = owner + begin
        truth = sorted_members[start[detection] + number]
        pieces.append(_intersecting(boxes, group, truth_boxes, truth_group, detection, truth, pixel))
        begin = end
    detection, truth, shared = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return detection, truth, shared


def _intersecting(
    boxes: np.ndarray,
    group: np.ndarray,
    truth_boxes: np.ndarray,
    truth_group: np.ndarray,
    detection: np.ndarray,
    truth: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of equal group that share area, with that area."""

    def side(axis: int) -> np.ndarray:
        high = np.minimum(boxes[detection, axis + 2], truth_boxes[truth, axis + 2])
        return high - np.maximum(boxes[detection, axis], truth_boxes[truth, axis]) + pixel

    tall = side(1)
    keep = (tall > 0) & (group[detection] == truth_group[truth])
    detection, truth, tall = detection[keep], truth[keep], tall[keep]
    wide = side(0)
    keep = wide > 0
    return detection[keep], truth[keep], wide[keep] * tall[keep]


def greedy(
    detection: np.ndarray,
    truth: np.ndarray,
    num_detections: int,
    num_truths: int,
    unlimited: np.ndarray,
    sharing: np.ndarray | None = None,
) -> np.ndarray:
    """The ground truth that each detection ends with, `(num_detections,)`, -1 for none.

    `detection` and `truth` (E,) are the admissible pairs, sorted by detection and, within one, by its preference.
    A lower detection number is a better score. `unlimited` (num_truths,) bool marks ground truths that never run out;
    `sharing` (E,) bool marks pairs that hold even on a ground truth that is taken, and take it from everybody later.

    Deferred acceptance: every detection without a ground truth asks for the next on its list; a ground truth keeps the best
    that ever asked. Each round is one pass over the detections still looking, and each pair is looked at once.
    """
    taken = np.full(num_detections, -1, np.int64)
    if not len(detection):
        return taken
    first = np.flatnonzero(np.r_[True, detection[1:] != detection[:-1]])
    who = detection[first]
    pointer, stop = first.copy(), np.r_[first[1:], len(detection)]
    holder = np.full(num_truths, len(who), np.int64)
    limited = ~unlimited
    asking = np.arange(len(who))
    while len(asking):
        wanted = truth[pointer[asking]]
        contested = limited[wanted]
        asking, wanted = asking[contested], wanted[contested]
        before = holder[wanted]
        np.minimum.at(holder, wanted, asking)
        after = holder[wanted]
        refused = asking[after != asking]
        displaced = before[(before != after) & (before < len(who))]
        # Several askers of one ground truth see the same old holder: once is enough.
        asking = np.concatenate([refused, np.unique(displaced)])
        if sharing is not None:
            asking = asking[~sharing[pointer[asking]]]
        pointer[asking] += 1
        asking = asking[pointer[asking] < stop[asking]]
    served = pointer < stop
    taken[who[served]] = truth[pointer[served]]
    return taken


@dataclass(frozen=True)
class Truths:
    """The ground-truth columns that matching reads, `(M,)` each."""

    area: np.ndarray
    """float64, the source's area field."""
    crowd: np.ndarray
    """bool, COCO's iscrowd."""
    flagged: np.ndarray
    """bool, an ignore region by its own flags (crowd included), whatever the size bin."""


class Matcher:
    """Detections and ground truths whose overlaps are known, to be matched under one rule at many bins and thresholds."""

    def __init__(self, pairs: Pairs, truths: Truths, areas: np.ndarray, rule: MatchRule) -> None:
        """`areas` (N,) are the detections' own areas."""
        self.pairs, self.truths, self.areas, self.rule = pairs, truths, areas, rule

    def at(self, ignored: np.ndarray, thresholds: tuple[float, ...]) -> list[Matching]:
        """One `Matching` per threshold; `ignored` (M,) bool marks the ground truths that do not count."""
        overlap = self._overlap(ignored)
        pairs = self.pairs
        if self.rule.candidates == "best":
            keep = _first_best(pairs.detection, overlap)
            pairs, overlap = pairs.select(keep), overlap[keep]
        # On equal overlap the later ground truth wins, as in pycocotools' `>=` scan.
        order = np.lexsort((-pairs.truth, -overlap, pairs.detection))
        counted_order = order[~ignored[pairs.truth[order]]]
        ignored_order = order if self.rule.ignored_choice == "best" else np.arange(len(overlap))
        ignored_order = ignored_order[ignored[pairs.truth[ignored_order]]]
        counted, hidden = _Edges(pairs, overlap, counted_order), _Edges(pairs, overlap, ignored_order)
        return [self._match(counted, hidden, ignored, threshold) for threshold in thresholds]

    def _overlap(self, ignored: np.ndarray) -> np.ndarray:
        by_iod = {
            "crowd": self.truths.crowd,
            "flagged": self.truths.flagged,
            "ignored": ignored,
            "never": np.zeros(len(ignored), bool),
        }[self.rule.iod_for]
        return np.where(by_iod[self.pairs.truth], self.pairs.iod, self.pairs.iou)

    def _match(self, counted: _Edges, hidden: _Edges, ignored: np.ndarray, threshold: float) -> Matching:
        rule, size = self.rule, (len(self.areas), len(ignored))
        bound = threshold if rule.strict else min(threshold, 1 - 1e-10)
        unlimited = {"crowd": self.truths.crowd, "flagged": self.truths.flagged, "ignored": ignored}[rule.unlimited]
        taken = greedy(*counted.reaching(bound, rule.strict), *size, unlimited)
        free = taken < 0
        detection, truth = hidden.reaching(bound, rule.strict)
        keep = free[detection]
        detection, truth = detection[keep], truth[keep]
        sharing = None
        if rule.second_pass is not None:
            # The second pass is the last wish of a detection, granted even where the ground truth is taken; but it takes
            # the ground truth from the first pass of every later detection.
            last, under = self._second(hidden, rule.second_pass, threshold, free)
            order = np.argsort(np.concatenate([detection, last]), kind="stable")
            sharing = np.concatenate([np.zeros(len(detection), bool), np.ones(len(last), bool)])[order]
            detection = np.concatenate([detection, last])[order]
            truth = np.concatenate([truth, under])[order]
        taken = np.where(free, greedy(detection, truth, *size, unlimited, sharing), taken)
        hit_ignored = np.zeros(len(taken), bool)
        hit_ignored[taken >= 0] = ignored[taken[taken >= 0]]
        return Matching(taken, hit_ignored)

    def _second(
        self, hidden: _Edges, second: SecondPass, threshold: float, free: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Detections with an R that is enough, and the ignored ground truth of the largest (the first on a tie)."""
        keep = free[hidden.detection]
        detection, truth, overlap = hidden.detection[keep], hidden.truth[keep], hidden.overlap[keep]
        ratio = overlap / (1 + overlap) * (1 + self.truths.area[truth] / self.areas[detection])
        bound = min(threshold, 1 - 1e-10)
        if second.threshold == "half":
            enough = ratio > 0.5
        else:
            enough = ratio >= (bound if second.threshold == "iou" else 2 * bound / (1 + bound))
        detection, truth, ratio = detection[enough], truth[enough], ratio[enough]
        order = np.lexsort((truth, -ratio, detection))
        first = order[np.flatnonzero(np.r_[True, np.diff(detection[order]) != 0])] if len(order) else order
        return detection[first], truth[first]


class _Edges:
    """Admissible pairs in order of preference."""

    def __init__(self, pairs: Pairs, overlap: np.ndarray, order: np.ndarray) -> None:
        self.detection, self.truth, self.overlap = pairs.detection[order], pairs.truth[order], overlap[order]

    def reaching(self, bound: float, strict: bool) -> tuple[np.ndarray, np.ndarray]:
        """The pairs whose overlap is large enough: (detection, truth)."""
        keep = self.overlap > bound if strict else self.overlap >= bound
        return self.detection[keep], self.truth[keep]


def _first_best(detection: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Mask of the largest overlap of each detection, the first on a tie (pairs are sorted by detection, then truth)."""
    order = np.lexsort((-overlap, detection))  # stable: the earlier truth stays in front
    mask = np.zeros(len(detection), bool)
    if len(order):
        mask[order[np.r_[True, detection[order][1:] != detection[order][:-1]]]] = True
    return mask
