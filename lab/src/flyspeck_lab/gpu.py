"""What a GPU is to be asked when there is one, within so many minutes: `flyspeck-lab gpu`.

In the order of value: the tests of `-m gpu`, the runtimes of the stride paper's Table 4, then trainings (`gpu_jobs`). Whatever
ends it, nothing is lost: `rows.json` is written every minute, trainings go on from checkpoints that are no older, and a second
call with the same folders does what is left. What it leaves in `out` are at most 8 files of 16 MiB, so that it can be taken
away from a machine that is lent; large checkpoints stay in `runs`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyspeck.devices import torch_device
from flyspeck.errors import UserError, nearest
from flyspeck.files import local_output, write_json
from flyspeck_lab.gpu_data import REPOSITORY, unpack
from flyspeck_lab.gpu_jobs import (
    RUNTIME_MINUTES,
    TEST_MINUTES,
    Training,
    device_rate,
    trainings,
)

log = logging.getLogger("flyspeck")
EVERY = 60.0
"""Seconds between two writings of the rows, and of checkpoints."""
LARGEST = 16 * 2**20
TAKEN = ("state.pt", "best.safetensors", "metrics.jsonl")
"""Of a run that is small: what a later call on another machine needs to go on."""


@dataclass(frozen=True)
class Asked:
    """What is wanted."""

    data: Path
    """The pack."""
    out: Path
    runs: Path
    minutes: float
    device: str = "auto"
    steps: int | None = None
    """A trial of so many steps."""
    rows: Sequence[str] | None = None
    """Only these."""


class Rows:
    """`rows.json`: what is known of each part, written at once."""

    def __init__(self, out: Path, trial: int | None) -> None:
        """`trial` is its number of steps: what was done of another is not done."""
        from flyspeck.publish.score import environment

        self.file, self.trial = out / "rows.json", trial
        out.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            self.known = json.loads(self.file.read_text(encoding="utf-8"))["rows"]
        self.about = environment()

    def tell(self, name: str, **facts: Any) -> None:
        """Adds facts of a part, and those of the machine."""
        self.known[name] = {**self.of(name), **facts, "trial": self.trial, "on": self.about}
        write_json(self.file, {"rows": self.known})

    def of(self, name: str) -> dict[str, Any]:
        """What is known of a part; of another trial nothing."""
        found = self.known.get(name, {})
        return found if found.get("trial") == self.trial else {}


@dataclass(frozen=True)
class Expected:
    """A line of the plan."""

    name: str
    minutes: float
    images_per_second: float | None = None
    fits: bool = True
    """Beside those above it, in the time there is."""
    done: bool = False


def plan(asked: Asked, rows: Rows, todo: Sequence[Training]) -> list[Expected]:
    """What is expected of each part, from the device's rate in one convolution, or from what an earlier call measured."""
    rate = device_rate(torch_device(asked.device))
    found, left = [], asked.minutes
    for name, minutes in (("tests", TEST_MINUTES), ("runtimes", RUNTIME_MINUTES), *((t.name, 0.0) for t in todo)):
        if asked.rows is not None and name not in asked.rows:
            continue
        training = next((one for one in todo if one.name == name), None)
        speed = None
        if training is not None:
            speed, minutes = training.expected(rate)
            before = rows.of(name).get("images_per_second")
            if before and training.minutes is None:
                speed, minutes = before, minutes * speed / before
        done = rows.of(name).get("status") == "done"
        fits = not done and minutes <= left
        left -= minutes if fits else 0.0
        found.append(Expected(name, minutes, speed, fits, done))
    return found


def lines(expected: Sequence[Expected], minutes: float) -> list[str]:
    """The plan for people."""
    told = [f"{'part':<30} {'images/s':>9} {'minutes':>8}  in {minutes:g} minutes (expected)"]
    for one in expected:
        speed = "" if one.images_per_second is None else f"{one.images_per_second:.1f}"
        state = "done" if one.done else "fits" if one.fits else "does not fit"
        told.append(f"{one.name:<30} {speed:>9} {one.minutes:>8.1f}  {state}")
    return told


def run(asked: Asked, *, only_plan: bool = False) -> Rows:
    """Does what is left, part by part, until the minutes are over; a part that fails is noted and the next begun.

    Raises UserError for a pack, a part or a device that is not there.
    """
    begun = time.monotonic()
    out = local_output(asked.out, where="--out")
    torch_device(asked.device)
    unpacking = _unpack_beside(asked)
    todo = trainings(asked.data, steps=asked.steps)
    names = ["tests", "runtimes", *(one.name for one in todo)]
    for name in asked.rows or ():
        if name not in names:
            raise UserError(f"no part '{name}'", where="--rows", fix=nearest(name, names))
    rows = Rows(out, asked.steps)
    expected = plan(asked, rows, todo)
    for line in lines(expected, asked.minutes):
        log.info("%s", line)
    end = begun + 60 * asked.minutes
    for one in expected if not only_plan else ():
        left = end - time.monotonic()
        # What has begun goes on however little time there is; what has not begins only where it should end in time.
        if one.done or left <= 0 or (60 * one.minutes > left and rows.of(one.name).get("status") != "begun"):
            continue
        rows.tell(
            one.name, status="begun", expected={"minutes": one.minutes, "images_per_second": one.images_per_second}
        )
        log.info("%s: begun, %.1f minutes left", one.name, left / 60)
        try:
            if one.name == "tests":
                _tests(asked, rows, left)
            elif one.name == "runtimes":
                _runtimes(asked, rows, left)
            else:
                unpacking.wait()
                _train(next(t for t in todo if t.name == one.name), asked, rows, end)
        except Exception as error:  # the machine is lent: what else can be asked of it is
            with open(out / "errors.txt", "a", encoding="utf-8") as file:
                file.write(f"{one.name}\n{traceback.format_exc()}\n")
            rows.tell(one.name, status="failed", error=(str(error) or type(error).__name__).splitlines()[0])
    unpacking.wait()
    return rows


