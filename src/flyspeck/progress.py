"""How far a job has come: what the library tells whoever asks, and nobody by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Advance:
    """One job's step at one moment."""

    step: str
    """What is being done, as in `detecting`."""
    share: float | None = None
    """Of the step, in [0, 1]; None where it cannot be told."""
    words: str = ""
    """How far it has come, as in `3 of 20 images`."""


Tell = Callable[[Advance], None]
"""Takes each advance. It is called often, also from other threads, and should return at once."""


def untold(_: Advance) -> None:
    """The default: silence."""
