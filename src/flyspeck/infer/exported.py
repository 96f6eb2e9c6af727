"""What exported models share: a batch of windows in, `Detections` out, and what the file says of itself. No torch here.

The graph's inputs and outputs are described in `flyspeck.export.graph`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import match_channels
from flyspeck.data.padding import padded_side
from flyspeck.errors import UserError
from flyspeck.infer.padding import BLACK, Fill, padded, within
from flyspeck.types import Detections

KEY = "flyspeck"
"""Name of the metadata entry, a JSON object."""
FORMAT = 2
"""Of the files that are written: a reader of before would enlarge their windows a second time."""

FORMATS = (1, FORMAT)
"""Those that are read. In files of format 1 whoever runs them pads, clips and enlarges; in 2 all of that is in the graph."""

ANY_BATCH = "any"
"""`batch` in the description of a file that takes every batch; 0.1.0 wrote no such entry."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""boxes (B, D, 4), scores (B, D), labels (B, D), counts (B,)."""


class Session(ABC):
    """One file in an engine: arrays in, arrays out."""

    path: Path
    text: str | None
    """The file's metadata entry, None where it has none."""

    threads: int = 1
    """Of the processor that it computes with; 1 where it cannot run several passes at a time, or on another device."""

    def split(self, passes: int) -> None:
        """From now on so many calls of `run` may come at a time, each with its share of the threads."""
        if passes > self.threads:
            raise ValueError(f"{passes} passes on {self.threads} threads")

    @abstractmethod
    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The graph's outputs, in its order, for its inputs, in its order."""


class ExportedModel(ABC):
    """Windows (H, W, C) uint8 or uint16, all of one size, to their `Detections`, as `TorchModel`."""

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.description = dict(description)
        self.classes = tuple(description["classes"])
        self.channels = int(description["channels"])
        # Files of version 0.1.0 do not say it: all were padded to 32.
        self.divisor = int(description.get("divisor", 32))
        self._pixels = np.dtype(description["pixels"])
        self._smallest = int(description["smallest_side"])
        self.fill: Fill = tuple(map(float, description.get("fill", BLACK)))  # files of before do not say it: black

    @abstractmethod
    def run(self, batch: np.ndarray) -> Arrays:
        """The graph's outputs for `batch (B, H, W, C)` of the graph's type."""

    @property
    def taken(self) -> dict[float, int]:
        """Of a detector that chooses its factor: how many windows took which so far; empty for any other."""
        return {}

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """Detections of each window in its own frame."""
        height, width = windows[0].shape[:2]
        batch = self.to_batch(windows)
        boxes, scores, labels, counts = self.run(batch)
        seen = (batch.shape[1], batch.shape[2])
        return [
            within(Detections(boxes[i, :n], scores[i, :n], labels[i, :n], seen, self.classes), (height, width))
            for i, n in enumerate(counts.tolist())
        ]

    def detection_limit(self, size: tuple[int, int]) -> int | None:
        """Detections that a window of `size` (H, W) can have at most; None where the file does not say."""
        limit, area = self.description.get("suppression", {}).get("max_detections"), self.description.get("counts_area")
        if limit is None or area is None:
            return limit
        height, width = (padded_side(side, divisor=self.divisor, smallest=self._smallest) for side in size)
        return max(limit, -(-limit * height * width // area))

    def to_batch(self, windows: list[np.ndarray]) -> np.ndarray:
        """Windows of one size to `(B, H, W, C)` of the graph's type, with its channels, padded as in training."""
        rule = {"divisor": self.divisor, "smallest": self._smallest, "fill": self.fill}
        return self.as_taken(np.stack([padded(match_channels(window, self.channels), **rule) for window in windows]))

    def as_taken(self, batch: np.ndarray) -> np.ndarray:
        """Pixels of the graph's type; raises UserError for 16-bit ones where it takes 8."""
        if self._pixels == np.uint8:
            if batch.dtype != np.uint8:
                raise UserError(
                    "a 16-bit image for a model of 8-bit ones",
                    where=self.path,
                    fix="export with --bits 16, or give --value-range LOW,HIGH",
                )
            return batch
        return batch.astype(np.float32) if batch.dtype == np.uint8 else batch.astype(np.float32) / np.float32(257)


class PlainModel(ExportedModel):
    """One graph does all."""

    def __init__(self, session: Session, description: Mapping[str, Any]) -> None:
        super().__init__(session.path, description)
        self._session = session

    @property
    def threads(self) -> int:
        """See `Session.threads`."""
        return self._session.threads

    def split(self, passes: int) -> None:
        """See `Session.split`."""
        self._session.split(passes)

    def enter(self) -> None:
        """The engines have threads of their own."""

    def run(self, batch: np.ndarray) -> Arrays:
        """See `ExportedModel.run`."""
        boxes, scores, labels, counts = self._session.run([self._even(batch)])
        number = len(batch)
        return boxes[:number], scores[:number], labels[:number], counts[:number]

    def _even(self, batch: np.ndarray) -> np.ndarray:
        """Files of 0.1.0 that hold a two-stage detector run on even batches only: the last window twice, then."""
        if self.description.get("batch") == ANY_BATCH or len(batch) % 2 == 0:
            return batch
        return np.concatenate([batch, batch[-1:]])


def described(text: str | None, path: Path) -> dict[str, Any]:
    """The description in a file's metadata entry; raises UserError for a file of another program or a newer format."""
    if not text:
        raise UserError("a model of another program: it does not say its classes", where=path, fix="flyspeck export")
    try:
        content = json.loads(text)
        number = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError("its description cannot be read", where=path, fix="export it again") from None
    if number not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise UserError(f"a file of format {number}; this version reads {known}", where=path, fix="export it again")
    return content


def cannot_run(path: Path, inputs: Sequence[np.ndarray], error: Exception) -> UserError:
    """For an engine that opened the file and fails on `inputs`."""
    shape = "x".join(map(str, inputs[0].shape))
    reason = " ".join(str(error).split())[-200:]
    return UserError(f"the model does not run on windows of {shape} ({reason})", where=path, fix="export it again")
