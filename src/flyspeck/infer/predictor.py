"""Images of any size in, one `Detections` each out: reader threads, batches across images, the model, one merge.

Memory is bounded: readers stop when `2 * batch_size` windows wait, a window is dropped once the model has seen it, and
what grows with an image are its boxes alone. A batch holds windows of one size only, so nothing is padded and a result does
not depend on what else was in the batch. Results come in the order of the images.

NumPy only. A model is any callable that takes a list of windows (H, W, C) uint8 or uint16 and returns one `Detections` per
window, in the window's frame.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import numpy as np

from flyspeck.allocator import freed_memory_kept
from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.evaluate.score_curve import WITHOUT
from flyspeck.infer.inputs import ChannelOrder, Loose, is_one, items_of
from flyspeck.infer.limits import cut_off, unmarked
from flyspeck.infer.merge import DEFAULT, MergeRule, merge
from flyspeck.infer.missing import hidden, trimmed
from flyspeck.infer.passes import Model, Passes, Workers
from flyspeck.infer.placing import Placing
from flyspeck.infer.prediction import Prediction
from flyspeck.infer.reading import (
    EMPTY,
    SEAL,
    Finished,
    Journal,
    Reading,
    ReadingJob,
    Result,
    Share,
    Window,
    read_window,
)
from flyspeck.infer.several import detections_of
from flyspeck.infer.skip import AUDITED, RUN, SKIPPED, SkipReport, SkipRule, report_of, takes_back
from flyspeck.infer.source import open_source
from flyspeck.infer.tiles import grid, is_cut, planned, refuse_larger
from flyspeck.infer.windows import OpenOptions
from flyspeck.types import Detections

__all__ = ["Finished", "Journal", "Model", "Predictor", "Result", "Share", "concatenate"]

Gate = Callable[[list[np.ndarray]], Sequence[bool]]


class Predictor:
    """Runs a model over images.

    `tile` is (height, width) or one number, in pixels that the model sees; None gives it whole images. `overlap` is what
    neighbouring tiles share at least, in the same pixels: an object must fit into it to be seen whole. `scale` is model pixels
    per image pixel, or `enlarge` says it image by image; where that squeezes, tiles are in pixels of the image, each of them
    squeezed. `gate` may look at a batch of windows and say which to pass to the model; `skip` looks before a window is read in
    full (`flyspeck.infer.skip`). `readers` threads decode ahead of the model. `share` is this process's part of the images
    or tiles. `placing` names a region to look at. `passes` of the model run at a time, if it can; None: as many as are measured
    to be fastest (`flyspeck.infer.passes`).
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
        skip: SkipRule | None = None,
        readers: int = 1,
        share: Share | None = None,
        options: OpenOptions | None = None,
        placing: Placing | None = None,
        passes: int | None = None,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("readers", readers),
            ("passes", 1 if passes is None else passes),
        ):
            if value < 1:
                raise UserError(f"{name} is {value}", fix="give at least 1")
        if not 0 < scale < np.inf:
            raise UserError(f"scale is {scale}", fix="give a positive number")
        self.model, self.gate, self.skip, self.share = model, gate, skip, share or Share()
        self.turn: AbstractContextManager = threading.Lock()
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        self.overlap = (overlap, overlap) if isinstance(overlap, int) else overlap
        if self.tile is not None:
            grid((1, 1), self.tile, self.overlap)  # refuses an impossible pair before any work
            if enlarge is None or enlarge.squeeze is None:
                refuse_larger(self.tile, getattr(model, "largest_window", None))
        self.enlarge = enlarge or Enlarge(scale)
        self.shown_from = WITHOUT
        """Detections of at least this score are drawn of a `Prediction`."""
        self.batch_size, self.score_threshold = batch_size, score_threshold
        self.merge, self.readers, self.options = merge or DEFAULT, readers, options or OpenOptions()
        self.placing = placing or Placing()
        self._at_a_time = passes
        self._workers: Workers | None = None

    def __call__(self, image: Loose, *, channel_order: ChannelOrder = "rgb") -> Prediction | list[Prediction]:
        """The detections of one image, or a list of several, with the image, to be shown: `predictor("photo.jpg").show()`."""
        items = list(items_of(image, channel_order=channel_order))
        found = [
            Prediction(item, detections, self.options, score=self.shown_from)
            for item, detections in zip(items, self.predict(items), strict=True)
        ]
        return found[0] if is_one(image) else found

    def predict(
        self, images: Loose, *, channel_order: ChannelOrder = "rgb", progress: Callable[[int], None] | None = None
    ) -> list[Detections]:
        """Detections of each image, always a list.

        Args:
            images: One image, or any iterable of them: a path, a folder, a pattern, bytes, an open file, a Pillow image, an array
                or a tensor (`flyspeck.infer.inputs` says what each means).
            channel_order: Of arrays and tensors; others say their own.
            progress: Called with the number of tiles that were just finished; silent by default.

        Returns:
            One `Detections` an image, in its pixels.

        Raises:
            ImagesFailed: Images are broken, or none: a `UserError` that names the first, after the last image was looked at. Its
                `detections` are those of the others.
        """
        return detections_of(self.stream(images, channel_order=channel_order, progress=progress))

    def stream(
        self,
        images: Loose,
        *,
        channel_order: ChannelOrder = "rgb",
        journal: Journal | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Result, None, None]:
        """Results in the order of `images`, each as soon as it and those before it are done.

        `images` and `channel_order` are those of `predict`. An image that cannot be opened, or a window that cannot be read, is
        told in its `Result` and stops nothing.
        `progress` is called with the number of tiles that were just finished.
        """
        journal = journal or Journal()
        reading = Reading(self, items_of(images, channel_order=channel_order), journal)
        done: dict[int, ReadingJob] = {}
        next_number = 0
        pending: dict[tuple[int, ...], list[Window]] = {}
        passes = self._passes(reading.wake)
        kept = ExitStack()
        kept.enter_context(freed_memory_kept(give_back=False))
        try:
            for arrival in reading.arrivals():
                touched: list[ReadingJob] = []
                if isinstance(arrival, Window):
                    touched = self._accept(arrival, pending, passes, journal)
                    _tell(progress, len(touched) if arrival.tile != SEAL else 0)
                elif arrival is not None:
                    touched = [arrival]
                    _tell(progress, len(set(arrival.found) | set(arrival.verdicts)))
                seen = self._seen(passes, journal)
                _tell(progress, len(seen))
                done.update({job.number: job for job in touched + seen if not job.waiting})
                while next_number in done:
                    yield self._result(done.pop(next_number), journal)
                    next_number += 1
            while pending:
                touched = self._begin(pending.pop(next(iter(pending))), passes, journal)
                touched += self._seen(passes, journal, wait=not pending)
                _tell(progress, len(touched))
                done.update({job.number: job for job in touched if not job.waiting})
            seen = self._seen(passes, journal, wait=True)
            _tell(progress, len(seen))
            done.update({job.number: job for job in seen if not job.waiting})
            for number in sorted(done):
                yield self._result(done[number], journal)
            if reading.failure is not None:
                raise reading.failure
        finally:
            reading.stop()
            passes.stop()
            kept.close()

    def _passes(self, wake: Callable[[], None]) -> Passes[list[Window]]:
        """Of one stream. A look that runs a network, too, takes turns with the model: nothing runs beside either."""
        if self._workers is None or self._workers.model is not self.model:
            self._workers = Workers(self.model, self._at_a_time)
        alone = None if self.skip is None and self._workers.beside else self.turn
        return Passes(self._workers, alone=alone, wake=wake)

    def _accept(
        self,
        window: Window,
        pending: dict[tuple[int, ...], list[Window]],
        passes: Passes[list[Window]],
        journal: Journal,
    ) -> list[ReadingJob]:
        """Put a window into the batch of its shape; begin what is full, or the oldest when too many shapes wait.

        The jobs that are done with a window, one entry a window.
        """
        job = window.job
        if window.pixels is None:
            job.waiting -= 1
            if window.tile == SEAL:
                if window.trouble:
                    fix = "run it again when it is at rest, with --resume"
                    job.problem = UserError(window.trouble, where=job.item.name, fix=fix)
            elif window.verdict == SKIPPED:
                self._skip(window, journal)
            elif window.verdict == EMPTY:
                self._empty(window, journal)
            else:
                x1, y1, x2, y2 = job.tiles[window.tile].tolist()
                job.holes.append(((x1, y1, x2, y2), window.trouble))
            return [job]
        shape = (*window.pixels.shape, window.pixels.itemsize)
        pending.setdefault(shape, []).append(window)
        if len(pending[shape]) >= self.batch_size:
            return self._begin(pending.pop(shape), passes, journal)
        if sum(len(batch) for batch in pending.values()) >= 2 * self.batch_size:
            return self._begin(pending.pop(next(iter(pending))), passes, journal)
        return []

    def _skip(self, window: Window, journal: Journal) -> None:
        job = window.job
        job.verdicts[window.tile] = SKIPPED
        nothing = Detections.empty(job.size)
        journal.record(job.item, job.tiles[window.tile], nothing, verdict=SKIPPED, stamp=job.stamp)

    def _empty(self, window: Window, journal: Journal) -> None:
        """Nothing of the tile is there: nothing is found, and there is nothing to run after all."""
        job, nothing = window.job, Detections.empty(window.job.size)
        job.num_empty += 1
        job.found[window.tile] = nothing
        job.verdicts.pop(window.tile, None)
        journal.record(job.item, job.tiles[window.tile], nothing, stamp=job.stamp)

    def _begin(self, batch: list[Window], passes: Passes[list[Window]], journal: Journal) -> list[ReadingJob]:
        """Begin the model's pass over what the gate lets through of a batch; the jobs of the others, one entry a window."""
        passed, left = batch, list[Window]()
        if self.gate is not None:
            verdict = self.gate([w.pixels for w in batch if w.pixels is not None])
            passed = [w for w, wanted in zip(batch, verdict, strict=True) if wanted]
            left = [w for w, wanted in zip(batch, verdict, strict=True) if not wanted]
        if passed:
            passes.begin(passed, [w.pixels for w in passed if w.pixels is not None])
        for window in left:
            window.job.waiting -= 1
            self._skip(window, journal)
        return [window.job for window in left]

    def _seen(self, passes: Passes[list[Window]], journal: Journal, *, wait: bool = False) -> list[ReadingJob]:
        """Take in what the passes that are over found, with `wait` all of them; the jobs concerned, one entry a window."""
        jobs = []
        for batch, found in passes.ended(wait=wait):
            for window, placed in self._see(batch, found.result):
                job = window.job
                job.found[window.tile] = placed
                job.verdicts.pop(window.tile, None)
                if window.verdict == AUDITED:
                    job.verdicts[window.tile] = AUDITED
                journal.record(job.item, job.tiles[window.tile], placed, verdict=window.verdict, stamp=job.stamp)
            for window in batch:
                window.job.waiting -= 1
                jobs.append(window.job)
        return jobs

    def _see(self, windows: list[Window], find: Callable[[], list[Detections]]) -> Iterator[tuple[Window, Detections]]:
        """What the model finds in each window, in the frame of its image; a window that it refuses is a hole of its image.

        Where a batch is refused, each of its windows is tried alone: one bad image costs no other.
        """
        try:
            found = find()
        except UserError as error:
            if len(windows) > 1:
                for window in windows:
                    yield from self._see([window], lambda window=window: self._now([window]))
            else:
                _refused(windows[0], error)
            return
        if len(found) != len(windows):
            raise ValueError(f"the model returned {len(found)} results for {len(windows)} windows")
        for window, detections in zip(windows, found, strict=True):
            try:
                placed = self._place(window, detections)
            except UserError as error:
                _refused(window, error)
            else:
                yield window, placed

    def _now(self, windows: list[Window]) -> list[Detections]:
        with self.turn:
            return self.model([w.pixels for w in windows if w.pixels is not None])

    def _place(self, window: Window, found: Detections) -> Detections:
        """A window's detections in the frame of the image, weak ones left out, cut ones marked."""
        job, frame = window.job, window.job.tiles[window.tile]
        assert window.pixels is not None
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise UserError(
                "the model gave a box or score that is not finite", where=job.item.name, fix="train it again"
            )
        height, width = window.pixels.shape[:2]
        # A limit that cut off nothing but scores below the threshold has cost nothing.
        job.num_full += cut_off(self.model, found, (height, width)) >= self.score_threshold
        found = unmarked(found[found.scores >= self.score_threshold])
        if window.there is not None and len(found):
            gone = hidden(found.boxes, window.there)
            job.num_hidden += int(gone.sum())
            found = found[~gone]
            found = replace(found, boxes=trimmed(found.boxes, window.there))
        ratio = np.array([(frame[2] - frame[0]) / width, (frame[3] - frame[1]) / height] * 2)
        boxes = (found.boxes * ratio + np.tile(frame[:2], 2)).astype(np.float32)
        pixel = (
            1 / (job.placed.factor * self.enlarge.scale(job.size))
            if self.enlarge.squeeze is None
            else float(ratio.max())
        )
        cut = is_cut(boxes, frame, job.size, tolerance=pixel)
        return replace(
            found, boxes=boxes, image_size=job.size, image_id=job.item.image_id, extra={**found.extra, "cut": cut}
        )

    def tiles_of(self, size: tuple[int, int], factor: float = 1.0) -> tuple[np.ndarray, tuple[int, int]]:
        """`flyspeck.infer.tiles.planned` for an image of `size` (H, W); `factor` is a further one of this image."""
        enlarge = self.enlarge if factor == 1 else self.enlarge.scaled(factor)
        return planned(size, enlarge, self.tile, self.overlap, most_pixels=self.options.max_pixels)

    def _result(self, job: ReadingJob, journal: Journal) -> Result:
        if job.problem is not None:
            return Result(job.item, Detections.empty((0, 0)), num_tiles=0, problem=job.problem)
        if job.holes and not job.found and not job.verdicts:
            # Nothing of it was seen: an empty result would say that nothing is there.
            reasons = list(dict.fromkeys(reason for _, reason in job.holes))
            problem = UserError(reasons[0], where=job.item.name)
            return Result(job.item, Detections.empty((0, 0)), num_tiles=0, problem=problem)
        report, unaudited = None, None
        if self.skip is not None:
            report = report_of(job.found, job.verdicts, self.skip)
            if takes_back(report, self.skip):
                report = report + SkipReport(fell_back=self._run_skipped(job, journal), skipped=-report.skipped)
            if self.skip.audit == 1:
                kept = [tile for tile in job.found if job.verdicts.get(tile, RUN) == RUN]
                unaudited = self._merge(job, kept)
        skipped = sum(verdict == SKIPPED for verdict in job.verdicts.values())
        return Result(
            job.item,
            self._merge(job, list(job.found)),
            len(job.tiles),
            skipped,
            tuple(sorted(job.holes)),
            source_geo=job.geo,
            note=job.note,
            num_outside=job.outside,
            resolution=job.placed.said,
            remark=job.remark,
            value_range=job.value_range,
            num_empty=job.num_empty,
            num_hidden=job.num_hidden,
            num_full=job.num_full,
            skip=report,
            unaudited=unaudited,
        )

    def _merge(self, job: ReadingJob, chosen: list[int]) -> Detections:
        """One list out of the `chosen` tiles."""
        order = sorted(chosen)
        merged = Detections.empty(job.size)
        if order:
            parts = [job.found[tile] for tile in order]
            own = np.repeat(order, [len(part) for part in parts])
            merged = concatenate(parts)
            if len(job.tiles) > 1:
                ran = np.zeros(len(job.tiles), bool)
                ran[order] = True
                merged = merge(merged, tiles=job.tiles, tile_index=own, ran=ran, rule=self.merge)
        return replace(merged[job.placed.holds(merged.boxes)], image_id=job.item.image_id)

    def _run_skipped(self, job: ReadingJob, journal: Journal) -> int:
        """Run the tiles that were skipped, as the audit found too much in others like them; how many they were."""
        missing = sorted(tile for tile, verdict in job.verdicts.items() if verdict == SKIPPED)
        passes = self._passes(lambda: None)
        try:
            again = open_source(job.item.image, self.options, name=job.item.name)
        except UserError as error:  # it was there when it was looked at: these tiles are not known, and all else is
            for tile in missing:
                job.verdicts.pop(tile)
                _refused(Window(job, tile, None), error)
            return 0
        with again as source:
            for start in range(0, len(missing), self.batch_size):
                windows = [read_window(source, job, tile) for tile in missing[start : start + self.batch_size]]
                job.waiting += len(windows)
                for window in windows:
                    if window.pixels is None:
                        job.verdicts.pop(window.tile)
                        self._accept(window, {}, passes, journal)
                readable = [window for window in windows if window.pixels is not None]
                if readable:
                    self._begin(readable, passes, journal)
                    self._seen(passes, journal, wait=True)
        return len(missing)


def _tell(progress: Callable[[int], None] | None, num_tiles: int) -> None:
    if progress is not None and num_tiles:
        progress(num_tiles)


def _refused(window: Window, error: UserError) -> None:
    """The window is a hole of its image."""
    x1, y1, x2, y2 = window.job.tiles[window.tile].tolist()
    fix = f" ({error.fix})" if error.fix else ""
    window.job.holes.append(((x1, y1, x2, y2), f"{error.what}{fix}"))


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Detections of one image's tiles, one after the other; extra columns that all parts have are kept."""
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
