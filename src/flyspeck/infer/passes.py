"""Passes of a model beside everything else: in threads of their own, several at a time where that was measured to be faster.

A pass is one call of the model with one batch. On a processor of several cores a pass may have all of them, or several passes
may have a share each: little operators gain by the second, large ones by the first, and which it is depends on the model, the
tile and the machine. So the first passes of a model are timed, one at a time, then two, four and so on for as long as that
gains: what they find is used like any other, the choice holds for the life of the model, and nothing is prepared (an engine may
have to compile) before the model has worked for as long as the preparation before took. Batches are the same and results come
in the order in which they were begun, whatever the split, so that only the last digits of a float may know of it.

Only models that offer a split (`Splitting`) run in threads; any other callable is called where the predictor runs, as it may
depend on it. NumPy only.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from flyspeck.types import Detections

T = TypeVar("T")
Model = Callable[[list[np.ndarray]], list[Detections]]

GAIN = 0.97
"""More passes at a time are chosen if a batch then takes at most this share of what it took."""
TIMED = 3
"""Batches that are timed for each split, at least."""


@runtime_checkable
class Splitting(Protocol):
    """What a model offers that may run several passes at a time."""

    @property
    def threads(self) -> int:
        """Of the processor that the model has for all its passes; 1 where there is nothing to split."""
        ...

    def split(self, passes: int) -> None:
        """From now on so many passes at a time, each with its share of the threads."""
        ...

    def enter(self) -> None:
        """Called once in each thread that is to run passes, after `split`."""
        ...


class Trial:
    """How many passes at a time are fastest, by the time that they take: 1, 2, 4 … of at most `threads`."""

    def __init__(self, threads: int) -> None:
        self.passes = 1
        """To be run at a time now; the answer once `decided`."""
        self.decided = threads < 2
        self._threads = threads
        self._best: tuple[int, float] | None = None
        self._begin(1)

    def _begin(self, passes: int) -> None:
        self.passes, self._calls, self._prepared, self._spent = passes, 0, 0.0, 0.0
        self._times: list[float] = []

    def record(self, seconds: float, *, passes: int, busy: int) -> None:
        """A pass took so long while, at its begin and end, at least `busy` ran, of `passes` at a time."""
        if self.decided or passes != self.passes:
            return
        self._calls += 1
        if self._calls <= passes:  # it may have compiled
            self._prepared += seconds
            return
        self._spent += seconds
        if busy >= passes:
            self._times.append(seconds)
        if len(self._times) >= max(TIMED, 2 * passes) and self._spent >= self._prepared:
            self._judge(statistics.median(self._times) / passes)

    def _judge(self, each: float) -> None:
        """`each`: seconds a batch takes of the whole machine."""
        better = self._best is None or each <= GAIN * self._best[1]
        if better:
            self._best = (self.passes, each)
            if 2 * self.passes <= self._threads:
                return self._begin(2 * self.passes)
        assert self._best is not None
        self.passes, self.decided = self._best[0], True


class Workers:
    """The threads that run one model's passes, for all who use the predictor.

    `passes` fixes how many at a time; None: by trial.
    """

    def __init__(self, model: Model, passes: int | None = None) -> None:
        self.model = model
        able = model if isinstance(model, Splitting) and model.threads > 1 else None
        self._able: Splitting | None = able
        self._trial = Trial(1 if able is None else able.threads)
        if passes is not None and able is not None:
            self._trial.passes, self._trial.decided = min(passes, able.threads), True
        self._lock, self._count, self._busy = threading.Lock(), threading.Lock(), 0
        self._pool: ThreadPoolExecutor | None = None
        self._number = 0

    @property
    def beside(self) -> bool:
        """Whether passes run beside the caller."""
        return self._able is not None

    @property
    def passes(self) -> int:
        """At a time, as of now."""
        return self._trial.passes

    def submit(self, windows: list[np.ndarray], *, alone: AbstractContextManager | None) -> Future[list[Detections]]:
        """Begin a pass; where `alone` is given it is held meanwhile, so that no two passes run at a time."""
        with self._lock:
            pool = self._pool_of(self._trial.passes)
            return pool.submit(self._run, windows, self._number, alone)

    def _pool_of(self, passes: int) -> ThreadPoolExecutor:
        if self._pool is None or self._number != passes:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
            assert self._able is not None
            self._able.split(passes)
            self._number = passes
            self._pool = ThreadPoolExecutor(passes, "flyspeck-pass", initializer=self._able.enter)
        return self._pool

    def _run(self, windows: list[np.ndarray], passes: int, alone: AbstractContextManager | None) -> list[Detections]:
        with alone or nullcontext():
            with self._count:
                self._busy += 1
                first = self._busy
            start = time.perf_counter()
            try:
                return self.model(windows)
            finally:
                seconds = time.perf_counter() - start
                with self._count:
                    last, self._busy = self._busy, self._busy - 1
                    if alone is None:
                        self._trial.record(seconds, passes=passes, busy=min(first, last))


class Passes(Generic[T]):
    """The passes of one stream: begun one after the other, told of in the same order.

    `alone` is held during each where it is given, one at a time then. `wake` is called when a pass has ended.
    """

    def __init__(self, workers: Workers, *, alone: AbstractContextManager | None, wake: Callable[[], None]) -> None:
        self._workers, self._alone, self._wake = workers, alone, wake
        self._flight: deque[tuple[T, Future[list[Detections]]]] = deque()

    def begin(self, what: T, windows: list[np.ndarray]) -> None:
        """Of a model that does not split, the pass is over when this returns."""
        if not self._workers.beside:
            future: Future[list[Detections]] = Future()
            try:
                with self._alone or nullcontext():
                    future.set_result(self._workers.model(windows))
            except Exception as error:
                future.set_exception(error)
            self._flight.append((what, future))
            return
        future = self._workers.submit(windows, alone=self._alone)
        self._flight.append((what, future))
        future.add_done_callback(lambda _: self._wake())

    def ended(self, *, wait: bool = False) -> Iterator[tuple[T, Future[list[Detections]]]]:
        """What was begun and is over, in order; waits while more are under way than keep every thread busy, or for all."""
        while self._flight:
            most = 0 if wait else self._workers.passes + 1
            if len(self._flight) <= most and not self._flight[0][1].done():
                return
            what, future = self._flight.popleft()
            future.exception()
            yield what, future

    def stop(self) -> None:
        """Forget what was begun; waits for what runs."""
        for _, future in self._flight:
            future.cancel()
        for _, future in self._flight:
            if not future.cancelled():
                future.exception()
        self._flight.clear()
