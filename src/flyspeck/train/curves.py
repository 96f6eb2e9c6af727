"""`curves.html`: the curves of a run while it trains, one file that is written anew and loads itself again.

It holds its numbers and its script, reaches nothing else, and opens from a disk in any browser.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from flyspeck.evaluate.learning_curve import remarks
from flyspeck.files import finite, read_records, write_text

log = logging.getLogger("flyspeck")
NAME = "curves.html"
EVERY = 5.0
"""Seconds between two writings within an epoch."""
RELOAD = 10
"""Seconds after which the page loads itself again."""
POINTS = 800
"""Of a curve, at most: a long run's file stays small."""
SHOWN = 4
"""Metrics, at most, that are drawn together."""


class Curves:
    """Writes the page, from the records that the run's log holds already and those that come."""

    def __init__(
        self, folder: Path, *, name: str, epochs: int, best: str, clock: Callable[[], float] = time.time
    ) -> None:
        """`epochs` is what the recipe asks for, `best` the metric that picks the weights."""
        self.path, self.log = folder / NAME, folder / "metrics.jsonl"
        self.name, self.epochs, self.best, self._clock = name, epochs, best, clock
        self.steps: list[Mapping[str, Any]] = []
        self.of_epochs: list[Mapping[str, Any]] = []
        self.total, self._due, self._begun = 0, 0.0, clock()
        self._gaps: list[float] = []
        self._last = clock()

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """See `Reporter.start`; the run's log is there already."""
        self.total = total_steps
        records = [r for r in read_records(self.log) if r.get("step", 0) <= done_steps] if done_steps else []
        self.steps = [r for r in records if r["kind"] == "step"]
        self.of_epochs = [r for r in records if r["kind"] == "epoch"]
        self._first = done_steps
        log.info("curves, while it trains: %s", self.path)
        self._write("training")

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        self.steps.append(record)
        if len(self.steps) > 2 * POINTS:  # every other one, but for the newest
            self.steps = [*self.steps[:-1:2], self.steps[-1]]
        if self._clock() >= self._due:
            self._write("training")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        self.of_epochs = [*(r for r in self.of_epochs if r["epoch"] != record["epoch"]), record]
        self._write("training")

    def close(self) -> None:
        """See `Reporter.close`: stopped, unless `finish` follows."""
        self._write("stopped")

    def finish(self) -> None:
        """The run is done."""
        self._write("done")

    def _write(self, state: str) -> None:
        now = self._clock()
        self._gaps = [*self._gaps[-20:], now - self._last]
        self._last, self._due = now, now + EVERY
        content = {
            "name": self.name,
            "state": state,
            "words": self._words(state, now),
            "share": self._share(),
            "written": now,
            # Minutes of silence that are no surprise: an evaluation may take long.
            "patience": max(10.0, 5 * max(self._gaps) / 60),
            "remarks": self._remarks(state),
            "charts": self._charts(),
        }
        text = json.dumps(finite(content), allow_nan=False).replace("<", "\\u003c")
        page = resources.files("flyspeck.train").joinpath(NAME).read_text(encoding="utf-8")
        refresh = f'<meta http-equiv="refresh" content="{RELOAD}">' if state == "training" else ""
        write_text(self.path, page.replace("<!--REFRESH-->", refresh).replace("/*DATA*/", text))

    def _share(self) -> float | None:
        newest = self._newest
        if newest is None:
            return 0.0
        return newest["step"] / self.total if self.total else newest.get("share")

    @property
    def _newest(self) -> Mapping[str, Any] | None:
        return max((records[-1] for records in (self.of_epochs, self.steps) if records), key=_step, default=None)

    def _words(self, state: str, now: float) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        newest = self._newest
        if newest is None:
            return f"{state.capitalize()}, before the first line of the log; {at}"
        parts = [f"epoch {newest['epoch']}" + (f" of {self.epochs}" if self.total else "")]
        parts.append(f"step {newest['step']}" + (f" of {self.total}" if self.total else ""))
        if state == "training":
            left = self._left(newest, now)
            parts += [f"{_clock(left)} left"] if left is not None else []
            if self.steps:
                parts.append(f"{self.steps[-1].get('images_per_second', 0.0):.1f} images/s")
        return f"{state.capitalize()}: {', '.join(parts)}; {at}"

    def _left(self, newest: Mapping[str, Any], now: float) -> float | None:
        if not self.total:
            return self.steps[-1].get("seconds_left") if self.steps else None
        done = newest["step"] - self._first
        return (now - self._begun) / done * (self.total - newest["step"]) if done > 0 else None

    def _remarks(self, state: str) -> list[str]:
        said = [f"Ended before its time: {r['stopped']}" for r in self.of_epochs[-1:] if r.get("stopped")]
        return said + (remarks(self.of_epochs, self.best) if state == "done" else [])

    def _charts(self) -> list[dict[str, Any]]:
        steps = _thinned(self.steps)
        names = list(dict.fromkeys(name for record in self.steps for name in record["losses"]))
        total = [sum(record["losses"].values()) for record in steps]
        means = [record for record in self.of_epochs if record.get("losses")]
        metrics = [record for record in self.of_epochs if record.get("metrics")]
        known = list(dict.fromkeys(name for record in metrics for name in record["metrics"]))
        wanted = [name for name in (self.best, "ap50_tiny", "ap50_all", *known) if name in known]
        shown = list(dict.fromkeys(name for name in wanted if "@" not in name or name == self.best))[:SHOWN]
        return [
            {
                "title": "Loss",
                "label": "step",
                "unit": "",
                "series": [
                    {"name": "at each line of the log", "thin": True, "x": [r["step"] for r in steps], "y": total},
                    {
                        "name": "mean of an epoch",
                        "x": [r["step"] for r in means],
                        "y": [sum(r["losses"].values()) for r in means],
                    },
                ],
            },
            {
                "title": "Validation",
                "label": "epoch",
                "unit": "%",
                "series": [
                    {
                        "name": name,
                        "x": [r["epoch"] for r in metrics if r["metrics"].get(name, -1) >= 0],
                        "y": [100 * r["metrics"][name] for r in metrics if r["metrics"].get(name, -1) >= 0],
                    }
                    for name in shown
                ],
            },
            {
                "title": "Losses by part",
                "label": "step",
                "unit": "",
                "series": [
                    {
                        "name": name,
                        "x": [r["step"] for r in steps if name in r["losses"]],
                        "y": [r["losses"][name] for r in steps if name in r["losses"]],
                    }
                    for name in names
                ],
            },
            {
                "title": "Learning rate",
                "label": "step",
                "unit": "",
                "series": [
                    {
                        "name": "lr",
                        "x": [r["step"] for r in steps if "lr" in r],
                        "y": [r["lr"] for r in steps if "lr" in r],
                    }
                ],
            },
        ]


def _step(record: Mapping[str, Any]) -> int:
    return int(record["step"])


def _thinned(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    every = max(1, len(records) // POINTS)
    return [*records[:-1:every], *records[-1:]]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
