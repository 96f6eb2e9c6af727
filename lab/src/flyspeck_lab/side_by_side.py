"""Rows of tables by several processes at once, for a GPU that one small training does not fill.

Each process takes the next job that nobody has taken and whose needs are finished; results are written one at a time. The
order is that of `run_tables`. What fails is told and left; the others go on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from filelock import FileLock

from flyspeck.errors import UserError
from flyspeck.files import write_text
from flyspeck_lab.kinds import run
from flyspeck_lab.results import read_results, write_results
from flyspeck_lab.runner import Order, finished
from flyspeck_lab.table import Job, jobs, load_table

log = logging.getLogger("flyspeck")
TAKEN = "taken"
"""What the file of a job says, with the process that has it."""
WAIT = 0.5
"""Seconds until it is looked again whether what a job needs is finished."""


@dataclass(frozen=True)
class Share:
    """What every process is told."""

    tables: Sequence[Path]
    order: Order
    until: float | None
    """`time.time()` after which no further job is begun."""
    taken: Path
    """Folder in which a job that is taken has a file, which says what became of it."""
    threads: int
    """Of each process."""


def run_side_by_side(tables: Sequence[Path], order: Order, *, processes: int) -> tuple[int, int]:
    """Runs the unfinished jobs of `tables` (their files) by so many processes; returns how many were done and how many are left.

    A job that fails is told in the log, and those that need it are left. No model is timed, whatever the table asks for.
    """
    if _takes_turns():
        log.warning(
            "processes take turns on a GPU and are many times slower for it: start NVIDIA's MPS first "
            "(nvidia-cuda-mps-control -d)"
        )
    until = None if order.minutes is None else time.time() + 60 * order.minutes
    context = multiprocessing.get_context("spawn")
    todo = _todo(tables, order)
    before = order.left(todo)
    with tempfile.TemporaryDirectory() as taken:
        threads = max(1, (os.cpu_count() or 1) // processes)
        share = Share(tables, order, until, Path(taken), threads)
        started = [context.Process(target=_work, args=(share,)) for _ in range(processes)]
        for process in started:
            process.start()
        try:
            running = list(started)
            while running:
                connection.wait([process.sentinel for process in running])
                for process in [one for one in running if one.exitcode is not None]:
                    running.remove(process)
                    _give_up(share.taken, process.pid)
        finally:
            for process in started:
                process.terminate()
    left = order.left(todo)
    return before - left, left


def _give_up(taken: Path, process: int | None) -> None:
    """What a process had taken and not ended when it died (of memory, say) has failed: others would wait for it."""
    for mark in taken.glob("*[0-9]"):  # not the part of one that is being written
        if mark.read_text(encoding="utf-8") == f"{TAKEN} {process}":
            log.warning("%s failed: its process died", mark.name)
            write_text(mark, "failed")


def _takes_turns() -> bool:
    """Whether there is a CUDA device without NVIDIA's multi-process service, as far as its usual places tell."""
    import torch

    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return torch.cuda.is_available() and not pipes.is_dir()


def _todo(tables: Sequence[Path], order: Order) -> list[Job]:
    # Beside others nothing can be timed.
    loaded = [load_table(path).model_copy(update={"latency_runs": 0}) for path in tables]
    todo = [job for table in loaded for job in jobs(table, order.grade, rows=order.rows, seeds=order.seeds)]
    return sorted(todo, key=lambda job: job.row.extra)


def _work(share: Share) -> None:
    """One process: job after job."""
    import torch

    logging.basicConfig(level=logging.INFO, format=f"[{os.getpid()}] %(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    torch.set_num_threads(share.threads)
    todo, lock = _todo(share.tables, share.order), turn(share.taken)
    parent = multiprocessing.parent_process()
    while (share.until is None or time.time() < share.until) and (parent is None or parent.is_alive()):
        job, waiting = _take(todo, share, lock)
        if job is None:
            if not waiting:
                return
            time.sleep(WAIT)
            continue
        log.info("%s %s: begun", job.table.name, job.key)
        try:
            outcome = run(job, share.order.places)
        except Exception as error:  # another row may well run
            write_text(_mark(job, share), "failed")
            known = isinstance(error, UserError)
            log.warning("%s %s failed: %s", job.table.name, job.key, error, exc_info=None if known else error)
            continue
        with lock:
            results = read_results(share.order.results_folder, job.table.name)
            results.replace(outcome.entries, outcome.draws)
            write_results(share.order.results_folder, results)
            write_text(_mark(job, share), "done")
        log.info("%s %s: done", job.table.name, job.key)


def turn(taken: Path) -> FileLock:
    """For one process at a time, until it leaves or dies: the lock of a file goes with its process."""
    return FileLock(taken / "turn")


def _take(todo: Sequence[Job], share: Share, lock: FileLock) -> tuple[Job | None, bool]:
    """The next job that can be run now, taken; and, where there is none, whether one may be able to be later."""
    waiting = False
    with lock:
        for job in todo:
            mark = _mark(job, share)
            if mark.exists() or finished(job, share.order.results_folder):
                continue
            if any(_failed(need, share) for need in job.needs()):
                continue
            found = _first_usable(job, share)
            if found is None:
                waiting = True
                continue
            write_text(_mark(found, share), f"{TAKEN} {os.getpid()}")
            return found, False
    return None, waiting


def _first_usable(job: Job, share: Share) -> Job | None:
    """The job itself if all that it needs is there, else a need that nobody has begun; None: it has to wait."""
    missing = [need for need in job.needs() if not _usable(need, share)]
    if not missing:
        return job
    found = (_first_usable(need, share) for need in missing if not _mark(need, share).exists())
    return next((need for need in found if need is not None), None)


def _usable(need: Job, share: Share) -> bool:
    """Whether what another job builds on is there: its result and its weights, and nobody is making them again."""
    there = finished(need, share.order.results_folder) and any(
        need.folder(share.order.places.runs).glob("*.safetensors")
    )
    return there and _state(need, share) in ("", "done")


def _failed(need: Job, share: Share) -> bool:
    """Whether it, or what it needs, has failed."""
    return _state(need, share) == "failed" or any(_failed(deeper, share) for deeper in need.needs())


def _state(job: Job, share: Share) -> str:
    """`taken` by a process, `done` or `failed` here; "": by nobody yet."""
    mark = _mark(job, share)
    return mark.read_text(encoding="utf-8") if mark.is_file() else ""


def _mark(job: Job, share: Share) -> Path:
    return share.taken / f"{job.table.name}-{job.key}".replace("/", "-")
