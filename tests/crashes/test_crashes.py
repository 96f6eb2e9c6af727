"""Whatever a disk does at whichever operation, what was finished is there, what is begun again ends as if nothing had been."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_disk import KILLED, YEAR, Mode, import_before, run, run_to_a_new_place
from jobs import Job, converting, predicting, table, training
from longer_jobs import distilling, fitting, pretraining, rows_of_a_table

from flyspeck.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for every crash")
MODES: tuple[Mode, ...] = ("kill", "torn", "full", "io", "files", "clock", "short")
JOBS: dict[str, Callable[[Path], Job]] = {
    "convert to coco": lambda squares: converting(squares, "coco"),
    "convert to yolo": lambda squares: converting(squares, "yolo"),
    "convert to voc": lambda squares: converting(squares, "voc"),
    "convert to cvat": lambda squares: converting(squares, "cvat"),
    "convert to label-studio": lambda squares: converting(squares, "label-studio"),
    "convert to labelme": lambda squares: converting(squares, "labelme"),
    "convert to fiftyone": lambda squares: converting(squares, "fiftyone"),
    "stages of auto": table,
    "rows of a table": rows_of_a_table,
    "pretrain": pretraining,
    "predict --resume": lambda squares: predicting(squares, True),
    "predict --overwrite": lambda squares: predicting(squares, False),
    "dpnet fit": fitting,
    "train": training,
    "distill": distilling,
}
"""Quick ones first."""
IN_A_ROW: tuple[Mode, ...] = ("kill", "torn", "full", "io", "files", "clock")
"""Of these long work has one at every place in the code, in the place of one at every operation."""
QUICK = ("predict --resume", "convert to coco", "stages of auto")


def same(one: dict[str, object], other: dict[str, object], said: str) -> None:
    assert one.keys() == other.keys(), said
    for name, value in one.items():
        got = other[name]
        equal = torch.equal(value, got) if isinstance(value, torch.Tensor) else value == got  # type: ignore[arg-type]
        assert equal, f"{said}: {name}"


@dataclass
class Tally:
    """Of a job: operations, crashes tried and survived by mode, and what was not survived."""

    operations: int
    tried: dict[str, int]
    survived: dict[str, int]
    failed: list[str]


def crash_everywhere(
    name: str,
    squares: Path,
    place: Path,
    *,
    every: int | None,
    modes: Sequence[Mode] = MODES,
    keep: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Crashes a job at every operation (or every n-th; None: at three), by every mode; it goes on and must end as undisturbed.

    `keep` is called after each mode.
    """
    job = JOBS[name](squares)
    job.prepare(place / "whole")
    code, count, said = run(lambda: job.begin(place / "whole"), place / "whole", mode="count")
    assert code == 0, said
    import_before(said)
    expected = job.results(place / "whole")
    assert count >= 3
    tally = Tally(count, dict.fromkeys(modes, 0), dict.fromkeys(modes, 0), [])
    for mode in modes:
        if mode == "short":
            _all_short(name, job, place / mode, expected, tally)
            keep(tally)
            continue
        for at in range(1, count + 1, every) if every else sorted({2, count // 2, count - 1}):
            folder = place / f"{mode}{at}"
            job.prepare(folder)
            tally.tried[mode] += 1
            try:
                survive(job, folder, expected, mode=mode, at=at)
            except AssertionError as error:
                tally.failed.append(f"{name}, {mode} at operation {at} of {count}: {error}")
                continue
            tally.survived[mode] += 1
            shutil.rmtree(folder, ignore_errors=True)
        keep(tally)
    return tally


def _all_short(name: str, job: Job, folder: Path, expected: dict[str, object], tally: Tally) -> None:
    """Once, with every write short: all is there at once. Each write counts."""
    job.prepare(folder)
    code, count, said = run(lambda: job.begin(folder), folder, mode="short")
    tally.tried["short"] = count
    try:
        assert code == 0, f"{code} {said}"
        job.whole(folder)
        same(expected, job.results(folder), "at once")
    except AssertionError as error:
        tally.failed.append(f"{name}, short writes: {error}")
    else:
        tally.survived["short"] = count


def survive(job: Job, folder: Path, expected: dict[str, object], *, mode: Mode, at: int) -> None:
    """One crash, and what must be so after it."""
    code, _, said = run(lambda: job.begin(folder), folder, mode=mode, at=at)
    allowed = (KILLED,) if mode in ("kill", "torn") else (0,) if mode == "clock" else (0, 2)
    assert code in allowed, f"{code} {said}"
    job.whole(folder)
    if code == 0:  # what failed was not needed: all is there already
        same(expected, job.results(folder), "at once")
    code, _, said = run(lambda: job.go_on(folder), folder)
    assert code == 0, f"going on gave {code} {said}"
    same(expected, job.results(folder), "after going on")


@pytest.mark.parametrize("name", QUICK)
def test_a_crash_here_and_there(name: str, squares: Path, tmp_path: Path) -> None:
    tally = crash_everywhere(name, squares, tmp_path, every=None, modes=("torn", "short"))
    assert not tally.failed
    assert all(tally.survived.values())


def crashes_in_a_row(job: Job, place: Path, expected: dict[str, object], mode: Mode) -> list[str]:
    """Begun, broken off, gone on with, broken off again: each time at a place in the code where it has not been before, until
    none is left, of those that only going on comes to neither. It must end as undisturbed. Which places these were.
    """
    struck: list[str] = []
    for number in itertools.count(1):
        folder, step, new = place / f"{mode}{number}", job.begin, len(struck)
        job.prepare(folder)
        while True:
            call = partial(step, folder)
            code, where, said = run_to_a_new_place(call, folder, mode=mode, struck_before=struck)
            known = f"{mode} after {len(struck)} others, at {where or 'none'}: {code} {said}"
            allowed = (0,) if not where else (KILLED,) if mode in ("kill", "torn") else (0, 2)
            assert code in allowed, known
            struck += [where] if where else []
            job.whole(folder)
            step = job.go_on
            if code == 0:
                same(expected, job.results(folder), known)
                break
        shutil.rmtree(folder, ignore_errors=True)
        if len(struck) == new:
            return struck
    raise AssertionError


def kept(request: pytest.FixtureRequest, name: str, found: dict[str, Any]) -> None:
    """For `docs/write_reliability.py --crashes`."""
    path = Path(request.config.getoption("--crash-json") or os.devnull)
    if path != Path(os.devnull):
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(before | {name: found}, indent=1) + "\n")


def modes_of(request: pytest.FixtureRequest) -> list[Mode]:
    """Those that are asked for."""
    return [mode for mode in MODES if mode in request.config.getoption("--crash-modes").split(",")]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_crash_at_every_operation(
    name: str, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    def keep(tally: Tally) -> None:
        with capsys.disabled():
            survived = f"survived {tally.survived} of {tally.tried}"
            print(f"\n{name}: {tally.operations} operations, {survived}", end="", flush=True)
        found = {"operations": tally.operations, "tried": tally.tried, "survived": tally.survived}
        kept(request, name, found)

    every = request.config.getoption("--crash-every")
    tally = crash_everywhere(name, squares, tmp_path, every=every, modes=modes_of(request), keep=keep)
    assert not tally.failed, "\n".join(tally.failed[:20])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpnet fit", "distill"])
def test_crashes_in_a_row_at_every_place(
    name: str, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """Of work that takes long."""
    job, place = JOBS[name](squares), tmp_path / "whole"
    job.prepare(place)
    code, operations, said = run(partial(job.begin, place), place, mode="count")
    assert code == 0, said
    import_before(said)
    expected, counts = job.results(place), dict[str, int]()
    for mode in modes_of(request):
        if mode in IN_A_ROW:
            counts[mode] = len(crashes_in_a_row(job, tmp_path, expected, mode))
            kept(request, name, {"operations": operations, "tried": counts, "survived": counts, "places": counts})
            with capsys.disabled():
                print(f"\n{name}: {counts}", end="", flush=True)


def test_crashes_in_a_row_come_to_every_place(squares: Path, tmp_path: Path) -> None:
    job = JOBS["stages of auto"](squares)
    code, operations, said = run(partial(job.begin, tmp_path / "whole"), tmp_path / "whole", mode="count")
    assert code == 0, said
    struck = crashes_in_a_row(job, tmp_path, job.results(tmp_path / "whole"), "torn")
    assert 5 < len(struck) == len(set(struck)) < operations


def test_the_disk_breaks_as_it_should(tmp_path: Path) -> None:
    """What the tests above rest on."""

    def work() -> int:
        (tmp_path / "out").mkdir(exist_ok=True)
        with (tmp_path / "out" / "a.txt").open("w") as file:
            file.write("0123456789")
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp_path / "out" / "a.txt", tmp_path / "out" / "b.txt")
        return 0

    folder, now = tmp_path / "out", time.time()
    code, count, _ = run(work, folder, mode="count")
    assert (code, count) == (0, 6)  # mkdir, open, write, flush, fsync, rename
    (folder / "b.txt").unlink()
    for at, left in ((2, None), (3, ""), (4, ""), (5, "0123456789"), (6, "0123456789")):
        (folder / "a.txt").unlink(missing_ok=True)
        assert run(work, folder, mode="kill", at=at)[0] == KILLED
        assert ((folder / "a.txt").read_text() if (folder / "a.txt").exists() else None) == left, at
    assert run(work, folder, mode="torn", at=3)[0] == KILLED
    assert (folder / "a.txt").read_text() == "01234"
    code, _, said = run(work, folder, mode="io", at=5)
    assert code == 2
    assert "Input/output error" in said
    assert run(lambda: 1 / 0, folder)[0] == 3
    code, _, said = run(work, folder, mode="full", at=4)
    assert "No space left" in said
    code, _, said = run(work, folder, mode="files", at=1)
    assert code == 2
    assert "Too many open files" in said
    assert run(work, folder, mode="files", at=3)[0] == 0  # all that is opened was
    (folder / "b.txt").unlink()
    code, count, said = run(work, folder, mode="short")
    assert (code, (folder / "b.txt").read_text()) == (0, "0123456789"), said
    assert count == 5  # of 5, 2, 1, 1 and 1 bytes
    assert run(lambda: int(time.time() < now - YEAR / 2), folder, mode="clock", at=0)[0] == 1
    assert run(lambda: 7, folder)[0] == 7

    def refuse() -> None:
        raise UserError("no")

    assert run(refuse, folder) == (2, 0, "no")
    assert np.isfinite(count)
