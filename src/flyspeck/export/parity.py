"""Are these the same boxes? An exported model against the detector it was made of, window by window and as AP by size.

Two runs of the same mathematics differ in the last digits, and a last digit may decide which of two equal boxes suppresses the
other, or whether a score reaches the threshold. Such a box has no partner though nothing is wrong; it is counted apart, as a
tie, and only if the other side shows the very box that took its place: its equal in score, which overlaps it. Where it stood
in a row of overlapping boxes, those that this frees or suppresses in turn belong to the same tie. What cannot be told from the
boxes that are left, the detector is asked (`flyspeck.export.undecided`): a box that it gives or not as its own cuts move is a
tie too, and no other is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck import one_object
from flyspeck.data.annotations import Annotations
from flyspeck.errors import counted
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.types import Detections

BOX_PX = 0.5
SCORE = 1e-3
AP = 1e-3
ALIKE = 10 * SCORE
"""Scores of a window within this are those of a detector that has learnt next to nothing: they order no boxes."""
IOU = 1e-3
"""How near the suppression's threshold an overlap is undecided."""
TIE_SHARE = 2e-3
"""Ties allowed, as a share of the boxes: more are no accident."""


@dataclass(frozen=True)
class Rule:
    """The detector's own suppression, which says what can be a tie."""

    score: float
    iou: float
    max_detections: int
    method: str = "nms"
    """`tiny`: boxes that are one object (`flyspeck.one_object`) exclude each other too; `none`: no boxes exclude each other."""


