"""What an evaluation returns: rows of numbers that carry their protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyspeck.evaluate import printing
from flyspeck.evaluate.counts import Counts
from flyspeck.evaluate.protocols import Protocol, describe
from flyspeck.files import write_json

_VARIABLE = ("value", "protocol", "metric")


def falls(metric: str) -> bool:
    """Whether less is better of a metric by its name in runs: of miss rates (`mr50_reasonable`)."""
    return metric.lower().startswith("mr")


def goodness(metric: str, value: float) -> float:
    """A value of a metric as a number of which more is better; what is no number lies below all that are found.

    An AP is itself. A miss rate counts with the other sign, and where there was nothing to find (-1) below all others.
    """
    if math.isnan(value):
        return -2.0
    if not falls(metric):
        return value
    return -value if value >= 0 else value - 1


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of one evaluation under one protocol."""

    protocol: Protocol
    rows: list[dict[str, Any]]
    """One dict a number: `protocol`, `metric`, `value`, and what tells it apart (`iou`, `area`, `setup`, `setting`, `cls`, …).
    -1 (or None) where there was no ground truth to find."""
    notes: tuple[str, ...] = ()
    """What was odd about the input."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Diagnosis, intervals and comparisons, where they were asked for."""
    counts: Counts | None = None
    """Doubles and errors of the count, where the protocol is an AP of COCO's kind."""

    def value(self, **key: Any) -> float:
        """The number of the one row that has these entries, such as `metric="AP", iou=0.5, area="tiny"`."""
        found = [row for row in self.rows if all(row.get(name) == wanted for name, wanted in key.items())]
        if not found:
            raise KeyError(f"{self.protocol.name} has no row with {key}")
        if len(found) > 1:
            # A row without entries that were not asked for (no class, no category) is meant rather than the finer ones.
            fewest = min(len(_distinguishing(row)) for row in found)
            found = [row for row in found if len(_distinguishing(row)) == fewest]
        if len(found) > 1:
            raise KeyError(f"{len(found)} rows of {self.protocol.name} have {key}: say more")
        value = found[0]["value"]
        return math.nan if value is None else float(value)

    def to_dict(self) -> dict[str, Any]:
        """The whole as plain values: `{"protocol", "definition", "rows", "notes", …}`."""
        return {
            "protocol": self.protocol.name,
            "definition": describe(self.protocol),
            "rows": self.rows,
            "notes": list(self.notes),
            **({} if self.counts is None else {"counts": self.counts.to_dict()}),
            **self.extra,
        }

    def write(self, path: Path) -> None:
        """Write `to_dict` as json; what is not a number (NaN) is null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())

    def table(self, *, per_class: bool = False) -> str:
        """The numbers in percent as text, headed by the protocol; a dash where there was nothing to find. Beside each size
        are its pixels and its objects.

        `per_class` adds those of every class. Doubles and counts follow, where they were reckoned.
        """
        objects = {} if self.counts is None else {row.area: row.objects for row in self.counts.rows}
        text = printing.table(self.protocol, self.rows, per_class=per_class, objects=objects)
        return text if self.counts is None else f"{text}\n{self.counts.text()}"


def _distinguishing(row: dict[str, Any]) -> list[str]:
    return [name for name in ("category_id", "cls", "setup", "setting", "area", "iou", "max_dets") if name in row]
