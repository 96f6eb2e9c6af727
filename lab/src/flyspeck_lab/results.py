"""What a table keeps of its runs: one json and one CSV to read, one npz of resampled metrics to check claims again.

The files hold no path and nothing else of the machine but its processor's name, so that they can be published.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.files import write_bytes, write_json, write_text

_SCALE = 65534.0
"""Metrics in [0, 1] as 16-bit whole numbers; the last one stands for NaN."""
_NAN = 65535


@dataclass(frozen=True)
class Entry:
    """The result of one row with one seed; a row with several results (`variant`) has an entry for each."""

    grade: str
    row: str
    seed: int
    definition: str
    """Of the job; an entry of another definition is out of date."""
    variant: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the best weights, in [0, 1]; what there was nothing to find for is left out."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """95 % intervals (low, high), by bootstrap over the validation images."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Parameters, GFLOPs, seconds, images, versions, hardware."""

    @property
    def key(self) -> str:
        """`grade/row/seed/variant`, which tells entries apart."""
        return f"{self.grade}/{self.row}/{self.seed}/{self.variant}"

    @property
    def name(self) -> str:
        """`row` or `row@variant`."""
        return f"{self.row}@{self.variant}" if self.variant else self.row


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    grade: str
    text: str
    verdict: str
    """`holds`, `does not hold`, `undecided`, or `not run`; the first two with `(one seed)` where a row has only one."""
    detail: str = ""
    """The numbers, in words."""


@dataclass
class Results:
    """All of a table's results, as its files hold them."""

    table: str
    entries: list[Entry] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    draws: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Entry key to metric to `(S,)` resampled values."""

    def finished(self, grade: str, row: str, seed: int, definition: str) -> list[Entry]:
        """The entries of a job, none if it is not finished or out of date."""
        wanted = (grade, row, seed, definition)
        return [e for e in self.entries if (e.grade, e.row, e.seed, e.definition) == wanted]

    def replace(self, entries: list[Entry], draws: dict[str, dict[str, np.ndarray]]) -> None:
        """Puts a job's entries in the place of its earlier ones."""
        first = entries[0]
        gone = [e for e in self.entries if (e.grade, e.row, e.seed) == (first.grade, first.row, first.seed)]
        for entry in gone:
            self.draws.pop(entry.key, None)
        self.entries = [e for e in self.entries if e not in gone] + entries
        self.draws |= draws


def read_results(folder: Path, table: str) -> Results:
    """The results of a table in `folder`; empty where there are none yet."""
    path = folder / f"{table}.json"
    if not path.is_file():
        return Results(table)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [Entry(**entry) for entry in content["entries"]]
        verdicts = [Verdict(**verdict) for verdict in content["verdicts"]]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError("not the results of a table", where=path, fix="move the file away") from None
    draws: dict[str, dict[str, np.ndarray]] = {}
    packed, known = folder / f"{table}.npz", {entry.key for entry in entries}
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as arrays:
            for name in arrays.files:
                key, _, metric = name.rpartition("|")
                if key in known:  # a kill may have left those of a row that is not done
                    draws.setdefault(key, {})[metric] = _unpack(arrays[name])
    return Results(table, entries, verdicts, draws)


def write_results(folder: Path, results: Results) -> None:
    """Writes npz, CSV and json; each file is replaced as a whole, so that a kill leaves an old or a new one.

    A row counts as done when it is in the json, which is therefore the last: a kill never costs its resamples or its line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "table": results.table,
        "entries": [asdict(entry) for entry in results.entries],
        "verdicts": [asdict(verdict) for verdict in results.verdicts],
    }
    buffer = io.BytesIO()
    arrays = {f"{key}|{name}": _pack(v) for key, metrics in results.draws.items() for name, v in metrics.items()}
    if arrays:
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(folder / f"{results.table}.npz", buffer.getvalue())
    write_text(folder / f"{results.table}.csv", _csv(results))
    write_json(folder / f"{results.table}.json", content)


def _csv(results: Results) -> str:
    names = list(dict.fromkeys(name for entry in results.entries for name in entry.metrics))
    facts = list(dict.fromkeys(name for entry in results.entries for name in entry.facts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sure = {name for entry in results.entries for name in entry.intervals}
    head = [c for name in names for c in ((name, f"{name}_low", f"{name}_high") if name in sure else (name,))]
    writer.writerow(["grade", "row", "variant", "seed", *head, *facts])
    for entry in results.entries:
        numbers: list[Any] = []
        for name in names:
            numbers.append(entry.metrics.get(name, ""))
            numbers += entry.intervals.get(name, ["", ""]) if name in sure else []
        known = [entry.facts.get(name, "") for name in facts]
        writer.writerow([entry.grade, entry.row, entry.variant, entry.seed, *numbers, *known])
    return text.getvalue()


def _pack(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, np.round(np.where(known, values, 0) * _SCALE), _NAN).astype(np.uint16)


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.where(packed == _NAN, np.nan, packed / _SCALE)
