"""Plans that are tried against each other, and what they reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyspeck.train.config import Recipe


@dataclass(frozen=True)
class Candidate:
    """A plan that is tried."""

    name: str
    recipe: Recipe
    """Its `train.minutes` are the winner's."""
    folder: Path
    """Of its run."""


@dataclass(frozen=True)
class Trial:
    """What a candidate had reached when it was paused."""

    name: str
    round: int
    seconds: float
    """Of training so far."""
    images: int
    """Seen so far."""
    value: float
    """Of the metric that decides, from 0 to 1; -1 where there is none."""
    until: float = 0.0
    """Seconds of training after which all of this round were to be paused; 0 where that was not noted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))
