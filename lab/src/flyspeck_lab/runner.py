"""The grid, row by row: what is finished is skipped, what was broken off goes on, and every row is written at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck_lab.claims import judge, withdrawn
from flyspeck_lab.kinds import Folders, rescore, run
from flyspeck_lab.results import read_results, write_results
from flyspeck_lab.table import Job, Table, jobs

log = logging.getLogger("flyspeck")


@dataclass(frozen=True)
class State:
    """Where a job stands."""

    job: Job
    status: str
    """`done`, `begun`, `withdrawn` (a result of an earlier revision is there), `changed` (of another definition), `left`."""
    seconds: float = 0.0


def states(table: Table, grade: str, results_folder: Path, runs: Path, **choice: object) -> list[State]:
    """Every job of a grade and where it stands; `choice` is that of `jobs`."""
    results = read_results(results_folder, table.name)
    old = {(entry.row, entry.seed) for entry in withdrawn(table, results, grade)}
    found = []
    for job in jobs(table, grade, **choice):  # type: ignore[arg-type]
        entries = results.finished(grade, job.row.name, job.seed, job.definition)
        if entries:
            found.append(State(job, "done", float(entries[0].facts.get("seconds", 0.0))))
        elif (job.folder(runs) / "state.pt").is_file():
            found.append(State(job, "begun"))
        elif (job.row.name, job.seed) in old:
            found.append(State(job, "withdrawn"))
        elif any((e.grade, e.row, e.seed) == (grade, job.row.name, job.seed) for e in results.entries):
            found.append(State(job, "changed"))
        else:
            found.append(State(job, "left"))
    return found


@dataclass(frozen=True)
class Order:
    """What is to be run of tables, where, and for how long."""

    grade: str
    places: Folders
    results_folder: Path
    rows: list[str] | None = None
    """Names of the only rows that are meant; None: all of the grade."""
    seeds: int | None = None
    """So many of each row; None: as many as the row says."""
    minutes: float | None = None
    """After these no further job is begun; None: all are."""

    def left(self, todo: Sequence[Job]) -> int:
        """How many of the jobs are not finished."""
        return sum(not finished(job, self.results_folder) for job in todo)


def run_tables(tables: Sequence[Table], order: Order) -> tuple[int, int]:
    """Runs the unfinished jobs, table after table and then their extra rows; returns how many were done and how many are left.

    An external or extra row whose input is missing (another tool's detections, a data
    set) is passed over with a line in the log, as are those that need it; with `rows` named, it is an error.
    """
    started, done = time.monotonic(), 0
    passed: set[tuple[str, str]] = set()
    todo = [job for table in tables for job in jobs(table, order.grade, rows=order.rows, seeds=order.seeds)]
    todo.sort(key=lambda job: job.row.extra)
    for number, job in enumerate(todo, 1):
        if finished(job, order.results_folder):
            continue
        if order.minutes is not None and time.monotonic() - started > 60 * order.minutes:
            break
        name = (job.table.name, job.key)
        if any((job.table.name, need.key) in passed for need in job.needs()):
            passed.add(name)
            continue
        log.info("%s %s (%d of %d)", *name, number, len(todo))
        try:
            _provide(job, order.places)
            outcome = run(job, order.places)
        except UserError as error:
            if order.rows is not None or not (job.row.kind == "external" or job.row.extra):
                raise
            log.warning("%s %s passed over: %s", *name, error)
            passed.add(name)
            continue
        # Read again: another process may have written its rows meanwhile.
        results = read_results(order.results_folder, job.table.name)
        results.replace(outcome.entries, outcome.draws)
        results.verdicts = judge(job.table, results)
        write_results(order.results_folder, results)
        done += 1
    return done, order.left(todo)


def rescore_table(table: Table, grade: str, *, places: Folders, results_folder: Path) -> int:
    """Scores every finished training, and other tools' detections, whose folder is here again; returns how many."""
    count = 0
    for job in jobs(table, grade):
        results = read_results(results_folder, table.name)
        before = results.finished(grade, job.row.name, job.seed, job.definition)
        if (
            before
            and job.row.kind in ("train", "distill", "external")
            and (job.folder(places.runs) / "detections.json").is_file()
        ):
            outcome = rescore(job, places, before)
            results.replace(outcome.entries, outcome.draws)
            write_results(results_folder, results)
            count += 1
    return count


def rejudge(table: Table, results_folder: Path) -> None:
    """Judges the claims again from the stored resamples, after a table's claims were changed."""
    results = read_results(results_folder, table.name)
    if results.entries:
        results.verdicts = judge(table, results)
        write_results(results_folder, results)


def finished(job: Job, results_folder: Path) -> bool:
    """Whether a job's result is there, and up to date."""
    results = read_results(results_folder, job.table.name)
    return bool(results.finished(job.grade, job.row.name, job.seed, job.definition))


def _provide(job: Job, places: Folders) -> None:
    """Runs what `job` builds on and was trained elsewhere: the results are here, the weights are not."""
    for need in job.needs():
        if not any(need.folder(places.runs).glob("*.safetensors")):
            log.info("%s needs the run of %s", job.key, need.key)
            _provide(need, places)
            run(need, places)
