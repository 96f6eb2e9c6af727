"""Pictures of any size in, one `Detections` each out: reader threads, batches across pictures, the model, one merge.

Memory is bounded: readers stop when `2 * batch_size` windows wait, a window is dropped once the model has seen it, and
what grows with a picture are its boxes alone. A batch holds windows of one size only, so nothing is padded and a result does
not depend on what else was in the batch. Results come in the order of the pictures.

NumPy only. A model is any callable that takes a list of windows (H, W, C) uint8 or uint16 and returns one `Detections` per
window, in the window's frame.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.infer.merge import MergeRule, merge
from flyspeck.infer.source import Item, OpenOptions, Source, open_source
from flyspeck.infer.tiles import grid, is_cut
from flyspeck.types import Detections

Model = Callable[[list[np.ndarray]], list[Detections]]
Gate = Callable[[list[np.ndarray]], Sequence[bool]]
Picture = np.ndarray | str | Path | Item
TileKey = tuple[int, int, int, int]


@dataclass(frozen=True)
class Result:
    """What became of one picture."""

    item: Item
    detections: Detections
    num_tiles: int = 1
    num_skipped: int = 0
    """Tiles that the gate found empty."""
    holes: tuple[tuple[TileKey, str], ...] = ()
    """Windows that could not be read, with the reason."""
    problem: UserError | None = None
    """Why the picture could not be opened at all; `detections` is then empty and of size (0, 0)."""
    source_geo: object = None
    """Its `GeoReference`, if it has one."""


@dataclass
class _Job:
    """One picture on its way."""

    number: int
    item: Item
    tiles: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    size: tuple[int, int] = (0, 0)
    geo: object = None
    problem: UserError | None = None
    found: dict[int, Detections] = field(default_factory=dict)
    skipped: int = 0
    holes: list[tuple[TileKey, str]] = field(default_factory=list)
    waiting: int = 0
    """Tiles not yet through the model."""


@dataclass(frozen=True)
class _Window:
    job: _Job
    tile: int
    pixels: np.ndarray | None
    """None where the window could not be read."""
    trouble: str = ""


class Journal:
    """What keeps finished tiles between runs; this one keeps nothing (`flyspeck.infer.resume` has the one that does)."""

    def recall(self, item: Item, size: tuple[int, int], tiles: np.ndarray) -> dict[int, Detections]:
        """Detections of the tiles (rows of `tiles`) that an earlier run finished, in the picture's frame."""
        return {}

    def record(self, item: Item, tile: np.ndarray, found: Detections) -> None:
        """Called once for each tile that the model has seen."""


