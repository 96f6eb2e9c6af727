"""How alike a distilled student and its teacher became, level by level, over the epochs of the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from flyspeck.report import figures as fig
from flyspeck.report import tables

PREFIX = "similarity_"

History = dict[str, list[tuple[float, float]]]
"""Level (`P2`) to its (epoch, linear CKA)."""


def similarity_history(records: Iterable[Mapping[str, Any]]) -> History:
    """The metrics `similarity_P2`, … of the epoch records of a run; empty where it was not distilled by features."""
    found: History = {}
    for record in records:
        for group in ("observed", "metrics"):
            for key, value in record.get(group, {}).items():
                if key.startswith(PREFIX):
                    found.setdefault(key.removeprefix(PREFIX), []).append((float(record["epoch"]), float(value)))
    return found


def similarity_figure(name: str, history: History, *, heading: str) -> tuple[str, str]:
    """The chart of one run under its heading, and the table of its first and last epoch, both HTML."""
    chart = fig.line_chart(
        [fig.Series(level, [e for e, _ in points], [v for _, v in points]) for level, points in history.items()],
        title=f"Similarity to the teacher: {name}",
        description="Linear CKA of student and teacher on the training batches over the epochs, one line a level.",
        x_label="epoch",
        y_label="CKA",
        y_range=(0, 1),
    )
    rows: Sequence[Sequence[str]] = [
        [level, *(tables.number(v) for v in (points[0][1], points[-1][1]))] for level, points in history.items()
    ]
    data = tables.table(["level", "first epoch", "last epoch"], rows, caption=f"Similarity to the teacher: {name}")
    return f'<figure class="half"><h3>{escape(heading)}</h3>{chart}</figure>', data
