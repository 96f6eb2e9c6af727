"""How slow this machine is now: work that is always the same, timed on the clock.

What follows a training (tracing, checking, drawing the page) is known in seconds of one quiet machine. Another machine, or this
one while other programs use it, takes longer by about as much as this work does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

QUIET = 0.028
"""Seconds of `_work` on the machine that the constants of `plan.budget` are of, nothing else running."""
TIMES = 12
"""That it is done: a program that was just woken has the processor for itself for a moment."""
FRESH = 15.0
"""Seconds for which an answer holds."""
STEADY = 0.5
"""Weight of a new answer beside those of before: other programs come and go."""
BOUNDS = (0.3, 20.0)


def _work() -> float:
    """A little of what programs do: small products of matrices, and plain Python."""
    x, total = np.ones((128, 128), np.float32), 0.0
    for _ in range(30):
        for _ in range(6):
            x = np.tanh(x @ x * 1e-2)
        total += sum(number * number for number in range(12_000))
    return total + float(x[0, 0])


class Slowness:
    """Called, it says by what seconds of the quiet machine are to be multiplied; it asks again after a while."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, work: Callable[[], object] = _work, fresh: float = FRESH
    ) -> None:
        self._clock, self._work, self._fresh = clock, work, fresh
        self._value, self._asked = 0.0, -float("inf")

    def __call__(self) -> float:
        """The mean of several times: the best of them would not know of the programs that took turns."""
        now = self._clock()
        if now - self._asked >= self._fresh:
            for _ in range(TIMES):
                self._work()
            self._asked = self._clock()
            value = min(BOUNDS[1], max(BOUNDS[0], (self._asked - now) / (TIMES * QUIET)))
            self._value = value if not self._value else STEADY * value + (1 - STEADY) * self._value
        return self._value
