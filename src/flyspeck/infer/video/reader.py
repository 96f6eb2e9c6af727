"""The frames of a video file, upright, each with the time at which a player shows it. Through PyAV (FFmpeg)."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError, counted
from flyspeck.infer.source import Item
from flyspeck.infer.video.files import reason, video_file
from flyspeck.infer.video.pixels import Orientation, rgb
from flyspeck.infer.video.promise import frames_missing
from flyspeck.infer.video.pyav import pyav, video_stream
from flyspeck.infer.video.steps import Steps
from flyspeck.infer.web import WebRule

_FASTEST = 1000  # frames per second; more is the unit of the stamps, not a rate
_LISTED = 5  # frames named of those that are lost or damaged
_JUMP = 3  # mean periods by which a stamp may be early before the clock is taken for a new one
_FAILURES = 100  # errors of the container, one after the other, before it is given up


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself."""

    size: tuple[int, int]
    """(H, W) in pixels, upright."""
    rate: Fraction
    """Frames per second, on average: of those that are looked at."""
    frames: int = 0
    """That are looked at; 0 where the file does not say."""


@dataclass(frozen=True)
class VideoFrame(Item):
    """A frame of a video, decoded; `image_id` counts from 1."""

    seconds: float = 0.0
    """When it is shown, from the start of the video: its presentation stamp."""
    duration: float = 0.0
    """For how many seconds it is shown, as far as the file says; else 0."""


def frame_names(video: str, number: int) -> tuple[str, str]:
    """Name of a frame of the video called `video`, and of its own result files: `a.mp4#000012` and `a_000012`."""
    return f"{video}#{number:06d}", f"{Path(video).stem}_{number:06d}"


@dataclass
class Clock:
    """From the stamps of a stream to seconds that begin at 0 and never go back."""

    origin: Fraction | None
    """The stamp that is 0 s; None: the first one."""
    rate: Fraction
    last: Fraction | None = None
    jumps: int = 0
    """How often the stamps went back by more than `_JUMP`, as where two recordings are joined: time then goes on."""
    guessed: int = 0
    """Frames without a stamp: shown one mean period after the one before."""

    def seconds(self, stamp: Fraction | None) -> Fraction:
        """The time of the next frame in the order of presentation."""
        if stamp is None:
            self.guessed += 1
            now = Fraction(0) if self.last is None else self.last + 1 / self.rate
        else:
            if self.origin is None or (self.last is None and stamp < self.origin):
                self.origin = stamp
            now = stamp - self.origin
        if self.last is not None and now < self.last:
            if self.last - now > _JUMP / self.rate:
                self.jumps += 1
                shift = self.last + 1 / self.rate - now
                self.origin = None if self.origin is None else self.origin - shift
                now += shift
            else:
                now = self.last
        self.last = now
        return now


@dataclass
class Troubles:
    """What was amiss with a video's frames; false where nothing was."""

    lost: list[tuple[int, float | None]] = field(default_factory=list)
    """Frames that could not be decoded: number from 1, and seconds where they are known."""
    damaged: list[tuple[int, float]] = field(default_factory=list)
    """Frames that the decoder had to patch up; they are read all the same."""
    gaps: list[int] = field(default_factory=list)
    """Frames after which the container is damaged: what is lost there, nobody can tell."""
    promised: int = 0
    """Frames by the file's index or duration, where some are missing at its end."""
    missing: int | None = 0
    """How many of these did not come; None: some, nobody knows how many."""
    broken: str = ""
    """Why reading ended early."""

    def __bool__(self) -> bool:
        return self.missing != 0 or bool(self.lost or self.damaged or self.gaps or self.broken)

    def __str__(self) -> str:
        """One line for people."""
        parts = []
        if self.missing is None:
            parts.append("the file is cut off: frames at its end are missing, and it does not say how many")
        elif self.missing:
            came = self.promised - self.missing
            parts.append(
                f"the file is cut off: it promises {counted(self.promised, 'frame')}, {came} came, {self.missing} are missing"
            )
        for frames, what in ((self.lost, "cannot be decoded"), (self.damaged, "damaged, decoded in part")):
            if frames:
                named = ", ".join(str(n) if at is None else f"{n} ({at:.3f} s)" for n, at in frames[:_LISTED])
                more = f" and {len(frames) - _LISTED} more" if len(frames) > _LISTED else ""
                parts.append(f"frame{'s' if len(frames) > 1 else ''} {named}{more} {what}")
        if self.gaps:
            named = ", ".join(map(str, self.gaps[:_LISTED])) + (", ..." if len(self.gaps) > _LISTED else "")
            parts.append(f"the file is damaged after frame {named}: frames may be missing there")
        return "; ".join(parts + [self.broken] * bool(self.broken))


