"""Says what happens, at once, and says that it still happens: a command that works for minutes is never silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flyspeck.errors import UserError

Say = Callable[[str], None]
SILENCE = 8.0
"""Seconds after which something is said."""


class Voice:
    """Lines through `say`; what `doing` wraps is repeated with its seconds while nothing else is said."""

    def __init__(self, say: Say, *, silence: float = SILENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._silence, self._clock = say, silence, clock
        self._last, self._doing = clock(), ""
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Says a line."""
        with self._lock:
            self._last = self._clock()
        self._say(line)

    @contextmanager
    def doing(self, words: str) -> Iterator[None]:
        """Says `words`, and again with the seconds that it took so far while nobody else says anything."""
        self(f"{words} ...")
        begun, over = self._clock(), threading.Event()

        def repeat() -> None:
            while not over.wait(min(1.0, self._silence / 4)):
                now = self._clock()
                if now - self._last >= self._silence:
                    self(f"  {words}: {now - begun:.0f} s so far")

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def progress(self, words: str) -> Callable[[int, int], None]:
        """What is told of numbers done and of all: a line every few seconds."""
        due = self._clock() + 3.0

        def told(done: int, total: int) -> None:
            nonlocal due
            if self._clock() >= due and done < total:
                due = self._clock() + 5.0
                self(f"  {words}: {done} of {total}")

        return told


def minutes_of(value: float) -> float:
    """A time budget in minutes. Raises UserError for what is none."""
    if not 0 < value < 10**6:
        raise UserError(f"{value:g} minutes", where="--minutes", fix="give a number above 0, such as 30")
    return float(value)
