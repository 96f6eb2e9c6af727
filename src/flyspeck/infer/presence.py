"""Runs the trained network that says which tiles of an image may hold something (`flyspeck tune look`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.images import match_channels
from flyspeck.infer.skip import FirstLook
from flyspeck.train.presence import load_look, presence


class PresenceLook(FirstLook):
    """The network that `flyspeck tune look` leaves in a run folder. A window's score is that of its most likely cell."""

    def __init__(self, path: Path) -> None:
        network, description = load_look(path)
        self.shrink: int = description["shrink"]
        self.threshold: float = description["calibration"]["threshold"]
        self.calibration: dict[str, float] = description["calibration"]
        self._channels = len(description["mean"])
        self._network = network.folded()

    def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
        """See `FirstLook`."""
        heat = presence(self._network, [match_channels(window, self._channels) for window in windows])
        return heat.max(axis=(1, 2))
