"""What a table's claims will be able to see, told before it is run, by the spread of the trainings that are there.

A difference of two rows is blurred by the images it is measured on, and by training, of which every seed is a draw. Images blur
in two ways: some suit one method better than another, whatever its seed, and some suit one training by accident; the second
becomes less with more seeds, as training's own noise does. All are known from rows of any kind on the same images. A trial that
cannot see what it looks for wants more seeds, or more images where these alone blur too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from flyspeck.errors import counted
from flyspeck_lab.claims import SEEN
from flyspeck_lab.results import Entry, Results, read_results
from flyspeck_lab.table import Claim, Table, jobs

TARGET = 0.02
"""The difference that a trial shall see, two points."""
_ROWS = 8
"""Rows of a table that are compared with each other; more tell the same."""


@dataclass(frozen=True)
class Spread:
    """Variances of a metric, in its units squared; NaN where nothing tells."""

    methods: float
    """Of the difference of two rows of many seeds each, over resamples of the images."""
    training: float
    """Of one row, from seed to seed: of its value, and of what it owes to accidents with single images."""

    def seen(self, seeds: Sequence[int]) -> float:
        """The smallest true difference of two rows of so many seeds that is told from none in 80 % of trials, at 5 %."""
        return SEEN * math.sqrt(self.methods + sum(self.training / count for count in seeds))

    def needed(self, target: float = TARGET) -> int | None:
        """Seeds of each row that see `target`; None where the images alone blur more."""
        room = (target / SEEN) ** 2 - self.methods
        return max(1, math.ceil(2 * self.training / room)) if room > 0 else None


def foretold(
    table: Table, grade: str, tables: Sequence[Table], results_folder: Path, *, seeds: int | None = None
) -> list[str]:
    """A line for every claim of two rows: what it will see with its seeds, and the seeds that see `TARGET`.

    Args:
        tables: Those that may tell of the spread; the table itself counts in any case.
        seeds: As `jobs` takes it.
    """
    counts: dict[str, int] = {}
    places: dict[str, str] = {}
    for job in jobs(table, grade, seeds=seeds):
        counts[job.row.name] = counts.get(job.row.name, 0) + 1
        places[job.row.name] = job.data.val or ""
    others = [table, *(other for other in tables if other.name != table.name)]
    known = [(other, read_results(results_folder, other.name)) for other in others]
    spreads: dict[tuple[str, str, str | None], Spread] = {}
    lines = []
    for claim in table.claims:
        names = [] if claim.row is None else [name.partition("@")[0] for name in claim.rows]
        if not names or not all(name in counts for name in names) or (claim.grades and grade not in claim.grades):
            continue
        key = (places[names[0]], claim.metric, claim.more_at)
        if key not in spreads:
            spreads[key] = known_spread(claim, key[0], known)
        lines.append(_line(claim, [counts[name] for name in names], spreads[key]))
    return lines


def _line(claim: Claim, seeds: Sequence[int], spread: Spread) -> str:
    if math.isnan(spread.seen(seeds)):
        return f"nothing tells yet what it sees: {claim.text}"
    needed = spread.needed()
    wanted = (
        f"{100 * TARGET:g} with {counted(needed, 'seed')} each" if needed else f"{100 * TARGET:g} with more images only"
    )
    enough = spread.seen(seeds) <= TARGET
    of = " and ".join(counted(count, "seed") for count in dict.fromkeys(seeds))
    return f"sees {100 * spread.seen(seeds):.1f} with {of}{'' if enough else f' ({wanted})'}: {claim.text}"


def known_spread(claim: Claim, val: str, known: Sequence[tuple[Table, Results]]) -> Spread:
    """That of a claim's metric on the images `val` of a data root, from all results of the tables."""
    values: list[tuple[float, int]] = []  # variance from seed to seed, and its degrees of freedom
    accidents: list[float] = []  # the same of one image's luck: half of the variance of the difference of two seeds
    pairs: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for table, results in known:
        for entries in _alike(table, results, val):
            by_row = [[e for e in entries if e.name == name] for name in dict.fromkeys(e.name for e in entries)]
            for row in by_row:
                found = [value for entry in row if (value := _value(claim, entry)) is not None]
                values += [(float(np.var(found, ddof=1)), len(found) - 1)] if len(found) > 1 else []
            drawn = [[d for entry in row if (d := _draws(claim, entry, results)) is not None] for row in by_row]
            accidents += [float(np.nanvar(a - b)) / 2 for row in drawn for a, b in combinations(row, 2)]
            pairs += combinations([row for row in drawn if row][:_ROWS], 2)
    if not values or not accidents:
        return Spread(math.nan, math.nan)
    accident = float(np.median(accidents))
    methods = [
        max(0.0, float(np.nanvar(np.mean(a, 0) - np.mean(b, 0))) - accident * (1 / len(a) + 1 / len(b)))
        for a, b in pairs
    ]
    training = sum(value * degrees for value, degrees in values) / sum(degrees for _, degrees in values)
    return Spread(float(np.median(methods)) if methods else 0.0, training + accident)


def _alike(table: Table, results: Results, val: str) -> Iterator[list[Entry]]:
    """A table's entries that were measured on these images, by grade."""
    for grade in table.grades:
        found = [
            entry
            for job in jobs(table, grade)
            if (job.data.val or "") == val
            for entry in results.finished(grade, job.row.name, job.seed, job.definition)
        ]
        if found:
            yield found


def _draws(claim: Claim, entry: Entry, results: Results) -> np.ndarray | None:
    """(S,) the claim's quantity over resamples of the images, which are the same for all entries of a table on these images."""
    draws = results.draws.get(entry.key, {})
    if claim.metric not in draws or (claim.more_at and claim.more_at not in draws):
        return None
    return draws[claim.metric] - draws[claim.more_at] if claim.more_at else draws[claim.metric]


def _value(claim: Claim, entry: Entry) -> float | None:
    if claim.metric not in entry.metrics or (claim.more_at and claim.more_at not in entry.metrics):
        return None
    return entry.metrics[claim.metric] - (entry.metrics[claim.more_at] if claim.more_at else 0.0)