class VideoReader:
    """The frames of a video file, decoded one at a time.

    `troubles` says, when the frames are through, what of the file did not come; `notes` grows by lines that a user may want to
    know.

    Args:
        source: A local file; or, as text, an `https://` address.
        every: Only every so manieth frame.
        web: How long a server is waited for.

    Raises:
        UserError: The file is no video, or holds no frame.
    """

    def __init__(self, source: Path | str, *, every: int = 1, web: WebRule | None = None) -> None:
        self._av = pyav()
        if every < 1:
            raise UserError(f"every {every}th frame", fix="give at least 1")
        self._file = video_file(source, web)
        self.name, self.stamp, self.every = self._file.name, self._file.stamp, every
        self.troubles, self.notes = Troubles(), list[str]()
        # FFmpeg does not survive a container that is closed by one thread while another reads from it.
        self._lock, self._closed = threading.Lock(), False
        self._container = self._file.open()
        stream = video_stream(self._container)
        if stream is None:
            self.close()
            raise UserError(
                "holds no video", where=self._file.where, fix="give a file with images in it, not sound alone"
            )
        self._stream: Any = stream
        # One frame after the other: decoders that work on several at once tell of an error late, or not at all.
        stream.thread_type = "SLICE"
        self._rate = rate_of(stream)
        self._clock = Clock(_start(self._container, stream), self._rate)
        self._packets, self._end, self._stamps = 0, None, list[int]()
        self._errors: list[Fraction | None] = []
        self._count, self._steps = 0, Steps()
        self._decoded = self._numbered()
        self._first = self._next()
        if self._first is None:
            self.close()
            raise UserError(
                "holds no frame" + (f": {self.troubles}" if self.troubles else ""),
                where=self._file.where,
                fix="check the file",
            )
        frame = self._first[1]
        size = self._orientation(frame).size((frame.height, frame.width))
        self.info = VideoInfo(size, self._rate / every, -(-stream.frames // every))

    def frames(self) -> Iterator[VideoFrame]:
        """Each frame as (H, W, 3) uint8, upright, the image of an item called `name#number`; to be called once.

        They end where the reader is closed meanwhile, by whatever thread.
        """
        first, self._first = self._first, None
        assert first is not None, "frames() is called once"
        size = self.info.size
        for index, frame, seconds in itertools.chain([first], iter(self._next, None)):
            if index % self.every:
                continue
            pixels = self._orientation(frame).apply(rgb(frame))
            if pixels.shape[:2] != size:
                size = (pixels.shape[0], pixels.shape[1])
                self.notes.append(f"from frame {index + 1} on, the frames are {size[1]}x{size[0]} (width x height)")
            number = index // self.every + 1
            name, output = frame_names(self.name, number)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            yield VideoFrame(name, pixels, number, output, seconds=float(seconds), duration=duration)
        self._tell_clock()

    def _next(self) -> tuple[int, Any, Fraction] | None:
        """The next decoded frame; None at the end, and once the reader is closed."""
        with self._lock:
            return None if self._closed else next(self._decoded, None)

    def close(self) -> None:
        """Give back the file, when the frame that another thread may be decoding is done."""
        with self._lock:
            self._closed = True
            self._container.close()
            self._file.close()

    def _orientation(self, frame: Any) -> Orientation:
        found = Orientation.of(frame)
        if found is None:
            note = "it asks to be turned by other than a quarter, which is not done"
            self.notes += [note] if note not in self.notes else []
        return found or Orientation()

    def _numbered(self) -> Iterator[tuple[int, Any, Fraction]]:
        """Frames in the order of presentation with their index from 0, lost ones counted, and their time."""
        index = -1
        for frame, patched in self._decode():
            stamp = self._stamp(frame)
            index = self._count_lost(index, stamp) + 1
            self._count = index + 1
            seconds = self._clock.seconds(stamp)
            self._steps.add(index + 1, float(seconds))
            if patched:
                self.troubles.damaged.append((index + 1, float(seconds)))
            yield index, frame, seconds
        self._settle(index)

    def _count_lost(self, index: int, before: Fraction | None) -> int:
        """Number the frames that failed and belong before the stamp; the new last index."""
        earlier = [stamp for stamp in self._errors if stamp is None or before is None or stamp < before]
        for stamp in earlier:
            index += 1
            origin = self._clock.origin
            at = None if stamp is None or origin is None else float(stamp - origin)
            self.troubles.lost.append((index + 1, at))
        self._errors = [stamp for stamp in self._errors if stamp not in earlier]
        return index

    def _decode(self) -> Iterator[tuple[Any, bool]]:
        """Frames as they come, and whether the decoder had to patch them up."""
        base = self._stream.time_base
        for packet in self._demux():
            if packet.size:
                self._packets += 1
                at = packet.dts if packet.pts is None else packet.pts
                if at is not None:
                    end = float((at + (packet.duration or 0)) * base)
                    self._end = end if self._end is None else max(self._end, end)
                if packet.dts is not None:
                    heapq.heappush(self._stamps, packet.dts)
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                stamp = packet.dts if self._by_decoding_order else packet.pts
                self._errors.append(None if stamp is None else stamp * base)
                if self._by_decoding_order and self._stamps:
                    heapq.heappop(self._stamps)
                continue
            for frame in frames:
                # In a transport stream the packet's mark also stands where two recordings are joined.
                marked = packet.is_corrupt and self._container.format.name != "mpegts"
                yield frame, bool(frame.is_corrupt or marked)

    def _demux(self) -> Iterator[Any]:
        """Packets; an error of the container costs what it costs, and the rest goes on."""
        failures = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet
                return
            except IndexError:
                # A packet of a stream that was not there at the start (FLV, TS): PyAV knows no such stream.
                failures += 1
                if failures > _FAILURES:
                    self.troubles.broken = "reading ended early (packets of unknown streams)"
                    return
            except UserError as error:  # of a server
                self.troubles.broken = error.what
                return
            except self._av.FFmpegError as error:
                failures += 1
                if failures == 1:
                    self.troubles.gaps.append(self._count)
                if failures > _FAILURES or not isinstance(error, self._av.error.InvalidDataError):
                    self.troubles.broken = f"reading ended early ({reason(error)})"
                    return

    @property
    def _by_decoding_order(self) -> bool:
        """AVI has no presentation stamps: its frames are shown at the stamps of decoding, in their order."""
        return self._container.format.name == "avi"

    def _stamp(self, frame: Any) -> Fraction | None:
        if self._by_decoding_order:
            return heapq.heappop(self._stamps) * self._stream.time_base if self._stamps else None
        self._stamps.clear()
        return None if frame.pts is None else frame.pts * Fraction(frame.time_base)

    def _settle(self, index: int) -> None:
        """What is missing at the end, when all has been read."""
        tail, cut = len(self._errors), self._file.bytes_missing()
        missing = frames_missing(
            self._container, self._stream, packets=self._packets, end=self._end, rate=float(self._rate), cut=cut
        )
        if missing == 0 and not (cut and tail):
            self._count_lost(index, None)
            return
        # What came of the frame in which the file ends is missing too.
        self.troubles.missing = None if missing is None else missing + tail
        self.troubles.promised = index + 1 + tail + (missing or 0)

    def _tell_clock(self) -> None:
        """Notes on stamps that were not what they should be, where nothing else explains them."""
        if not self.troubles and (hole := self._steps.note()):
            self.notes.append(hole)
        if self._clock.guessed:
            self.notes.append(
                f"{counted(self._clock.guessed, 'frame has', 'frames have')} no time: taken for one mean period after the last"
            )
        if self._clock.jumps:
            self.notes.append(
                f"its times go back {counted(self._clock.jumps, 'time')}: they are told as if they went on"
            )


def rate_of(stream: Any) -> Fraction:
    """Frames per second of a stream of PyAV, on average; 25 where it says nothing that can be."""
    entries = len(stream.index_entries)
    if entries > 1 and stream.duration and stream.frames > 2 * entries:
        # AVI gives variable times by empty frames between, and counts them.
        return Fraction(entries) / (stream.duration * Fraction(stream.time_base))
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return next((Fraction(rate) for rate in rates if rate and 0 < rate <= _FASTEST), Fraction(25))


def _start(container: Any, stream: Any) -> Fraction | None:
    """The stamp that a player shows as 0 s: where the first of the file's streams begins."""
    own = None if stream.start_time is None else stream.start_time * Fraction(stream.time_base)
    whole = None if container.start_time is None else Fraction(container.start_time, 1_000_000)
    if own is None or whole is None:
        return own if whole is None else whole
    return own if abs(own - whole) < Fraction(1, 1000) else whole
