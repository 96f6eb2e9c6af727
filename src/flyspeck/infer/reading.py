"""The reader threads of a prediction: images are opened, looked at, cut into windows, and queued for the model.

A window is queued in the order of its image's tiles; the queue is bounded, so readers wait for the model and not the other way
round. A tile that the first look passes over is never read in full resolution.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np

from flyspeck.data.bands import Ranges
from flyspeck.errors import UserError
from flyspeck.infer.placing import Placed, Placing
from flyspeck.infer.skip import RUN, SKIPPED, SkipReport, SkipRule
from flyspeck.infer.source import Item, open_source
from flyspeck.infer.windows import OpenOptions, Source
from flyspeck.types import Detections

TileKey = tuple[int, int, int, int]
EMPTY = "empty"
"""The verdict of a tile of which no pixel is there: it is done with, and holds nothing."""
SEAL = -1  # the tile number of a window that only says: this image is read
_CHANGED = "its file changed while it was read"


@dataclass(frozen=True)
class Result:
    """What became of one image."""

    item: Item
    detections: Detections
    num_tiles: int = 1
    num_skipped: int = 0
    """Tiles that were found empty and not run."""
    holes: tuple[tuple[TileKey, str], ...] = ()
    """Windows that could not be read, with the reason."""
    problem: UserError | None = None
    """Why the image could not be opened, or not be trusted; `detections` is then empty and of size (0, 0)."""
    source_geo: object = None
    """Its `GeoReference`, if it has one."""
    note: str = ""
    """`Source.note`: which bands and what scale."""
    resolution: str = ""
    """`Placed.said`: how its ground resolution compares with the training's, and what was made of it."""
    num_outside: int = 0
    """Tiles that were not run, since the region that was asked for meets none of them."""
    remark: str = ""
    """`Source.remark`: of its place on Earth."""
    value_range: Ranges | None = None
    """`Source.value_range`: which values were black and white."""
    num_empty: int = 0
    """Tiles of which no pixel is there, not run."""
    num_hidden: int = 0
    """Detections that were left out, tile by tile, since they lie in what is not there (`flyspeck.infer.missing`)."""
    num_full: int = 0
    """Tiles with as many detections as the model gives of one: there may be more."""
    skip: SkipReport | None = None
    """What skipping did, where it was asked for."""
    unaudited: Detections | None = None
    """Where every tile was run to measure skipping (an audit of 1): what would have been found with it."""


@dataclass(frozen=True)
class Finished:
    """A tile that an earlier run finished."""

    found: Detections
    verdict: str = RUN


class Journal:
    """What keeps finished tiles between runs; this one keeps nothing (`flyspeck.infer.resume` has the one that does)."""

    def recall(
        self, item: Item, size: tuple[int, int], tiles: np.ndarray, stamp: Sequence[int] | None = None
    ) -> dict[int, Finished]:
        """Detections, in the image's frame, of the tiles (rows of `tiles`) that an earlier run finished.

        `stamp` is that of the image's file, taken now where it is not given.
        """
        return {}

    def record(
        self,
        item: Item,
        tile: np.ndarray,
        found: Detections,
        *,
        verdict: str = RUN,
        stamp: Sequence[int] | None = None,
    ) -> None:
        """Called once for each tile that the model, or the first look, is done with."""


@dataclass(frozen=True)
class Share:
    """The part of a job that is one process's: number `rank` of `world`."""

    rank: int = 0
    world: int = 1
    by: str = "images"
    """`images`: every `world`-th image. `tiles`: of every image an equal run of neighbouring tiles."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UserError(f"process {self.rank} of {self.world}", where="share", fix="count from 0")

    def has(self, number: int) -> bool:
        """Whether image `number` (from 0) is looked at by this process."""
        return self.by == "tiles" or number % self.world == self.rank

    def rows(self, count: int) -> range:
        """This process's rows of an image's `count` tiles."""
        if self.by != "tiles":
            return range(count)
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)


@dataclass
class ReadingJob:
    """One image on its way."""

    number: int
    item: Item
    tiles: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    size: tuple[int, int] = (0, 0)
    seen: tuple[int, int] = (0, 0)
    """(h, w) at which the model sees each tile."""
    stamp: tuple[int, ...] = ()
    geo: object = None
    note: str = ""
    remark: str = ""
    value_range: Ranges | None = None
    num_empty: int = 0
    num_hidden: int = 0
    problem: UserError | None = None
    found: dict[int, Detections] = field(default_factory=dict)
    verdicts: dict[int, str] = field(default_factory=dict)
    """Of tiles that the first look called empty: SKIPPED or AUDITED."""
    holes: list[tuple[TileKey, str]] = field(default_factory=list)
    num_full: int = 0
    placed: Placed = field(default_factory=Placed)
    outside: int = 0
    waiting: int = 0
    """Tiles not yet done with."""


@dataclass(frozen=True)
class Window:
    """A tile's pixels on their way to the model."""

    job: ReadingJob
    tile: int
    pixels: np.ndarray | None
    """None where the window was skipped, or could not be read, or is the image's seal."""
    trouble: str = ""
    verdict: str = RUN
    there: np.ndarray | None = None
    """(h, w) bool, which of the pixels the file has; None: all."""


class _Sign(Enum):
    END = "a reader has ended"
    WAKE = "look up"