def _unpack_beside(asked: Asked) -> subprocess.Popen[bytes]:
    """Unpacks in a process of its own, while the tests run."""
    if not (asked.data / "pack.json").is_file():
        unpack(asked.data, asked.runs / "data")  # raises
    return subprocess.Popen([sys.executable, "-m", "flyspeck_lab.gpu_data", str(asked.data), str(asked.runs / "data")])


def _program(
    command: Sequence[str], log_file: Path, seconds: float, **environment: str
) -> tuple[int | None, str, float]:
    """Runs Python with these words, its output in a file; returns its exit code (None: out of time), output and seconds."""
    began = time.monotonic()
    with open(log_file, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    return code, log_file.read_text(encoding="utf-8", errors="replace"), time.monotonic() - began


def _tests(asked: Asked, rows: Rows, left: float) -> None:
    """`pytest -m gpu`; on a CPU by the device that is played."""
    played = torch_device(asked.device).type != "cuda"
    words = ("-m", "pytest", "-m", "gpu", "-q", "-ra", "-p", "no:cacheprovider", "tests/gpu")
    seconds = min(left, 60 * TEST_MINUTES)
    code, text, took = _program(
        words, asked.out / "tests.txt", seconds, **({"FLYSPECK_GPU": "played"} if played else {})
    )
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text[-400:])}
    status = "begun" if code is None else "done"
    rows.tell("tests", status=status, played=played, exit_code=code, counts=counts, seconds=round(took, 1))


def _runtimes(asked: Asked, rows: Rows, left: float) -> None:
    """`benchmarks/stride_runtimes.py`."""
    number, width = (1000, 1.0) if asked.steps is None else (asked.steps, 0.25)
    out = (asked.out / "stride_runtimes.json").resolve()
    words = ["benchmarks/stride_runtimes.py", "--device", asked.device, "--runs", str(number), "--width", str(width)]
    code, text, took = _program([*words, "--out", str(out)], asked.out / "runtimes.txt", left)
    if code:
        raise UserError(
            text.strip().splitlines()[-1] if text.strip() else f"exit code {code}", where="stride_runtimes.py"
        )
    content = json.loads(out.read_text(encoding="utf-8")) if code == 0 else {"rows": []}
    found = {row["name"]: row["ms"] for row in content["rows"]}
    rows.tell("runtimes", status="done" if code == 0 else "begun", milliseconds=found, seconds=round(took, 1))
    (asked.out / "runtimes.txt").unlink()


class Minutely:
    """A reporter that writes a training's row every minute, and ends the training when the time is over."""

    def __init__(self, training: Training, folder: Path, asked: Asked, rows: Rows, end: float) -> None:
        self.training, self.folder, self.asked, self.rows, self.end = training, folder, asked, rows, end
        self.written, self.over, self.speeds = time.monotonic(), False, []

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """Notes where it goes on."""
        self.rows.tell(self.training.name, steps=total_steps or None, went_on_from=done_steps)

    def step(self, record: Mapping[str, Any]) -> None:
        """See the class."""
        self.speeds.append(record["images_per_second"])
        if time.monotonic() - self.written >= EVERY:
            self.write(step=record["step"], losses=record["losses"])
        if time.monotonic() >= self.end and not self.over:
            self.over = True
            signal.raise_signal(signal.SIGINT)  # the step is finished and saved

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the metrics of an evaluation."""
        if record.get("metrics"):
            self.write(step=record["step"], metrics=_told(record["metrics"]))

    def close(self) -> None:
        """Writes what there is."""
        self.write()

    def write(self, **facts: Any) -> None:
        """The row, and of a small run what it goes on from."""
        self.written = time.monotonic()
        middle = sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else None
        self.rows.tell(self.training.name, **facts, **({"images_per_second": middle} if middle else {}))
        if self.training.small:
            for name in TAKEN:
                source, target = self.folder / name, self.asked.out / f"{self.training.name}.{name}"
                if source.is_file() and source.stat().st_size <= LARGEST:
                    shutil.copy(source, target.with_suffix(".part"))
                    target.with_suffix(".part").replace(target)


def _train(training: Training, asked: Asked, rows: Rows, end: float) -> None:
    """Trains, or goes on, until it is done or the time is over."""
    from flyspeck.train.progress import Console, Fanout, RunFiles
    from flyspeck.train.run import begun, train

    folder = asked.runs / (training.name if asked.steps is None else f"{training.name}-{asked.steps}")
    if training.small and not (folder / "state.pt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in TAKEN:
            if (source := asked.out / f"{training.name}.{name}").is_file():
                shutil.copy(source, folder / name)
    recipe = training.recipe(asked.runs / "data")
    timed = recipe.train.model_copy(update={"checkpoint_minutes": EVERY / 60})
    minutely = Minutely(training, folder, asked, rows, end)
    reporter = Fanout([RunFiles(folder), Console(best=recipe.evaluate.best), minutely])
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        metrics = train(recipe.model_copy(update={"train": timed}), folder, resume=begun(folder), reporter=reporter)
    except KeyboardInterrupt:
        if not minutely.over:
            raise
        rows.tell(training.name, status="begun", seconds_here=round(time.monotonic() - began, 1))
        log.info("%s: the time is over; another call goes on from its checkpoint", training.name)
        return
    minutely.write()
    rows.tell(training.name, status="done", seconds_here=round(time.monotonic() - began, 1), metrics=_told(metrics))


def _told(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items() if name.startswith(("ap50_", "ap_"))}