class Predictor:
    """Runs a model over pictures.

    `tile` is (height, width) or one number, in pixels that the model sees; None gives it whole pictures. `overlap` is what
    neighbouring tiles share at least, in the same pixels: an object must fit into it to be seen whole. `scale` is model pixels
    per picture pixel, or `enlarge` says it picture by picture. `gate` may look at a batch of windows and say which to pass to
    the model. `readers` threads decode ahead of it.
    """

    def __init__(
        self,
        model: Model,
        *,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] = 0,
        scale: float = 1.0,
        enlarge: Enlarge | None = None,
        batch_size: int = 8,
        score_threshold: float = 0.05,
        merge: MergeRule | None = None,
        gate: Gate | None = None,
        readers: int = 1,
        options: OpenOptions | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("readers", readers)):
            if value < 1:
                raise UserError(f"{name} is {value}", fix="give at least 1")
        if not 0 < scale < np.inf:
            raise UserError(f"scale is {scale}", fix="give a positive number")
        self.model, self.gate = model, gate
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        self.overlap = (overlap, overlap) if isinstance(overlap, int) else overlap
        if self.tile is not None:
            grid((1, 1), self.tile, self.overlap)  # refuses an impossible pair before any work
        self.enlarge = enlarge or Enlarge(scale)
        self.batch_size, self.score_threshold = batch_size, score_threshold
        self.merge, self.readers, self.options = merge or MergeRule(), readers, options or OpenOptions()

    def predict(self, pictures: Picture | Iterable[Picture]) -> list[Detections]:
        """Detections of each picture (array, file or item), always a list; raises UserError for one that is broken."""
        if isinstance(pictures, np.ndarray | str | Path | Item):
            pictures = [pictures]
        found = []
        for result in self.stream(pictures):
            if result.problem is not None:
                raise result.problem
            if result.holes:
                (x1, y1, x2, y2), reason = result.holes[0]
                raise UserError(f"window {x1},{y1} to {x2},{y2}: {reason}", where=result.item.name)
            found.append(result.detections)
        return found

    def stream(
        self,
        pictures: Iterable[Picture],
        *,
        journal: Journal | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Result]:
        """Results in the order of `pictures`, each as soon as it and those before it are done.

        A picture that cannot be opened, or a window that cannot be read, is told in its `Result` and stops nothing.
        `progress` is called with the number of tiles that were just finished.
        """
        journal = journal or Journal()
        reading = _Reading(self, _items(pictures), journal)
        done: dict[int, _Job] = {}
        next_number = 0
        pending: dict[tuple[int, ...], list[_Window]] = {}
        try:
            for arrival in reading.arrivals():
                if isinstance(arrival, _Window):
                    touched = self._accept(arrival, pending, journal)
                    _tell(progress, len(touched))
                else:
                    touched = [arrival]
                    _tell(progress, len(arrival.found))
                done.update({job.number: job for job in touched if not job.waiting})
                while next_number in done:
                    yield self._result(done.pop(next_number))
                    next_number += 1
            while pending:
                touched = self._run(pending.pop(next(iter(pending))), journal)
                _tell(progress, len(touched))
                done.update({job.number: job for job in touched if not job.waiting})
            for number in sorted(done):
                yield self._result(done[number])
        finally:
            reading.stop()

    def _accept(self, window: _Window, pending: dict[tuple[int, ...], list[_Window]], journal: Journal) -> list[_Job]:
        """Put a window into the batch of its shape; run what is full, or the oldest when too many shapes wait."""
        job = window.job
        if window.pixels is None:
            x1, y1, x2, y2 = job.tiles[window.tile].tolist()
            job.holes.append(((x1, y1, x2, y2), window.trouble))
            job.waiting -= 1
            return [job]
        shape = (*window.pixels.shape, window.pixels.itemsize)
        pending.setdefault(shape, []).append(window)
        if len(pending[shape]) >= self.batch_size:
            return self._run(pending.pop(shape), journal)
        if sum(len(batch) for batch in pending.values()) >= 2 * self.batch_size:
            return self._run(pending.pop(next(iter(pending))), journal)
        return []

    def _run(self, batch: list[_Window], journal: Journal) -> list[_Job]:
        """The model over one batch; the jobs concerned, one entry a window."""
        jobs = [window.job for window in batch]
        for job in jobs:
            job.waiting -= 1
        passed = batch
        if self.gate is not None:
            verdict = self.gate([w.pixels for w in batch if w.pixels is not None])
            passed = [w for w, wanted in zip(batch, verdict, strict=True) if wanted]
            for window, wanted in zip(batch, verdict, strict=True):
                if not wanted:
                    window.job.skipped += 1
                    journal.record(window.job.item, window.job.tiles[window.tile], Detections.empty(window.job.size))
        if passed:
            found = self.model([w.pixels for w in passed if w.pixels is not None])
            if len(found) != len(passed):
                raise ValueError(f"the model returned {len(found)} results for {len(passed)} windows")
            for window, detections in zip(passed, found, strict=True):
                placed = self._place(window, detections)
                window.job.found[window.tile] = placed
                journal.record(window.job.item, window.job.tiles[window.tile], placed)
        return jobs

    def _place(self, window: _Window, found: Detections) -> Detections:
        """A window's detections in the frame of the picture, weak ones left out, cut ones marked."""
        job, frame = window.job, window.job.tiles[window.tile]
        assert window.pixels is not None
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise UserError(
                "the model gave a box or score that is not finite", where=job.item.name, fix="train it again"
            )
        found = found[found.scores >= self.score_threshold]
        height, width = window.pixels.shape[:2]
        ratio = np.array([(frame[2] - frame[0]) / width, (frame[3] - frame[1]) / height] * 2)
        boxes = (found.boxes * ratio + np.tile(frame[:2], 2)).astype(np.float32)
        cut = is_cut(boxes, frame, job.size, tolerance=1 / self.enlarge.scale(job.size))
        return replace(
            found, boxes=boxes, image_size=job.size, image_id=job.item.image_id, extra={**found.extra, "cut": cut}
        )

    def tiles_of(self, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """The tiles `(T, 4)` of a picture of `size` (H, W), in its own pixels, and the (h, w) at which the model sees each.

        When shrinking, tiles start on pixels that the model sees: at a scale of 1/k all tiles then sample the picture in the same
        phase, and an object of two seen pixels looks the same in both of its tiles.
        """
        seen, scale = self.enlarge.size(size), self.enlarge.scale(size)
        if self.tile is None:
            return np.array([[0, 0, size[1], size[0]]], np.int64), seen
        if scale <= 1:
            seen_frames = grid(seen, self.tile, self.overlap)
            limit = np.array([size[1], size[0]] * 2)
            frames = np.minimum(np.round(seen_frames / scale), limit).astype(np.int64)
            last = seen_frames[:, 2:] == (seen[1], seen[0])  # what rounding left over belongs to the last tiles
            frames[:, 2:] = np.where(last, limit[:2], frames[:, 2:])
            return frames, (int(seen_frames[0, 3]), int(seen_frames[0, 2]))
        side = [max(1, int(t / scale)) for t in self.tile]
        # Rounded up, so that what fits into the overlap at the model's scale still does.
        shared = [min(s - 1, int(np.ceil(o / scale))) for o, s in zip(self.overlap, side, strict=True)]
        frames = grid(size, (side[0], side[1]), (shared[0], shared[1]))
        return frames, (round(frames[0, 3] * scale), round(frames[0, 2] * scale))

    def _result(self, job: _Job) -> Result:
        if job.problem is not None:
            return Result(job.item, Detections.empty((0, 0)), num_tiles=0, problem=job.problem)
        order = sorted(job.found)
        merged = Detections.empty(job.size)
        if order:
            parts = [job.found[tile] for tile in order]
            own = np.repeat(order, [len(part) for part in parts])
            merged = concatenate(parts)
            if len(job.tiles) > 1:
                merged = merge(merged, tiles=job.tiles, tile_index=own, rule=self.merge)
        merged = replace(merged, image_id=job.item.image_id)
        holes = tuple(sorted(job.holes))
        return Result(job.item, merged, len(job.tiles), job.skipped, holes, source_geo=job.geo)


def _tell(progress: Callable[[int], None] | None, num_tiles: int) -> None:
    if progress is not None and num_tiles:
        progress(num_tiles)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Detections of one picture's tiles, one after the other; extra columns that all parts have are kept."""
    names = set.intersection(*(set(part.extra) for part in parts))
    classes = next((part.classes for part in parts if part.classes), ())
    return replace(
        parts[0],
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        extra={name: np.concatenate([part.extra[name] for part in parts]) for name in sorted(names)},
        classes=classes,
    )


def _items(pictures: Iterable[Picture]) -> Iterator[Item]:
    for number, picture in enumerate(pictures, start=1):
        if isinstance(picture, Item):
            yield picture
        elif isinstance(picture, np.ndarray):
            yield Item(f"array {number}", picture, number)
        else:
            yield Item(str(picture), Path(picture), number)


class _Reading:
    """The reader threads of one stream and the bounded queue between them and the model."""

    def __init__(self, owner: Predictor, items: Iterator[Item], journal: Journal) -> None:
        self._owner, self._items, self._journal = owner, enumerate(items), journal
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._queue: queue.Queue[_Window | _Job | BaseException | None] = queue.Queue(2 * owner.batch_size)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(owner.readers)]

    def arrivals(self) -> Iterator[_Window | _Job]:
        """Jobs, each before its windows, and windows; ends when all pictures are read, raises what a reader raised."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            arrival = self._queue.get()
            if arrival is None:
                running -= 1
            elif isinstance(arrival, BaseException):
                raise arrival
            else:
                yield arrival

    def stop(self) -> None:
        """End the threads, whatever they are waiting for."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _put(self, arrival: _Window | _Job | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(arrival, timeout=0.1)
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._lock:
                    number, item = next(self._items, (-1, None))
                if item is None:
                    break
                self._read(_Job(number, item))
        except BaseException as error:
            self._put(error)
        self._put(None)

    def _read(self, job: _Job) -> None:
        owner = self._owner
        try:
            source = open_source(job.item.picture, owner.options, name=job.item.name)
        except UserError as error:
            job.problem = error
            self._put(job)
            return
        with source:
            job.size, job.geo = source.size, source.geo
            job.tiles, seen_size = owner.tiles_of(source.size)
            job.found = self._journal.recall(job.item, job.size, job.tiles)
            todo = [tile for tile in range(len(job.tiles)) if tile not in job.found]
            job.waiting = len(todo)
            self._put(job)
            for tile in todo:
                if self._stopped.is_set():
                    return
                self._put(_read_window(source, job, tile, seen_size))


def _read_window(source: Source, job: _Job, tile: int, seen_size: tuple[int, int]) -> _Window:
    x1, y1, x2, y2 = job.tiles[tile].tolist()
    try:
        return _Window(job, tile, source.read(x1, y1, x2, y2, seen_size))
    except UserError as error:
        return _Window(job, tile, None, error.what)
