"""Results as text: a table and its verdicts, and the generated part of the page of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.files import write_text
from flyspeck.publish.score import interval
from flyspeck_lab.claims import current, seed_means, withdrawn
from flyspeck_lab.results import Entry, Results, read_results
from flyspeck_lab.table import Job, Table, jobs

BEGIN = "<!-- tables: begin (flyspeck-lab page) -->"
END = "<!-- tables: end -->"


def write_page(page: Path, tables: Sequence[Table], results_folder: Path) -> int:
    """Puts every table that has results between the markers of `page`; returns how many. The rest of it stays."""
    if not page.is_file():
        raise UserError("no such page", where=page)
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError("the markers are missing", where=page, fix=f"put two lines there: {BEGIN} and {END}")
    parts = [part for table in tables if (part := markdown(table, results_folder))]
    body = "\n".join([overview(tables, results_folder), *parts])
    write_text(page, f"{before}{BEGIN}\n\n{body}\n{END}{after}")
    return len(parts)


def overview(tables: Sequence[Table], results_folder: Path) -> str:
    """What was to be run and what was: a line for every table and grade, in runs (a row with one seed)."""
    lines = ["### What was run", "", "| table | grade | runs done | left | extra runs done | hours |", f"|{'---|' * 6}"]
    for table in tables:
        results = read_results(results_folder, table.name)
        for grade in table.grades:
            entries = current(table, results, grade)
            done = {(entry.row, entry.seed) for entry in entries}
            todo = list(jobs(table, grade))
            must, extra = [job for job in todo if not job.row.extra], [job for job in todo if job.row.extra]
            counts = [
                f"{sum((job.row.name, job.seed) in done for job in part)} of {len(part)}" for part in (must, extra)
            ]
            left = _names([job for job in must if (job.row.name, job.seed) not in done], must)
            hours = f"{_hours(entries):.1f}" if entries else "-"
            lines.append(f"| {table.name} | {grade} | {counts[0]} | {left} | {counts[1] if extra else '-'} | {hours} |")
    seen = (
        "A verdict's *sees 2.5* is its power: the smallest true difference, in points, that such a trial (its images, its seeds) "
        "tells from none four times in five. A difference below it may be there and not be seen."
    )
    return "\n".join([*lines, "", seen, ""])


def _names(left: Sequence[Job], every: Sequence[Job]) -> str:
    """Rows that are left, with their seeds where others of them are done."""
    if not left:
        return "none"
    if len(left) == len(every):
        return "all"
    words = []
    for name in dict.fromkeys(job.row.name for job in left):
        seeds = [job.seed for job in left if job.row.name == name]
        whole = len(seeds) == sum(job.row.name == name for job in every)
        words.append(name if whole else f"{name} (seed {', '.join(map(str, seeds))})")
    return ", ".join(words)


def markdown(table: Table, results_folder: Path) -> str:
    """A section of the page, or "" for a table without results."""
    results = read_results(results_folder, table.name)
    sections, gone = [], False
    for grade in table.grades:
        entries, old = current(table, results, grade), withdrawn(table, results, grade)
        gone |= bool(old)
        if entries:
            sections.append(_grade(table, grade, entries, results))
        if old:
            sections.append(
                f"{_conditions(grade, old)} Withdrawn, and to be run again:\n\n" + "\n".join(_rows(table, old, results))
            )
    if not sections:
        return ""
    about = f"{table.about.strip()}\n\n" if table.about.strip() else ""
    why = f"Withdrawn: {table.withdrawn.strip()}\n\n" if gone and table.withdrawn.strip() else ""
    return f"### {table.title}\n\n{why}Source: {table.source}. {about}" + "\n".join(sections)


def summary(table: Table, grade: str, results_folder: Path) -> str:
    """The table and verdicts of one grade, for a terminal."""
    results = read_results(results_folder, table.name)
    entries = current(table, results, grade)
    return _grade(table, grade, entries, results) if entries else "nothing done yet"


def _grade(table: Table, grade: str, entries: list[Entry], results: Results) -> str:
    lines = _rows(table, entries, results) if entries else []
    for verdict in results.verdicts:
        if verdict.grade == grade:
            lines.append(f"* **{verdict.verdict}**: {verdict.text} ({verdict.detail}.)")
    total = len(table.rows_of(grade))
    ran = len({entry.row for entry in entries})
    left = f" {total - ran} of {total} rows have not been run." if ran < total else ""
    return f"{_conditions(grade, entries)}{left}\n\n" + "\n".join(lines) + "\n"


def _rows(table: Table, entries: list[Entry], results: Results) -> list[str]:
    """Markdown rows: one for every row and variant, means over seeds, intervals over images and seeds."""
    metrics = [name for name in table.metrics if any(name in entry.metrics for entry in entries)]
    extra = [name for name in ("top1",) if name not in metrics and any(name in e.metrics for e in entries)]
    metrics = extra + metrics
    costs = [name for name in _COSTS if any(name in entry.facts for entry in entries)]
    places = len({entry.facts.get("hardware") for entry in entries if "tool" not in entry.facts}) > 1
    head = ["row", "seeds", *metrics, *(_COSTS[name][0] for name in costs), *(["run on"] if places else [])]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    labels = {row.name: row.label or row.name for row in table.rows}
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        label = labels[own[0].row] + (f", {own[0].variant}" if own[0].variant else "")
        cells = [_cell(name, own, metric, results) for metric in metrics]
        cells += [_cost(own, cost) for cost in costs]
        cells += [", ".join(dict.fromkeys(str(e.facts.get("hardware", "-")) for e in own))] if places else []
        lines.append(f"| {' | '.join([label, str(len(own)), *cells])} |")
    return [*lines, ""]


_COSTS: dict[str, tuple[str, float, int]] = {
    "parameters": ("M params", 1e-6, 2),
    "gflops": ("GFLOPs", 1.0, 3),
    "ms": ("ms", 1.0, 1),
    "seconds": ("s", 1.0, 0),
}
"""Fact to its column's head, factor and decimals."""


