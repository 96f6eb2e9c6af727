"""What is logged of the steps: means of their losses, and images per second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

OBSERVED = "observed/"
"""Begins the names of values that an objective returns to be logged (under `observed`), not minimised."""


class Meter:
    """Means of losses over all processes, and speed: since the last line of the log, and over the epoch."""

    def __init__(self, accelerator: Accelerator, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `state()` gave when the run was stopped within an epoch."""
        self.accelerator = accelerator
        self.since = time.monotonic()
        self.begun = self.since
        self.window: list[Tensor] = []
        """Of this process, a row a step."""
        self.epoch: list[Tensor] = []
        """Over all processes."""
        self.names: list[str] = []
        self.images = self.total_images = 0
        if state:
            self.names, self.images, self.total_images = state["names"], state["images"], state["total_images"]
            self.begun -= state["seconds"]
            self.since -= state["window_seconds"]
            self.window, self.epoch = ([*state[name].to(accelerator.device).unbind()] for name in ("window", "epoch"))

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint. Of several processes, those of the main one since the last record."""
        now = time.monotonic()
        return {
            "names": self.names,
            "images": self.images,
            "total_images": self.total_images,
            "seconds": now - self.begun,
            "window_seconds": now - self.since,
            "window": torch.stack(self.window).cpu() if self.window else torch.zeros(0, len(self.names)),
            "epoch": torch.stack(self.epoch).cpu() if self.epoch else torch.zeros(0, len(self.names)),
        }

    def add(self, losses: dict[str, Tensor], images: int) -> None:
        """The losses of a step on `images` images of this process."""
        self.names = list(losses)
        self.window.append(torch.stack([*losses.values()]))
        self.images += images * self.accelerator.num_processes

    def record(self) -> dict[str, Any]:
        """Since the last record; called by every process."""
        now = time.monotonic()
        speed = self.images / max(now - self.since, 1e-9)
        self.total_images += self.images
        rows: list[Tensor] = []
        if self.window:
            rows = [*self.accelerator.reduce(torch.stack(self.window), reduction="mean").unbind()]  # type: ignore[union-attr]
        self.epoch.extend(rows)
        self.window, self.images, self.since = [], 0, now
        return {**self._means(rows), "images_per_second": round(speed, 2)}

    def epoch_record(self) -> dict[str, Any]:
        """Over the whole epoch; called by every process."""
        if self.window:
            self.record()
        seconds = time.monotonic() - self.begun
        return {
            **self._means(self.epoch),
            "seconds": round(seconds, 2),
            "images_per_second": round(self.total_images / max(seconds, 1e-9), 2),
        }

    def next_epoch(self) -> None:
        """Begins anew."""
        self.begun = self.since = time.monotonic()
        self.epoch, self.images, self.total_images = [], 0, 0

    def _means(self, rows: list[Tensor]) -> dict[str, dict[str, float]]:
        """`losses`, and `observed` where the objective gives anything to be observed."""
        found: dict[str, dict[str, float]] = {"losses": {}}
        if not rows:
            return found
        for name, value in zip(self.names, torch.stack(rows).mean(0).tolist(), strict=True):
            kind = "observed" if name.startswith(OBSERVED) else "losses"
            found.setdefault(kind, {})[name.removeprefix(OBSERVED)] = value
        return found
