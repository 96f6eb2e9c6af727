"""What training says while it runs: files always, a bar on a terminal, plain lines elsewhere. The loop calls a `Reporter`."""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flyspeck.errors import missing_extra
from flyspeck.files import read_records, write_text

log = logging.getLogger("flyspeck")


class Reporter(Protocol):
    """Receives the events of a run, on the main process only."""

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """Training begins, or goes on after `done_steps`."""

    def step(self, record: Mapping[str, Any]) -> None:
        """A line of the log: step, epoch, losses, lr, images_per_second."""

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
        records = [r for r in read_records(self.jsonl) if r["step"] <= done_steps] if done_steps else []
        write_text(self.jsonl, "".join(json.dumps(r) + "\n" for r in records))
        self._rewrite_csv()

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        self._append({"kind": "step", **record})

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
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
        with open(self.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class Console:
    """A progress bar with losses, images per second and time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
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

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=RichConsole(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=total_steps, completed=done_steps)

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        speed = f"{record['images_per_second']:.1f} images/s"
        if self.bar is not None:
            self.bar.update(
                self.task, completed=record["step"], description=f"epoch {record['epoch']} {losses} {speed}"
            )
            return
        done = record["step"] - self.first
        left = (time.monotonic() - self.begun) / max(done, 1) * (self.total - record["step"])
        log.info(
            "epoch %d step %d/%d %s %s, %s left",
            record["epoch"],
            record["step"],
            self.total,
            losses,
            speed,
            _minutes(left),
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        metrics = " ".join(f"{name} {value:.3f}" for name, value in record.get("metrics", {}).items())
        text = f"epoch {record['epoch']} done in {record['seconds']:.0f} s {metrics}"
        if self.bar is not None:
            self.bar.console.print(text)
        else:
            log.info(text)

    def close(self) -> None:
        """See `Reporter.close`."""
        if self.bar is not None:
            self.bar.stop()


class TensorBoard:
    """Scalars for TensorBoard, in the run folder (extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """See `Reporter.start`."""

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