def _cell(name: str, entries: list[Entry], metric: str, results: Results) -> str:
    values = [entry.metrics[metric] for entry in entries if metric in entry.metrics]
    if len(values) < len(entries):
        return "-"
    text = f"{100 * float(np.mean(values)):.1f}"
    if all(metric in results.draws.get(entry.key, {}) for entry in entries):
        found = interval(seed_means(name, entries, metric, results))
        text += f" ({100 * found[0]:.1f}-{100 * found[1]:.1f})" if found else ""
    return text


def _cost(entries: list[Entry], name: str) -> str:
    _, factor, digits = _COSTS[name]
    values = [entry.facts[name] for entry in entries if isinstance(entry.facts.get(name), int | float)]
    return f"{factor * float(np.mean(values)):.{digits}f}" if values else "-"


def _conditions(grade: str, entries: list[Entry]) -> str:
    """One paragraph: where and on what the rows were run. Other tools' rows are named apart."""
    own, others = ([e for e in entries if ("tool" in e.facts) == other] for other in (False, True))

    def several(name: str, among: Sequence[Entry] = own or entries) -> str:
        values: list[Any] = [entry.facts[name] for entry in among if entry.facts.get(name) not in (None, "")]
        return ", ".join(map(str, dict.fromkeys(values)))

    versions = f"flyspeck {several('version')} ({several('commit') or 'no commit'}); " if own else ""
    tools = "".join(f" {_tool(entry)}" for entry in others)
    timed = f"; ms is the median of {several('ms_runs')} runs of one image" if several("ms_runs") else ""
    return (
        f"Grade `{grade}`: {several('training_images')} training and {several('validation_images')} validation "
        f"images, {several('epochs')} epochs; protocol {several('protocol') or '-'}, metrics in %, means over seeds, 95 % "
        f"intervals by bootstrap over images and seeds; GFLOPs are multiply-adds at {several('size') or '-'}{timed}. "
        f"Run on {several('hardware')}, {several('threads')} thread(s), torch {several('torch')}, "
        f"{versions}{_hours(entries):.1f} hours of training in all.{tools}"
    )


def _tool(entry: Entry) -> str:
    """A sentence on another tool's row."""
    facts = entry.facts
    words = [str(facts[name]) for name in ("tool", "version", "model") if name in facts]
    more = [f"{facts['epochs']} epochs"] if "epochs" in facts else []
    more += [str(facts[name]) for name in ("settings", "licence") if name in facts]
    return f"Row `{entry.row}` is by another tool, {' '.join(words)}{' (' + '; '.join(more) + ')' if more else ''}."


def _hours(entries: Sequence[Entry]) -> float:
    """Hours of training. The variants of a run share its seconds, so that each run counts once."""
    seconds = {(entry.row, entry.seed): float(entry.facts.get("seconds", 0)) for entry in entries}
    return sum(seconds.values()) / 3600
