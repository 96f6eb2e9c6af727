"""What is known of the papers' rows: printed, seen to run on a fake set, measured here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError
from flyspeck.files import read_records
from flyspeck_lab.paper_recipes import printed, recipe_of
from flyspeck_lab.paper_rows import Found, find, seen_to_run
from flyspeck_lab.results import Results, read_results
from flyspeck_lab.table import Job, Table, load_table

_SHOWN = ("ap50_tiny", "mr50_tiny", "top1", "ap50_all")
DIFFERENCES = {
    "faster-rcnn": "faster-rcnn", "sm": "sm", "fcos": "fcos", "rfla": "rfla", "retinanet-sspnet": "retinanet-sspnet",
    "cascade-sspnet": "cascade-sspnet", "faster-sspnet": "faster-sspnet",
}  # fmt: skip
"""Rows of 002/table8 and what the rows of Tables 6 and 7 that they come from begin with."""


def described(found: Found, *, tables: Path, results: Path, runs: Path) -> dict[str, Any]:
    """A row as plain values: what is printed and by which protocol, and what is known of it here."""
    return {
        "row": found.id,
        "label": found.row.label,
        "protocols": found.table.protocols,
        "published": dict(zip(found.table.columns, found.row.published or [], strict=False)),
        "kind": found.kind,
        "missing": found.row.missing,
        "fake": on_fake(found),
        "here": measured_here(found, tables=tables, results=results, runs=runs),
        "differences": differences(found),
        "note": found.row.note,
    }


def on_fake(found: Found) -> str:
    """What became of training, prediction and its own evaluation on a fake set of two steps."""
    if found.kind != "recipe":
        return found.kind
    return seen_to_run().get(found.id, "not tried")


def measured_here(found: Found, *, tables: Path, results: Path, runs: Path) -> str:
    """The metric of a run of this row in `runs`, and of the row of `benchmarks/tables` that measures the same."""
    told = []
    records = runs / found.run_name / "metrics.jsonl" if found.kind == "recipe" else None
    if records is not None and records.is_file():
        best = recipe_of(found, Path()).evaluate.best
        values = [record["metrics"][best] for record in read_records(records) if best in record.get("metrics", {})]
        told += [f"{best} {100 * max(values):.1f} ({runs / found.run_name})"] if values else []
    if found.row.here:
        told.append(_of_table(found.row.here, tables, results))
    return "; ".join(part for part in told if part)


def _of_table(place: str, tables: Path, results: Path) -> str:
    """`alpha/statistic` to `ap50_tiny 29.2 (alpha/statistic, cpu, 3 seeds)`; a variant is written `mf@df0.5`."""
    name, _, row_name = place.partition("/")
    row_name, _, variant = row_name.partition("@")
    path = tables / f"{name}.yaml"
    if not path.is_file():
        return ""
    table, known = _read(path, results)
    row = table.row(row_name)
    for grade in reversed(table.grades):
        if row.grades and grade not in row.grades:
            continue
        jobs = [Job(table, grade, row, seed) for seed in row.seeds]
        entries = [
            e for job in jobs for e in known.finished(grade, row.name, job.seed, job.definition) if e.variant == variant
        ]
        metric = next((m for m in _SHOWN if entries and all(m in e.metrics for e in entries)), None)
        if metric is not None:
            mean = 100 * sum(e.metrics[metric] for e in entries) / len(entries)
            return f"{metric} {mean:.1f} ({place}, {grade}, {len(entries)} seed{'s' * (len(entries) > 1)})"
    return f"{place}: not run"


@cache
def _read(path: Path, results: Path) -> tuple[Table, Results]:
    return load_table(path), read_results(results, path.stem)


def differences(found: Found) -> str:
    """Of 002's Table 8: what the printed numbers of Tables 6 and 7 give."""
    if (found.paper.paper, found.table_name) != ("002", "table8"):
        return ""
    values = bottom_heavy_gains(found.name)
    return ", ".join(f"{name} {value:+.2f}" for name, value in zip(found.table.columns, values, strict=True))


def bottom_heavy_gains(name: str) -> list[float]:
    """AP50_tiny of the bottom-heavy backbone less the standard one's, by pre-training, as Tables 6 and 7 print them.

    `average` is the mean over the methods. Raises UserError for another name.
    """
    if name == "average":
        columns = zip(*(bottom_heavy_gains(method) for method in DIFFERENCES), strict=True)
        return [sum(column) / len(DIFFERENCES) for column in columns]
    if name not in DIFFERENCES:
        raise UserError(f"no method '{name}'", where="002/table8")

    def gain(pattern: str) -> float:
        ours, theirs = (find(pattern.format(b=b)).row.published for b in ("bh_resnet50", "resnet50"))
        assert ours is not None
        assert theirs is not None
        return round(float(ours[0]) - float(theirs[0]), 2)  # type: ignore[arg-type]

    start = DIFFERENCES[name]
    return [
        gain(f"002/table6/{start}-{{b}}"),
        gain(f"002/table7/{start}-{{b}}-imagenet32"),
        gain(f"002/table7/{start}-{{b}}-imagenet"),
    ]


def lines(rows: Sequence[Found], **places: Path) -> list[str]:
    """The rows for people, table by table, and at last how many of them run."""
    told: list[str] = []
    before = ""
    for found in rows:
        place = f"{found.paper.paper}/{found.table_name}"
        if place != before:
            told.append(f"{place}: {found.table.title} ({', '.join(found.table.protocols)})")
            before = place
        about = described(found, **places)
        told.append(f"  {found.name:<28} {found.row.label}: {printed(found) or 'no number printed'}")
        state = {"missing": f"not here: {found.row.missing}", "commands": f"by {'; '.join(found.row.commands)}"}
        parts = [state.get(found.kind, f"on the fake: {about['fake']}")]
        parts += [f"from Tables 6 and 7: {about['differences']}"] if about["differences"] else []
        parts += [f"run here: {about['here']}"] if about["here"] else []
        told.append(f"  {'':<28} {'; '.join(parts)}")
    return [*told, summary(rows)]


def summary(rows: Sequence[Found]) -> str:
    """How many rows there are, of what kind, and how many of those with a recipe were seen to run."""
    kinds = [found.kind for found in rows]
    seen = sum(found.kind == "recipe" and on_fake(found) == "runs" for found in rows)
    return (
        f"{len(rows)} rows: {kinds.count('recipe')} by a recipe ({seen} of them seen to run on a fake set), "
        f"{kinds.count('commands')} by commands, {kinds.count('missing')} of systems that are not here"
    )
