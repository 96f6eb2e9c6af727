"""Verdicts: what the resampled metrics say about a claim.

Images are resampled in pairs: in each resample both rows are scored on the same images. Seeds are resampled on
their own for each row, as the same seed does not make two different models alike. With one seed the interval knows nothing of
training's own noise, and the detail says so; even three seeds give an interval that is somewhat too narrow.
"""

from __future__ import annotations

import hashlib

import numpy as np

from flyspeck.publish.score import LEVEL, SAMPLES
from flyspeck_lab.results import Entry, Results, Verdict
from flyspeck_lab.table import Claim, Table, jobs

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
SEEN = 1.960 + 0.842
"""Standard errors at which a two-sided test at 5 % finds a true difference in 80 % of trials (the normal's quantiles)."""


def current(table: Table, results: Results, grade: str) -> list[Entry]:
    """The entries of a grade that are up to date with the table."""
    return [e for job in jobs(table, grade) for e in results.finished(grade, job.row.name, job.seed, job.definition)]


def withdrawn(table: Table, results: Results, grade: str) -> list[Entry]:
    """The entries of an earlier revision whose jobs have not been run again, the latest of each job."""
    found = []
    for job in jobs(table, grade):
        earlier = (job.definition_at(revision) for revision in range(table.revision, 0, -1))
        entries = (results.finished(grade, job.row.name, job.seed, definition) for definition in earlier)
        if not next(entries):
            found += next((old for old in entries if old), [])
    return found


def judge(table: Table, results: Results) -> list[Verdict]:
    """A verdict for every claim and grade."""
    verdicts = []
    for grade in table.grades:
        entries = current(table, results, grade)
        present = {row.name for row in table.rows_of(grade)}
        for claim in table.claims:
            wanted = not claim.grades or grade in claim.grades
            if wanted and all(name.partition("@")[0] in present for name in claim.rows):
                verdicts.append(_verdict(claim, grade, entries, results))
    return verdicts


def _verdict(claim: Claim, grade: str, entries: list[Entry], results: Results) -> Verdict:
    by_row = {name: [e for e in entries if e.name == name] for name in claim.rows}
    missing = [name for name, found in by_row.items() if not found]
    metrics = [claim.metric, *([claim.more_at] if claim.more_at else [])]
    for name, found in by_row.items():
        if any(metric not in results.draws.get(e.key, {}) for e in found for metric in metrics):
            missing.append(f"{name} ({' and '.join(metrics)})")
    if missing:
        return Verdict(grade, claim.text, NOT_RUN, f"missing: {', '.join(missing)}")
    if claim.best_of:
        verdict, detail = _choice(claim, by_row, results)
    else:
        verdict, detail = _pair(claim, by_row, results)
    seeds = sorted({len(found) for found in by_row.values()})
    words = "1 seed" if seeds == [1] else f"{'-'.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
    noise = "; training's own noise is not in the interval" if seeds[0] == 1 else ""
    # One seed can show a difference of two trainings, not of two methods: the verdict says so itself.
    weak = seeds[0] == 1 and verdict != UNDECIDED
    return Verdict(grade, claim.text, f"{verdict} (one seed)" if weak else verdict, f"{detail}; {words}{noise}")


def seed_means(name: str, entries: list[Entry], metric: str, results: Results) -> np.ndarray:
    """(S,) mean of a row's metric over resampled seeds, each on resampled images."""
    values = np.stack([results.draws[entry.key][metric] for entry in entries])  # (seeds, S)
    # The row's name seeds the draw: the same from run to run, another for another row.
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    picked = rng.integers(len(entries), size=(len(entries), SAMPLES))
    return values[picked, np.arange(SAMPLES)].mean(0)


def _mean(entries: list[Entry], metric: str) -> float:
    return float(np.mean([entry.metrics[metric] for entry in entries]))


def _pair(claim: Claim, by_row: dict[str, list[Entry]], results: Results) -> tuple[str, str]:
    assert claim.row is not None
    assert claim.than is not None
    ours, theirs = by_row[claim.row], by_row[claim.than]

    def difference(metric: str) -> tuple[float, np.ndarray]:
        drawn = seed_means(claim.row, ours, metric, results) - seed_means(claim.than, theirs, metric, results)  # type: ignore[arg-type]
        return _mean(ours, metric) - _mean(theirs, metric), drawn

    value, drawn = difference(claim.metric)
    what = f"difference {claim.metric}"
    if claim.more_at is not None:
        other, other_drawn = difference(claim.more_at)
        value, drawn = value - other, drawn - other_drawn
        what = f"difference {claim.metric} less that at {claim.more_at}"
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    detail = f"{what} {100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), sees {100 * seen_from(known):.1f}"
    if claim.relation == "near":
        inside, outside = -claim.margin <= low and high <= claim.margin, low > claim.margin or high < -claim.margin
        return (HOLDS if inside else FAILS if outside else UNDECIDED), f"{detail}, near: within {100 * claim.margin:g}"
    margin = f", wanted more than {100 * claim.margin:g}" if claim.margin else ""
    return (HOLDS if low > claim.margin else FAILS if high <= claim.margin else UNDECIDED), detail + margin


def seen_from(drawn: np.ndarray) -> float:
    """The smallest true difference that such a trial tells from none in 80 % of its repetitions, at 5 % (its power).

    Args:
        drawn: (S,) the difference over resamples; its deviation is the standard error.
    """
    return SEEN * float(np.std(drawn))


def _choice(claim: Claim, by_row: dict[str, list[Entry]], results: Results) -> tuple[str, str]:
    drawn = np.stack([seed_means(name, by_row[name], claim.metric, results) for name in claim.among])
    drawn = drawn[:, np.isfinite(drawn).all(0)]
    share = float(np.isin(np.array(claim.among)[drawn.argmax(0)], claim.best_of).mean())
    best = max(claim.among, key=lambda name: _mean(by_row[name], claim.metric))
    detail = f"best at {claim.metric}: {best} ({100 * _mean(by_row[best], claim.metric):.1f}); "
    detail += f"one of {', '.join(claim.best_of)} in {100 * share:.0f} % of resamples"
    tail = (1 - LEVEL) / 2
    return (HOLDS if share >= 1 - tail else FAILS if share <= tail else UNDECIDED), detail
