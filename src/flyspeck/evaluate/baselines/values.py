"""A baseline's numbers, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flyspeck.evaluate.printing import aligned, percent
from flyspeck.evaluate.results import EvaluationResult

Key = Literal["background", "count", "boxes", "blobs"]


@dataclass(frozen=True)
class Baseline:
    """One baseline's numbers on a set."""

    key: Key
    name: str
    """In words: `all background`."""
    words: str
    """What it answers, and what was chosen on which images."""
    evaluation: EvaluationResult | None
    """Under the protocol; None of a constant number, which has no boxes."""
    count_error: dict[str, float]
    """By bin: mean over images of |boxes - objects|, summed over classes, -1 where nothing is known; from the score threshold
    that was best on the training images on. Empty where the protocol has no counts."""

    def ap50(self, area: str) -> float | None:
        """AP at IoU 0.5 of a bin; None where there is no such row."""
        if self.evaluation is None:
            return None
        try:
            return self.evaluation.value(metric="AP", iou=0.5, area=area)
        except KeyError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """As plain values: `key`, `name`, `words`, `rows` (those of the evaluation), `count_error` (by bin)."""
        rows = [] if self.evaluation is None else self.evaluation.rows
        return {"key": self.key, "name": self.name, "words": self.words, "rows": rows, "count_error": self.count_error}


def baseline_cells(baselines: Sequence[Baseline]) -> list[list[str]]:
    """Head and rows of a table of AP50 and the error of the count, of all sizes and the tiny; of no AP, the first metric."""
    areas = [area for area in ("all", "tiny") if any(base.ap50(area) is not None for base in baselines)]
    if not areas:
        first = next(base.evaluation.rows[0] for base in baselines if base.evaluation is not None)
        cells = [["", str(first["metric"])]]
        return cells + [[b.name, percent(b.evaluation.rows[0]["value"])] for b in baselines if b.evaluation is not None]
    cells = [["", *(f"AP@0.5 {area}" for area in areas), *(f"count error {area}" for area in areas)]]
    for base in baselines:
        errors = [base.count_error.get(area, -1.0) for area in areas]
        shown = (f"{error:.2f}" if error >= 0 else "—" for error in errors)
        cells.append([base.name, *(percent(base.ap50(area)) for area in areas), *shown])
    return cells


def baseline_text(baselines: Sequence[Baseline]) -> str:
    """A table for the terminal, and what each baseline is."""
    words = "".join(f"  {base.name}: {base.words}\n" for base in baselines)
    return f"baselines, without a network\n{aligned(baseline_cells(baselines))}\n{words}"