@dataclass(frozen=True)
class Difference:
    """What a comparison found."""

    windows: int
    boxes: int
    """Of the reference."""
    box_px: float
    """Largest difference of a side among boxes that have a partner."""
    score: float
    """Likewise of scores."""
    ties: int
    unmatched: int
    """Boxes of either side without a partner within the limits, ties left out."""
    span: float = 0.0
    """How far apart the scores of a window are that holds boxes without a partner, ties among them; the widest of these."""

    @property
    def same(self) -> bool:
        """Whether the boxes count as equal."""
        return self.unmatched == 0 and self.ties <= max(1, TIE_SHARE * self.boxes)

    @property
    def undecided(self) -> bool:
        """Whether scores are so alike that a last digit decides which boxes are there: neither equal nor at fault."""
        return not self.same and (self.unmatched == 0 or self.span <= ALIKE)

    @property
    def text(self) -> str:
        """One line."""
        apart = f", {self.ties} ties" if self.ties else ""
        apart += f", {counted(self.unmatched, 'box')} WITHOUT a partner" if self.unmatched else ""
        return (
            f"{counted(self.boxes, 'box')} in {counted(self.windows, 'window')}: sides within {self.box_px:.2g} px, "
            f"scores within {self.score:.2g}{apart}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the description in an exported file."""
        return {
            "windows": self.windows,
            "boxes": self.boxes,
            "box_px": round(self.box_px, 6),
            "score": round(self.score, 8),
            "ties": self.ties,
            "unmatched": self.unmatched,
        }


def compare(
    reference: Sequence[Detections],
    exported: Sequence[Detections],
    rule: Rule,
    *,
    again: Callable[[], Sequence[Sequence[Detections]]] = tuple,
) -> Difference:
    """Detections of the same windows by both models.

    `again` is called where boxes are left without a partner: what the reference finds in all windows with its cuts moved.
    """
    moved: Sequence[Sequence[Detections]] | None = None
    total, ties, unmatched, box_px, score, span = 0, 0, 0, 0.0, 0.0, 0.0
    for place, (one, other) in enumerate(zip(reference, exported, strict=True)):
        total += len(one)
        px, apart = _differences(one, other)
        mine, theirs = _partners(px, apart)
        if len(mine):
            box_px, score = max(box_px, px[mine, theirs].max()), max(score, apart[mine, theirs].max())
        lone = np.setdiff1d(np.arange(len(one)), mine), np.setdiff1d(np.arange(len(other)), theirs)
        if len(lone[0]) or len(lone[1]):
            span = max(span, float(np.ptp(np.concatenate([one.scores, other.scores]))))
        excused = _ties(one, other, lone, rule)
        if excused < len(lone[0]) + len(lone[1]):
            moved = again() if moved is None else moved
            excused = _ties(one, other, lone, rule, [run[place] for run in moved])
        ties, unmatched = ties + excused, unmatched + len(lone[0]) + len(lone[1]) - excused
    return Difference(len(reference), total, float(box_px), float(score), ties, unmatched, span)


def _differences(mine: Detections, theirs: Detections) -> tuple[np.ndarray, np.ndarray]:
    """`(n, m)` each: the largest difference of a side in pixels, infinite between classes, and that of the score."""
    px = np.abs(mine.boxes[:, None] - theirs.boxes[None]).max(2, initial=0.0)
    px = np.where(mine.labels[:, None] == theirs.labels[None], px, np.inf)
    return px, np.abs(mine.scores[:, None] - theirs.scores[None])


def _partners(px: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the largest one-to-one matching within the limits, whatever order either side gives its boxes in.

    The nearest go first; where they leave a box over that had another choice, they make room for it (augmenting paths).
    """
    near = (px <= BOX_PX) & (apart <= SCORE)
    cost = px / BOX_PX + apart / SCORE
    choices = [sorted(np.flatnonzero(row).tolist(), key=own.__getitem__) for row, own in zip(near, cost, strict=True)]
    taken: dict[int, int] = {}  # column -> its row
    for start in range(len(choices)):
        came: dict[int, int] = {}  # column -> the row that wants it
        queue, free = [start], None
        for row in queue:
            for column in choices[row]:
                if column in came:
                    continue
                came[column] = row
                if column not in taken:
                    free = column
                    break
                queue.append(taken[column])
            if free is not None:
                break
        while free is not None:
            row = came[free]
            before = next((column for column, owner in taken.items() if owner == row), None)
            taken[free] = row
            free = before if row != start else None
    rows = np.array(list(taken.values()), np.int64)
    return rows, np.array(list(taken), np.int64)


def _ties(
    one: Detections,
    other: Detections,
    lone: tuple[np.ndarray, np.ndarray],
    rule: Rule,
    moved: Sequence[Detections] = (),
) -> int:
    """How many of the rows without a partner, `lone` of either side, are there or not for a last digit.

    `moved` is what the side of `one` finds with its cuts moved.
    """
    excused = [_is_tie(one, other, lone[0], rule), _is_tie(other, one, lone[1], rule)]
    for run in moved:  # it loses the one itself, or finds the other
        excused[0] |= ~_has(run, one[lone[0]])
        excused[1] |= _has(run, other[lone[1]])
    mine, theirs = one[lone[0]], other[lone[1]]
    linked = _conflicts(mine, theirs, rule)  # (n, m): one of the two cannot be where the other is
    for _ in range(len(mine) + len(theirs)):
        before = sum(int(e.sum()) for e in excused)
        excused[0] |= (linked & excused[1][None]).any(1)
        excused[1] |= (linked & excused[0][:, None]).any(0)
        if sum(int(e.sum()) for e in excused) == before:
            break
    return sum(int(e.sum()) for e in excused)


def _has(found: Detections, rows: Detections) -> np.ndarray:
    """Which of the `rows` are among what was `found`, within the limits."""
    px, apart = _differences(rows, found)
    return np.any((px <= BOX_PX) & (apart <= SCORE), axis=1)


def _conflicts(mine: Detections, theirs: Detections, rule: Rule) -> np.ndarray:
    same = mine.labels[:, None] == theirs.labels[None]
    return same & (_excess(mine, theirs, rule) > -IOU)


def _excess(mine: Detections, theirs: Detections, rule: Rule) -> np.ndarray:
    """`(n, m)`: by how much the overlap of two boxes exceeds what the suppression lets stand."""
    if rule.method == "none":
        return np.full((len(mine), len(theirs)), -1.0)
    excess = box_algebra.iou(mine.boxes, theirs.boxes) - rule.iou
    if rule.method == "tiny":
        area = np.minimum(box_algebra.area(mine.boxes)[:, None], box_algebra.area(theirs.boxes)[None])
        share = box_algebra.intersection(mine.boxes, theirs.boxes) / area.clip(min=box_algebra.EPS)
        excess = np.maximum(excess, share - one_object.bound(area**0.5))
    return excess


def _is_tie(mine: Detections, theirs: Detections, alone: np.ndarray, rule: Rule) -> np.ndarray:
    """Which of the rows `alone` of `mine` the other side lacks for a last digit of their own."""
    own = mine[alone]
    lowest = rule.score if len(theirs) < rule.max_detections else max(rule.score, theirs.scores.min())
    ahead = theirs.scores[None] - own.scores[:, None]
    conflict = _conflicts(own, theirs, rule)
    swapped = np.abs(ahead) <= SCORE  # its equal was kept in its place
    border = (ahead >= 0) & (_excess(own, theirs, rule) <= IOU)  # just the threshold apart
    return (own.scores <= lowest + SCORE) | (conflict & (swapped | border)).any(1)


def ap_by_size(annotations: Annotations, found: Sequence[Detections]) -> dict[str, float]:
    """AP50 of each size bin of the `flyspeck` protocol; -1 where there was nothing to find."""
    result = evaluate(annotations, DetectionTable.from_list(found, annotations), "flyspeck")
    return {
        str(row["area"]): float(row["value"])
        for row in result.rows
        if row["metric"] == "AP" and row.get("iou") == 0.5 and "cls" not in row and "category_id" not in row
    }


def ap_table(columns: dict[str, dict[str, float]]) -> str:
    """AP50 by size as text, one column a model, in percent; behind the first, the difference to it."""
    names = list(columns)
    first = columns[names[0]]
    lines = ["AP50     " + "".join(f"{name:>18}" for name in names)]
    for area in first:
        cells = [f"{_percent(first[area]):>18}"]
        for name in names[1:]:
            value = columns[name][area]
            gap = f" ({100 * (value - first[area]):+.2f})" if value >= 0 and first[area] >= 0 else ""
            cells.append(f"{_percent(value) + gap:>18}")
        lines.append(f"{area:<9}" + "".join(cells))
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "–" if value < 0 else f"{100 * value:.2f}"
