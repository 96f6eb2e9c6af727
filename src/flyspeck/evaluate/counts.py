"""Doubles and errors of the count as values; `flyspeck.evaluate.counting` has the rules, and finds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flyspeck.evaluate.printing import aligned, percent


@dataclass(frozen=True)
class WorkingPoint:
    """A score threshold, and how good the detections from it on are, classes pooled."""

    score: float
    """Detections of this score and above count."""
    f1: float
    """The harmonic mean of precision and recall; -1 where there are no objects."""
    precision: float
    """Share of the detections that hit, -1 where there are none."""
    recall: float
    """Share of the objects that are found, -1 where there are none."""


@dataclass(frozen=True)
class SizeCount:
    """The counts of the objects of one size; shares and errors are -1 where there is nothing to count."""

    area: str
    """Name of the bin."""
    objects: int
    """In all images."""
    found: int
    """Objects with at least one box."""
    boxes: int
    """Those of its objects, and those of this size without an object."""
    doubles: float
    """Share of the objects found that have two boxes or more."""
    count_error: float
    """Mean over images of |boxes - objects|, summed over classes."""
    count_bias: float
    """Mean over images of boxes - objects; above 0 where there are too many boxes."""
    count_share: float
    """The sum of |boxes - objects| over images and classes, as a share of the objects."""


@dataclass(frozen=True)
class Counts:
    """Doubles and errors of the count at one score threshold."""

    at: WorkingPoint
    given: bool
    """Whether the threshold was given; else it is that of the best F1 on this set."""
    rows: tuple[SizeCount, ...]
    """One a bin of the protocol."""

    def row(self, area: str) -> SizeCount:
        """That of the bin of this name."""
        return next(row for row in self.rows if row.area == area)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        rule = "given" if self.given else "best F1 on this set"
        return {**asdict(self.at), "rule": rule, "rows": [asdict(row) for row in self.rows]}

    def text(self) -> str:
        """A table for the terminal."""
        cells = [["", "doubles", "count error", "bias", "share of objects"]]
        for row in self.rows:
            error, bias = (f"{row.count_error:.2f}", f"{row.count_bias:+.2f}") if row.boxes or row.objects else "——"
            cells.append([row.area, percent(row.doubles), error, bias, percent(row.count_share)])
        return f"{self.head}\n{aligned(cells)}\n"

    @property
    def head(self) -> str:
        """The threshold, where it comes from, and what the columns are, in one line."""
        source = "given" if self.given else "best F1 on this set"
        return (
            f"counted from score {self.at.score:.3g} ({source}; F1 {percent(self.at.f1)}): doubles, % of objects found; "
            "count error and bias, boxes an image"
        )
