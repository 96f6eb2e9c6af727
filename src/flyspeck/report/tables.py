"""HTML tables that a screen reader can walk: a caption, and a scope for every header."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from flyspeck.evaluate.baselines.values import Baseline, baseline_cells
from flyspeck.evaluate.counts import SizeCount
from flyspeck.evaluate.printing import bin_of_row, pixel_ranges
from flyspeck.report.runs import RunReport


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, words: bool = False) -> str:
    """A table of text: `head` names the columns, the first cell of each row names the row; `words` sets all to the left."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    # the wrapper scrolls sideways on a narrow screen; tabindex lets the keyboard do it, the label says what it is
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}">'
        f"<table{' class=words' if words else ''}>"
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def percent(value: Any) -> str:
    """A share in percent with one decimal; a dash where there was nothing to find (-1, None or NaN)."""
    if value is None or not math.isfinite(value) or value < 0:
        return "–"
    return f"{100 * value:.1f}"


def number(value: float) -> str:
    """A number for a table cell."""
    return "–" if not math.isfinite(value) else f"{value:.4g}"


def by_size(runs: Sequence[RunReport]) -> str:
    """Every run's numbers in percent: a table a protocol, a row a subset, a column a metric and run; recall and classes apart."""
    parts = []
    for protocol in dict.fromkeys(run.evaluation.protocol.name for run in runs):
        mine = [run for run in runs if run.evaluation.protocol.name == protocol]
        text = mine[0].evaluation.protocol.text
        rows = [
            (_per_class(row), _metric(row).startswith("AR"), column, row)
            for column, run in enumerate(mine)
            for row in run.evaluation.rows
        ]
        chosen = [(column, row) for by_class, recall, column, row in rows if not by_class and not recall]
        parts.append(_pivot(chosen, mine, caption=f"In percent. Protocol {text}"))
        for summary, by_class_wanted in (("Recall", False), ("By class", True)):
            chosen = [
                (c, row) for by_class, recall, c, row in rows if by_class == by_class_wanted and (by_class or recall)
            ]
            if chosen:
                inner = _pivot(chosen, mine, caption=f"{summary}, in percent. Protocol {text}")
                parts.append(f"<details><summary>{summary} ({escape(protocol)})</summary>{inner}</details>")
        notes = [f"{run.name}: {note}" for run in mine for note in run.evaluation.notes]
        parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    return "".join(parts)


def counts(runs: Sequence[RunReport]) -> str:
    """Doubles and errors of the count by size, a table for each protocol; nothing where no run counts."""
    parts = []
    for protocol in dict.fromkeys(run.evaluation.protocol.name for run in runs):
        known = [
            (run.name, run.evaluation.counts)
            for run in runs
            if run.evaluation.protocol.name == protocol and run.evaluation.counts is not None
        ]
        if not known:
            continue
        several = len(known) > 1
        head = ["", *(f"{what} {name}" if several else what for what in COUNTED for name, _ in known)]
        body = [
            [row.area, *(shown(found.row(row.area)) for shown in COUNTED.values() for _, found in known)]
            for row in known[0][1].rows
        ]
        scores = "; ".join(
            f"{name}: {found.at.score:.2f}" if several else f"{found.at.score:.2f}" for name, found in known
        )
        caption = (
            f"What is seen from the score of best F1 on ({scores}): objects found that carry two boxes or more, in percent; "
            "by how many boxes the count of an image is off, without and with its sign, and as a share of the objects, in percent"
        )
        parts.append(table(head, body, caption=caption))
    return "".join(parts)


def baselines(measured: Sequence[Baseline]) -> str:
    """What needs no network, on the same images; nothing where none was measured."""
    if not measured:
        return ""
    head, *rows = baseline_cells(measured)
    words = "".join(f"<li>{escape(base.name)}: {escape(base.words)}</li>" for base in measured)
    caption = (
        "Baselines, which need no network: AP at IoU 0.5 in percent, and by how many boxes the count of an image is off"
    )
    return f"{table(head, rows, caption=caption)}<details><summary>What they are</summary><ul>{words}</ul></details>"


COUNTED: dict[str, Callable[[SizeCount], str]] = {
    "doubles": lambda row: percent(row.doubles),
    "count error": lambda row: f"{row.count_error:.2f}" if row.objects else "–",
    "bias": lambda row: f"{row.count_bias:+.2f}" if row.objects else "–",
    "share of objects": lambda row: percent(row.count_share),
}


def _pivot(rows: Sequence[tuple[int, dict[str, Any]]], runs: Sequence[RunReport], *, caption: str) -> str:
    """Rows of (run, evaluation row) as a table; the best of several runs carries a star."""
    places = list(dict.fromkeys(_place(row) for _, row in rows))
    metrics = list(dict.fromkeys(_metric(row) for _, row in rows))
    values = {(_place(row), _metric(row), column): row["value"] for column, row in rows}
    several = len(runs) > 1
    sizes = pixel_ranges(runs[0].evaluation.protocol)
    found = runs[0].evaluation.counts
    objects = {} if found is None else {row.area: row.objects for row in found.rows}
    about = {
        _place(row): (sizes.get(bin_of_row(row, sizes), ""), _objects(row, objects, sizes)) for _, row in reversed(rows)
    }
    beside = [k for k in (0, 1) if any(cells[k] for cells in about.values())]
    head = [
        "",
        *(("px", "objects")[k] for k in beside),
        *(f"{metric} {run.name}" if several else metric for metric in metrics for run in runs),
    ]
    body = []
    for place in places:
        cells = [place, *(about[place][k] for k in beside)]
        for metric in metrics:
            mine = [values.get((place, metric, column)) for column in range(len(runs))]
            known = [v for v in mine if v is not None and v >= 0]
            best = (min(known) if metric.startswith("MR") else max(known)) if len(known) > 1 else None
            cells += [percent(v) + (" ★" if v is not None and v == best else "") for v in mine]
        body.append(cells)
    return table(head, body, caption=caption)


def _objects(row: dict[str, Any], by_area: dict[str, int], sizes: dict[str, str]) -> str:
    """How many objects a row is about, where that is known."""
    known = row.get("n_gt", None if _per_class(row) else by_area.get(bin_of_row(row, sizes)))
    return "" if known is None else str(known)


def _per_class(row: dict[str, Any]) -> bool:
    return "cls" in row or str(row["metric"]).endswith("_per_class")


def _metric(row: dict[str, Any]) -> str:
    """`AP50`, or `AP 0.50:0.95`."""
    iou = row.get("iou")
    metric = str(row["metric"]).removesuffix("_per_class").removesuffix(f"_{row.get('area')}")
    if metric[-1].isdigit():
        return metric  # AP50, AR100: COCO's own names hold it already
    return metric + (f"{round(100 * float(iou))}" if isinstance(iou, float | int) else (f" {iou}" if iou else ""))


def _place(row: dict[str, Any]) -> str:
    """What a row is about: the class, the size, the limit."""
    where = row.get("area") or row.get("setup") or row.get("setting") or ""
    limit = f"maxDets {row['max_dets']}" if "max_dets" in row and str(row["metric"]).startswith("AR") else ""
    parts = (row.get("cls", row.get("class_name", "")), where, limit)
    return " ".join(str(part) for part in parts if part != "") or "all"
