"""What is logged of the steps: means of their losses, and images per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

OBSERVED = "observed/"
"""Begins the names of values that an objective returns to be logged (under `observed`), not minimised."""


class Meter:
    """Means of losses over all processes, and speed: since the last line of the log, and over the epoch."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.begun = self.since = time.monotonic()
        self.window: list[Tensor] = []
        self.epoch: list[Tensor] = []
        self.names: list[str] = []
        self.images = self.total_images = 0

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
        self.epoch.extend(self.window)
        means = self._means(self.window)
        self.window, self.images, self.since = [], 0, now
        return {**means, "images_per_second": round(speed, 2)}

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

    def _means(self, rows: list[Tensor]) -> dict[str, dict[str, float]]:
        """`losses`, and `observed` where the objective gives anything to be observed."""
        found: dict[str, dict[str, float]] = {"losses": {}}
        if not rows:
            return found
        means = self.accelerator.reduce(torch.stack(rows).mean(0), reduction="mean")
        for name, value in zip(self.names, means.tolist(), strict=True):  # type: ignore[union-attr]
            kind = "observed" if name.startswith(OBSERVED) else "losses"
            found.setdefault(kind, {})[name.removeprefix(OBSERVED)] = value
        return found
