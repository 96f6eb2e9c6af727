"""Are these the same detections? Compared as sets, with ties: what two correct kernels may do differently is no difference.

The order of equal scores, and of scores a rounding apart, is the processor's business. So is which of two equal detections
suppresses the other, and which is the last below a limit. Everything else has to be the same, one for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flyspeck import boxes as box_algebra

IOU = 1e-3
"""How near the suppression's threshold an overlap is undecided."""


class Rule(Protocol):
    """The detector's own suppression, which says what can be a tie: `Suppression` and the export's `Rule` both fit."""

    @property
    def score(self) -> float: ...
    @property
    def iou(self) -> float: ...
    @property
    def max_detections(self) -> int: ...


@dataclass(frozen=True)
class Rows:
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of(found: Any) -> Rows:
        """Of `Detections`, `RawDetections`, or torchvision's dictionary."""
        get = found.__getitem__ if isinstance(found, Mapping) else lambda name: getattr(found, name)
        boxes, scores, labels = (
            np.asarray(column.detach().cpu() if hasattr(column, "detach") else column)
            for column in (get("boxes"), get("scores"), get("labels"))
        )
        return Rows(boxes.reshape(-1, 4).astype(np.float64), scores.astype(np.float64), labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.scores)


def assert_same_detections(
    found: Sequence[Any],
    expected: Sequence[Any],
    *,
    box_px: float,
    score: float,
    rule: Rule | None = None,
    least: int = 1,
    strays: float = 0.0,
) -> None:
    """Each image of `found` holds the detections of the same image of `expected`, in any order.

    Partners are one to one: of equal class, every side within `box_px` pixels, the score within `score`. A detection may lack a
    partner if `rule` is given and says that a rounding decides whether it is there, and only a few may: two (a swap) or one
    in a hundred. `strays` is the share of `expected` that may differ for a reason the caller states. Every image of
    `expected` must hold `least` detections, so that nothing is compared with nothing.
    """
    assert len(found) == len(expected), f"{len(found)} images against {len(expected)}"
    for place, pair in enumerate(zip(found, expected, strict=True)):
        mine, theirs = map(Rows.of, pair)
        assert len(theirs) >= least, f"image {place}: only {len(theirs)} detections to compare with"
        lone = unmatched(mine, theirs, box_px=box_px, score=score)
        wrong, ties = [], 0
        sides = (("found", mine, theirs, *lone), ("expected", theirs, mine, *lone[::-1]))
        for name, one, other, rows, others in sides:
            for row in rows:
                if rule is not None and _is_tie(one, other, row, others, rule, score):
                    ties += 1
                else:
                    wrong.append(f"{name} {one.boxes[row].tolist()} {one.scores[row]:.6g} of class {one.labels[row]}")
        told = f"image {place}: {len(mine)} found, {len(theirs)} expected, without a partner: " + "; ".join(wrong[:5])
        assert len(wrong) <= 2 * strays * len(theirs), told
        assert ties <= max(2, 0.01 * len(theirs)), f"image {place}: {ties} ties of {len(theirs)} detections"


def unmatched(mine: Rows, theirs: Rows, *, box_px: float, score: float) -> tuple[list[int], list[int]]:
    """Rows of either side that the largest one-to-one matching within the limits leaves over."""
    near = np.abs(mine.boxes[:, None] - theirs.boxes).max(2) <= box_px
    near &= np.abs(mine.scores[:, None] - theirs.scores) <= score
    near &= mine.labels[:, None] == theirs.labels
    choices = [np.flatnonzero(row).tolist() for row in near]
    taken: dict[int, int] = {}  # row of `theirs` → its partner in `mine`

    def place(row: int, seen: set[int]) -> bool:
        for column in choices[row]:
            if column not in seen:
                seen.add(column)
                if column not in taken or place(taken[column], seen):
                    taken[column] = row
                    return True
        return False

    lone = [row for row in range(len(mine)) if not place(row, set())]
    return lone, [column for column in range(len(theirs)) if column not in taken]


def _is_tie(one: Rows, other: Rows, row: int, others: list[int], rule: Rule, score: float) -> bool:
    """Whether `row` of `one` may well be missing in `other`, whose rows `others` lack a partner, too."""
    own = one.scores[row]
    if own <= rule.score + score:
        return True
    if len(other) >= rule.max_detections and own <= other.scores.min() + score:
        return True
    overlap = box_algebra.iou(one.boxes[row : row + 1], other.boxes)[0]
    ahead = other.scores - own
    conflict = (other.labels == one.labels[row]) & (overlap > rule.iou - IOU)
    swapped = (np.abs(ahead) <= score) & np.isin(np.arange(len(other)), others)  # its equal was kept in its place
    border = (ahead >= 0) & (overlap <= rule.iou + IOU)
    return bool((conflict & (swapped | border)).any())
