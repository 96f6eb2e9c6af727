"""A prediction job over one video or stream: detections of every frame, tracks, and what is made of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flyspeck.errors import UserError, counted
from flyspeck.infer.job_images import PredictionSummary
from flyspeck.infer.outputs import open_writers
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.reading import Result
from flyspeck.infer.remote import remote_name
from flyspeck.infer.results_folder import ResultsFolder
from flyspeck.infer.video.counts import CountTable
from flyspeck.infer.video.journal import FrameJournal, restored
from flyspeck.infer.video.live import LiveReader, is_live
from flyspeck.infer.video.reader import VideoFrame, VideoInfo, VideoReader
from flyspeck.infer.video.stills import Stills
from flyspeck.infer.video.tracker import Tracker, Tracking
from flyspeck.infer.video.tracks import TrackTable, draw_tracks, seconds_of
from flyspeck.infer.video.writer import VideoWriter
from flyspeck.infer.video.zones import Zone, remarks_on
from flyspeck.infer.web import WebRule
from flyspeck.progress import Advance, Tell, untold

_WRITTEN = ("counts.csv", "crossings.csv", "stills.csv", "stills")
_NAMED = 5  # frames without a result that are named, the others are counted


def told_name(source: Path | str) -> str:
    """What messages call a video or the address of a stream: no folder, no user, no password."""
    return source.name if isinstance(source, Path) else remote_name(source)


def tracked_name(name: str) -> str:
    """Name of the annotated video of the video called `name`."""
    return f"{Path(name).stem}.tracked.mp4"


class Sink(Protocol):
    """What is fed the results of the frames, in their order, with tracks."""

    def add(self, result: Result) -> None:
        """The next frame's. Raises UserError when the disk does not take it."""

    def close(self) -> None:
        """Nothing more comes."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Where a video job stops before its source does."""

    frames: int | None = None
    """After so many frames."""
    seconds: float | None = None
    """At this time of the video."""

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise UserError(f"{self.frames} frames", where="--max-frames", fix="give at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(f"{self.seconds} seconds", where="--max-seconds", fix="give more than 0")

    def cut(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """The frames up to the limit."""
        for count, frame in enumerate(frames, start=1):
            if self.seconds is not None and frame.seconds >= self.seconds:
                return
            yield frame
            if self.frames is not None and count >= self.frames:
                return


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """From what was asked for to the results of one video."""

    source: Path | str
    """A file, the `https://` address of one, or the address of a stream: of that the newest frames are taken, whatever is
    dropped between them."""
    out: Path
    formats: Sequence[str]
    """Names out of `flyspeck.infer.outputs.WRITERS`."""
    classes: tuple[str, ...]
    show: float
    """Objects of at least this score are tracked and drawn."""
    every: int = 1
    """Of the frames every so manieth is looked at."""
    draw: bool = True
    """Whether the annotated video is written."""
    limit: Limit = field(default_factory=Limit)
    stills: bool = False
    """Whether the best crop of each track is written."""
    zones: Sequence[Zone] = ()
    """Lines and regions whose crossings are counted."""
    resume: bool = False
    overwrite: bool = False
    web: WebRule | None = None
    """How long a server is waited for."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """What decides what is found on a frame."""
    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Tell = untold

    def run(self, predictor: Predictor) -> PredictionSummary:
        """Write everything. Raises UserError at the end where frames are missing or have no result; the others are written.

        KeyboardInterrupt is passed on, when all files are whole; so is SIGTERM, as KeyboardInterrupt.
        """
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            if not is_live(self.source):
                reader = VideoReader(self.source, every=self.every, web=self.web)
                stack.callback(reader.close)
                journal = self._journal(reader)
                stack.callback(journal.close)
                results = journalled(self.limit.cut(reader.frames()), predictor, journal)
            else:
                if self.resume:
                    fix = "leave out --resume, and give another folder"
                    raise UserError("a stream cannot be resumed", where=told_name(self.source), fix=fix)
                results_folder = ResultsFolder(self.out, overwrite=self.overwrite)
                results_folder.claim(_WRITTEN)
                reader = LiveReader(str(self.source), every=self.every)
                stack.callback(reader.close)
                results_folder.clear(tiles=True)
                results_folder.record(self._written(reader.name))
                # Each frame alone: in a batch the first would wait for the last.
                results = (result for frame in self.limit.cut(reader.frames()) for result in predictor.stream([frame]))
            # Its threads read from the video: they end before that is closed.
            stack.enter_context(closing(results))
            loop = FrameLoop(self, reader.info, stack, name=reader.name)
            try:
                for result in results:
                    with interrupts.held():
                        loop.one(result)
            except KeyboardInterrupt:
                with interrupts.held():
                    loop.finish()
                on = ", --resume goes on" if isinstance(reader, VideoReader) else ""
                self.warn(f"note: stopped after {counted(loop.frames, 'frame')}: the files are whole{on}")
                raise
            loop.finish()
        if isinstance(reader, LiveReader):
            self.say(reader.line())
        for note in reader.notes:
            self.warn(f"note: {reader.name}: {note}")
        return loop.summary(str(reader.troubles) if reader.troubles else "")

    def _written(self, name: str) -> list[str]:
        return [tracked_name(name), *_WRITTEN]

    def _journal(self, reader: VideoReader) -> FrameJournal:
        """The folder made ready, and its journal."""
        results = ResultsFolder(self.out, resume=self.resume, overwrite=self.overwrite)
        results.claim(_WRITTEN)
        about = {"video": [reader.name, *reader.stamp], "every": self.every}
        if not self.resume:
            results.clear(tiles=True)
        # Refuses frames of other settings before anything of theirs is removed.
        journal = FrameJournal(self.out, {**self.made_with, **about}, resume=self.resume)
        if self.resume:
            results.clear(tiles=False)
            self.say(f"resumed: {counted(journal.num_kept, 'frame')} kept")
        results.record(self._written(reader.name))
        return journal


class Interrupts:
    """Within it, SIGTERM, by which services and containers are stopped, is KeyboardInterrupt, as Ctrl-C is; in the main thread.

    Neither comes while a frame is `held`: all files end with the same frame.
    """

    def __init__(self) -> None:
        self._holding, self._pending = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            kinds = [signal.SIGTERM]
            kinds += [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
            self._before = {kind: signal.signal(kind, self._come) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What comes within it waits for its end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _come(self, *_: object) -> None:
        if not self._holding:
            raise KeyboardInterrupt
        self._pending = True


def journalled(
    frames: Iterator[VideoFrame], predictor: Predictor, journal: FrameJournal
) -> Generator[Result, None, None]:
    """The results of all frames: those that an earlier job finished out of the journal, the others by the predictor."""
    for number, entry in journal.kept():
        for frame in frames:
            if frame.image_id == number:
                yield restored(frame, entry)
                break
            yield from predictor.stream([frame])  # the model gave no answer for it; it is asked again
    with closing(predictor.stream(frames)) as results:
        for result in results:
            if result.problem is None and not result.holes:
                journal.record(result)
            yield result


class FrameLoop:
    """The loop over the results of a video's frames, and what it counted."""

    def __init__(self, job: VideoJob, info: VideoInfo, stack: ExitStack, *, name: str) -> None:
        self._job, self._info, self._notes = job, info, set[str]()
        self._tracking = Tracking(Tracker(rate=float(info.rate), score=job.show))
        self.frames, self.boxes, self.tiles, self.bad, self.loose = 0, 0, 0, 0, 0
        self._start = time.perf_counter()
        self.table = TrackTable(job.out / "tracks.csv")
        self._sinks: list[Sink] = []
        self._open(self.table, stack)
        self._open(CountTable(job.out, job.zones, info), stack)
        for remark in remarks_on(job.zones, info.size):
            job.warn(f"note: {remark}")
        if job.stills:
            self._open(Stills(job.out, info), stack)
        self._writers = open_writers(job.out, job.formats, classes=job.classes)
        for writer in self._writers:
            stack.callback(writer.close)
        if job.draw:
            annotated = AnnotatedVideo(job.out / tracked_name(name), info, least=job.show, live=is_live(job.source))
            if annotated.padded is not None:
                job.warn(f"note: {annotated.padded}")
            self._open(annotated, stack)

    def _open(self, sink: Sink, stack: ExitStack) -> None:
        self._sinks.append(sink)
        stack.callback(sink.close)

    def one(self, result: Result) -> None:
        """The next frame's result, before tracking."""
        job = self._job
        if result.problem is not None or result.holes:
            self.bad += 1
            if self.bad <= _NAMED:
                reason = result.problem or f"{result.item.name}: no result for a part of it: {result.holes[0][1]}"
                job.warn(f"error: {reason}")
        if result.problem is not None:
            size = result.item.image.shape[:2] if isinstance(result.item.image, np.ndarray) else (0, 0)
            result = replace(result, detections=replace(result.detections, image_size=(size[0], size[1])))
        if result.note and result.note not in self._notes:
            self._notes.add(result.note)
            job.warn(f"note: {result.item.name}: {result.note} (--bands, --value-range)")
        for told in self._tracking.add(result, seconds_of(result)):
            self._write(told)
        self.frames += 1
        total = self._info.frames
        total = min(total or job.limit.frames or 0, job.limit.frames or total)
        words = f"{self.frames}{f' of {total}' if total else ''} frames"
        job.progress(Advance("detecting", min(self.frames / total, 1.0) if total else None, words))

    def finish(self) -> None:
        """Write what was held back for the tracks."""
        for told in self._tracking.finish():
            self._write(told)

    def _write(self, told: Result) -> None:
        found = told.detections
        # What is in tracks.csv and drawn is reported everywhere: a track goes on with detections that are too weak to begin one.
        shown = replace(told, detections=found[(found.scores >= self._job.show) | (found.extra["track"] >= 0)])
        for sink in self._sinks:
            sink.add(told)
        for writer in self._writers if told.problem is None else ():  # an empty result would say that nothing is there
            writer.add(told if writer.keeps_all else shown)
        self.boxes += len(shown.detections)
        self.loose += int((shown.detections.extra["track"] < 0).sum())
        self.tiles += told.num_tiles

    def summary(self, troubles: str) -> PredictionSummary:
        """What was done. Raises UserError where something was amiss."""
        job, seconds, tracks = self._job, time.perf_counter() - self._start, len(self.table.numbers)
        job.say(
            f"{job.out}: {counted(self.frames, 'frame')}, {counted(self.boxes, 'box')}, {counted(tracks, 'track')}, "
            f"{seconds:.1f} s, "
            f"{self.frames / seconds:.2f} frames/s from decoding to {'the annotated video' if job.draw else 'the tables'}"
        )
        if self.loose:
            fewer = ", fewer with a smaller --every" if job.every > 1 else ""
            job.warn(
                f"note: {self.loose} of {self.boxes} detections belong to no track (seen once, or moved further from frame to "
                f"frame than tracks follow{fewer}): they are in no count"
            )
        if self.bad:
            more = f"{self.bad} of {counted(self.frames, 'frame')} without a result, wholly or in part"
            troubles = f"{troubles}; {more}" if troubles else more
        if troubles:
            where = job.source if isinstance(job.source, Path) else told_name(job.source)
            fix = f"the results of the {counted(self.frames, 'frame')} that came are written"
            raise UserError(troubles, where=where, fix=fix)
        return PredictionSummary(
            out=job.out, images=self.frames, boxes=self.boxes, tiles=self.tiles, seconds=seconds, tracks=tracks
        )


class AnnotatedVideo:
    """The video with the outlines of its tracks, frame by frame at the times of the source."""

    def __init__(self, path: Path, info: VideoInfo, *, least: float, live: bool = False) -> None:
        self._writer, self._least = VideoWriter(path, info, live=live), least
        self.padded: str | None = None
        """A line on how its frames differ from the source's; None where they do not."""
        if info.size != self._writer.padded:
            before, after = (f"{wide}x{high}" for high, wide in (info.size, self._writer.padded))
            self.padded = f"{path.name} is padded from {before} to {after} (width x height), as H.264 wants it"

    def add(self, result: Result) -> None:
        """See `Sink.add`."""
        item = result.item
        assert isinstance(item, VideoFrame)
        assert isinstance(item.image, np.ndarray)
        drawn = draw_tracks(item.image, result.detections, least=self._least)
        self._writer.add(drawn, item.seconds, duration=item.duration)

    def close(self) -> None:
        """See `Sink.close`."""
        self._writer.close()