_END, _WAKE = _Sign.END, _Sign.WAKE
_Arrival = Window | ReadingJob | BaseException | _Sign


class Layout(Protocol):
    """What the readers ask of a predictor."""

    batch_size: int
    readers: int
    options: OpenOptions
    placing: Placing
    skip: SkipRule | None
    share: Share
    turn: AbstractContextManager
    """Held while a network runs, so that the look and the model do not compete for the processor's cores."""

    def tiles_of(self, size: tuple[int, int], factor: float = 1.0) -> tuple[np.ndarray, tuple[int, int]]:
        """See `flyspeck.infer.predictor.Predictor.tiles_of`."""
        ...


class Reading:
    """Reader threads and the bounded queue between them and the model."""

    def __init__(self, owner: Layout, items: Iterator[Item], journal: Journal) -> None:
        self._owner, self._items, self._journal = owner, enumerate(items), journal
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._queue: queue.Queue[_Arrival] = queue.Queue(2 * owner.batch_size)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(owner.readers)]
        self._next_number = 0

    failure: BaseException | None = None
    """What a reader raised first, such as a generator of images: for whoever has used up what came before."""

    def arrivals(self) -> Iterator[Window | ReadingJob | None]:
        """Jobs, each before its windows, and windows; ends when all images are read, or a reader has raised (`failure`).

        None after `wake`.
        """
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            arrival = self._queue.get()
            if arrival is _END:
                running -= 1
            elif arrival is _WAKE:
                yield None
            elif isinstance(arrival, BaseException):
                self.failure = self.failure or arrival
            else:
                yield arrival

    def wake(self) -> None:
        """Let who waits for an arrival look up; where the queue is full nobody waits."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_WAKE)

    def stop(self) -> None:
        """End the threads, whatever they are waiting for."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _put(self, arrival: _Arrival) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(arrival, timeout=0.1)
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                job = self._next()
                if job is None:
                    break
                self._read(job)
        except BaseException as error:
            self._put(error)
        self._put(_END)

    def _next(self) -> ReadingJob | None:
        """The next image of this process's share; its images are numbered without gaps."""
        with self._lock:
            for number, item in self._items:
                if self._owner.share.has(number):
                    self._next_number += 1
                    return ReadingJob(self._next_number - 1, item)
        return None

    def _read(self, job: ReadingJob) -> None:
        owner = self._owner
        try:
            job.stamp = stamp_of(job.item)
            source = open_source(job.item.image, owner.options, name=job.item.name)
        except UserError as error:
            job.problem = error
            self._put(job)
            return
        with source:
            job.stamp = source.stamp or job.stamp
            job.size, job.note = source.size, source.note
            job.remark, job.value_range = source.remark, source.value_range
            try:
                job.placed = owner.placing.of(source.geo, source.size, name=job.item.name)
                job.tiles, job.seen = owner.tiles_of(source.size, job.placed.factor)
            except UserError as error:
                job.problem = UserError(error.what, where=error.where or job.item.name, fix=error.fix)
                self._put(job)
                return
            job.geo = job.placed.geo
            met = job.placed.meets(job.tiles)
            job.outside = int((~met).sum())
            for tile, finished in self._journal.recall(job.item, job.size, job.tiles, job.stamp).items():
                if not met[tile]:
                    continue
                if finished.verdict != RUN:
                    job.verdicts[tile] = finished.verdict
                if finished.verdict != SKIPPED:
                    job.found[tile] = finished.found
            todo = [
                t for t in owner.share.rows(len(job.tiles)) if met[t] and t not in job.found and t not in job.verdicts
            ]
            job.waiting = len(todo) + bool(todo)  # its windows, and the seal behind them
            self._put(job)
            for tile, verdict in self._verdicts(source, job, todo):
                if self._stopped.is_set():
                    return
                passed = Window(job, tile, None, verdict=SKIPPED)
                self._put(passed if verdict == SKIPPED else read_window(source, job, tile, verdict))
            if todo:
                self._put(
                    Window(job, SEAL, None, "" if (source.stamp or stamp_of(job.item)) == job.stamp else _CHANGED)
                )

    def _verdicts(self, source: Source, job: ReadingJob, todo: list[int]) -> Iterator[tuple[int, str]]:
        if self._owner.skip is None or len(job.tiles) < 2:
            return iter([(tile, RUN) for tile in todo])
        return self._owner.skip.verdicts(source, job.item.name, job.tiles, todo, job.seen, turn=self._owner.turn)


def read_window(source: Source, job: ReadingJob, tile: int, verdict: str = RUN) -> Window:
    """The pixels of row `tile` of `job.tiles`, or why there are none."""
    x1, y1, x2, y2 = job.tiles[tile].tolist()
    try:
        pixels, there = source.window(x1, y1, x2, y2, job.seen)
    except UserError as error:
        return Window(job, tile, None, error.what)
    if there is not None and not there.any():
        return Window(job, tile, None, verdict=EMPTY)
    return Window(job, tile, pixels, verdict=verdict, there=there)


def stamp_of(item: Item) -> tuple[int, ...]:
    """Size and time of change of the image's file, so that another image under the same name is noticed."""
    if not isinstance(item.image, Path):
        return ()
    try:
        status = item.image.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
