"""What training says while it runs: files always, a bar on a terminal, plain lines elsewhere. The loop calls a `Reporter`."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flyspeck.errors import counted, missing_extra
from flyspeck.files import read_records, write_text

log = logging.getLogger("flyspeck")


class Reporter(Protocol):
    """Receives the events of a run, on the main process only."""

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """Training begins, or goes on after `done_steps`; of `total_steps`, or 0 where the clock ends it."""

    def step(self, record: Mapping[str, Any]) -> None:
        """A line of the log: step, epoch, losses, lr, images_per_second; by the clock also share and seconds_left, of the run."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch has ended: mean losses, seconds and, if it was evaluated, the metrics."""

    def close(self) -> None:
        """Training has ended, one way or another."""


class RunFiles:
    """`metrics.jsonl` (every logged step and epoch) and `metrics.csv` (one row an epoch)."""

    def __init__(self, folder: Path) -> None:
        self.jsonl, self.csv = folder / "metrics.jsonl", folder / "metrics.csv"

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """Drops what an interrupted run logged beyond the checkpoint that it resumes from."""
        records = [r for r in read_records(self.jsonl) if r.get("step", 0) <= done_steps] if done_steps else []
        write_text(self.jsonl, "".join(json.dumps(r) + "\n" for r in records))
        self._rewrite_csv()

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        self._append({"kind": "step", **record})

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`. A run that stopped between this line and the checkpoint after it evaluates the epoch again."""
        records = read_records(self.jsonl)
        others = [r for r in records if (r["kind"], r["epoch"]) != ("epoch", record["epoch"])]
        if len(others) < len(records):
            write_text(self.jsonl, "".join(json.dumps(r) + "\n" for r in others))
        self._append({"kind": "epoch", **record})
        self._rewrite_csv()

    def close(self) -> None:
        """Nothing is held open."""

    def _append(self, record: Mapping[str, Any]) -> None:
        with open(self.jsonl, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _rewrite_csv(self) -> None:
        # Rewritten whole: columns appear only once an epoch has been evaluated.
        rows = [r for r in read_records(self.jsonl) if r["kind"] == "epoch"]
        columns = list(dict.fromkeys(key for row in rows for key in row if key != "kind"))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.csv, text.getvalue())


class Advance(NamedTuple):
    """How far an evaluation has come; the first has a share of 0, the last has all images."""

    images: int
    """Done, of this process."""
    of_images: int
    tiles: int = 0
    """Done of the image that is being looked at, where it goes in tiles."""
    of_tiles: int = 0
    share: float = 0.0
    """Of the pixels that the network has to see, in [0, 1]: what time is made of."""
    processes: int = 1

    @property
    def words(self) -> str:
        """For people: `12 of 156 images, 40 of 520 tiles of the next`."""
        tiles = f", {self.tiles} of {self.of_tiles} tiles of the next" if self.of_tiles > 1 else ""
        shared = f" (of this process, one of {self.processes})" if self.processes > 1 else ""
        return f"{self.images} of {self.of_images} images{tiles}{shared}"


Tell = Callable[[Advance], None]


class EvaluationLines:
    """Says how far an evaluation has come, with the time left, once it takes longer than `PATIENCE`; at last how long it took.

    `every` seconds at most there is a line, and fewer and fewer as it goes on, so that a log of hours stays short.
    """

    PATIENCE = 2.0

    def __init__(
        self,
        show: Callable[[str, float], None] = lambda text, _: log.info(text),
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._every, self._clock = show, every, clock
        self._begun = self._due = 0.0
        self._said = False

    def __call__(self, at: Advance) -> None:
        """The evaluation has come so far; what is shown is a text and its share, in [0, 1]."""
        now = self._clock()
        if at.share == 0:
            self._begun, self._due, self._said = now, now + self.PATIENCE, False
        elif at.images == at.of_images and at.of_tiles == 0:
            if self._said:
                self._show(f"evaluated {counted(at.of_images, 'image')} in {_minutes(now - self._begun)}", 1.0)
        elif now >= self._due:
            left = (now - self._begun) / at.share * (1 - at.share)
            self._show(f"evaluating: {at.words}, {_minutes(left)} left", at.share)
            self._said = True
            self._due = now + max(self._every, (now - self._begun) / 10)


class Console:
    """A progress bar with losses, images per second and time left; plain lines where there is no terminal."""

    def __init__(self, *, best: str = "") -> None:
        """`best` names the metric that picks the checkpoint: it is said first."""
        self.best = best
        self.evaluation: Any = None
        self.bar: Any = None
        self.task: Any = None
        self.begun = 0.0
        self.first = 0
        self.total = 0

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """See `Reporter.start`."""
        self.begun, self.first, self.total = time.monotonic(), done_steps, total_steps
        if sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            counted = (MofNCompleteColumn(), TimeRemainingColumn()) if total_steps else ()
            columns = (BarColumn(), *counted, TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=RichConsole(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=total_steps or 1.0, completed=done_steps if total_steps else 0)

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        speed = f"{record['images_per_second']:.1f} images/s"
        if self.total:
            done, said = record["step"], f"{record['step']}/{self.total}"
            left = (time.monotonic() - self.begun) / max(done - self.first, 1) * (self.total - done)
        else:  # the clock ends the run
            done, said, left = record["share"], f"{record['step']} ({record['share']:.0%})", record["seconds_left"]
        if self.bar is None:
            log.info("epoch %d step %s %s %s, %s left", record["epoch"], said, losses, speed, _minutes(left))
            return
        ahead = "" if self.total else f"{said}, {_minutes(left)} left, "
        self.bar.update(self.task, completed=done, description=f"{ahead}epoch {record['epoch']} {losses} {speed}")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        metrics = headline(record.get("metrics", {}), first=self.best)
        text = f"epoch {record['epoch']} done in {_minutes(record['seconds'])}{f': {metrics}' if metrics else ''}"
        if self.bar is not None:
            self.bar.console.print(text)
        else:
            log.info(text)

    def close(self) -> None:
        """See `Reporter.close`."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def evaluating(self) -> Tell:
        """What is to be told how far an evaluation has come: a second bar, or lines."""
        return EvaluationLines(self._evaluated, every=0.5 if sys.stderr.isatty() else 10.0)

    def _evaluated(self, text: str, share: float) -> None:
        if self.bar is None:
            log.info(text)
            return
        if share == 1.0:
            self.bar.remove_task(self.evaluation)
            self.evaluation = None
            self.bar.console.print(text)
            return
        if self.evaluation is None:
            self.evaluation = self.bar.add_task("", total=100)
        self.bar.update(self.evaluation, completed=int(100 * share), description=text)


def headline(metrics: Mapping[str, float], *, first: str = "") -> str:
    """The metrics that a person follows, in percent, on one line: `first`, then AP50 by size; `metrics.csv` has them all."""
    sizes = [name for name in metrics if name.startswith("ap50_") and "@" not in name]
    names: list[str] = [*([first] if first in metrics else []), *(name for name in sizes or metrics if name != first)]
    shown = names[:_SHOWN]
    said = ", ".join(f"{name} {100 * metrics[name]:.1f}" if metrics[name] >= 0 else f"{name} none" for name in shown)
    return f"{said} %{' …' if len(names) > _SHOWN else ''}" if said else ""


_SHOWN = 7


class TensorBoard:
    """Scalars for TensorBoard, in the run folder (extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard") from None
        self._open = partial(SummaryWriter, str(folder / "tensorboard"))
        self.writer: Any = None

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """What an interrupted run logged beyond its checkpoint is passed over."""
        self.writer = self._open(purge_step=done_steps + 1 if done_steps else None)

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        for name, value in {**record["losses"], "lr": record["lr"]}.items():
            self.writer.add_scalar(f"train/{name}", value, record["step"])

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        for name, value in record.get("metrics", {}).items():
            self.writer.add_scalar(f"val/{name}", value, record["step"])

    def close(self) -> None:
        """See `Reporter.close`."""
        self.writer.close()


class Fanout:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = tuple(reporters)

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """See `Reporter.start`."""
        for reporter in self.reporters:
            reporter.start(total_steps=total_steps, done_steps=done_steps)

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        for reporter in self.reporters:
            reporter.step(record)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        for reporter in self.reporters:
            reporter.epoch(record)

    def close(self) -> None:
        """See `Reporter.close`."""
        for reporter in self.reporters:
            reporter.close()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
