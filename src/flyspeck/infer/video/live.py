"""Live streams: the newest frame of a camera, whatever the detector's speed. Through PyAV (FFmpeg); RTSP, RTSPS, RTMP and SRT.

A thread reads and decodes all the time and keeps the last frame alone. What is slower takes a frame, comes back, and takes the
one that is then the last: frames in between are dropped and counted, none is queued, and the delay does not grow.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from flyspeck.errors import UserError, counted
from flyspeck.infer.video.files import reason
from flyspeck.infer.video.pixels import Orientation, rgb
from flyspeck.infer.video.pyav import pyav, video_stream
from flyspeck.infer.video.reader import VideoFrame, VideoInfo, frame_names, rate_of

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt")
_SILENCE = 5.0  # s without a packet after which a connection is given up
_PATIENCE = 30.0  # s without a frame for which a lost stream is asked for again
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # s between tries, the last one again and again
_ASTRAY = 2.0  # s by which stamps may leave the clock on the wall before they are taken for those of another beginning


def is_live(source: object) -> bool:
    """Whether a source is the address of a stream."""
    return isinstance(source, str) and source.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def public_name(url: str) -> str:
    """The address without user, password and query, for messages."""
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return url.split("://", 1)[0] + "://"
    return f"{parts.scheme}://{host}{parts.path}"


def file_name(url: str) -> str:
    """What files of a stream are called: its public address in letters that every disk takes."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", public_name(url).split("://", 1)[1]).strip("_") or "stream"


@dataclass(frozen=True)
class _Newest:
    frame: Any
    seconds: float
    arrived: float
    """On `time.monotonic()`."""


class LiveReader:
    """The newest frames of a stream, each once; between two of them, others may have been dropped.

    `seconds` of a frame are its presentation stamp, from 0 at the first; where a stream is lost and comes back, and where
    stamps leave the clock by more than 2 s, time goes on by the clock. `troubles` says why a stream ended that was not ended by
    `close`.

    Args:
        url: An address of `SCHEMES`; messages never show its user, password and query.
        every: Of the frames that arrive, every so manieth.
        silence: Seconds without data after which the connection is tried anew.
        patience: Seconds without a frame after which it is not tried again.

    Raises:
        UserError: There is no stream, or none that can be read, at the address.
    """

    def __init__(self, url: str, *, every: int = 1, silence: float = _SILENCE, patience: float = _PATIENCE) -> None:
        self._av = pyav()
        if every < 1:
            raise UserError(f"every {every}th frame", fix="give at least 1")
        self._url, self.every, self._silence, self._patience = url, every, silence, patience
        self.name, self.troubles, self.notes = file_name(url), "", list[str]()
        self.arrived, self.taken, self.lost = 0, 0, 0
        """Frames that came, those that were taken, and how often the stream was lost."""
        self.delays: list[float] = []
        """Of each frame taken, the seconds from its arrival; of the last thousand."""
        self._ready = threading.Condition()
        self._newest: _Newest | None = None
        self._ended, self._stopped = False, threading.Event()
        self._begun: float | None = None
        self._heard = time.monotonic()
        self._origin: Fraction | None = None
        self._last = 0.0
        try:
            container, stream = self._connect()
        except (self._av.FFmpegError, OSError) as error:
            fix = "check the address, the user and the password, and that the camera is on"
            raise UserError(f"no stream that can be read ({reason(error)})", where=public_name(url), fix=fix) from None
        self._rate = rate_of(stream)
        self._thread = threading.Thread(target=self._work, args=(container, stream), daemon=True)
        self._thread.start()
        first = self._wait(silence + patience)
        if first is None:
            self.close()
            fix = "check that the camera sends images"
            raise UserError(self.troubles or "no frame came", where=public_name(url), fix=fix)
        size = self._orientation(first.frame).size((first.frame.height, first.frame.width))
        self.info = VideoInfo(size, self._rate / every)

    def frames(self) -> Iterator[VideoFrame]:
        """The newest frame as (H, W, 3) uint8, upright, each time one is asked for; ends when the stream has ended for good."""
        size = self.info.size
        while (newest := self._wait(None)) is not None:
            with self._ready:
                self._newest = None
            frame = newest.frame
            pixels = self._orientation(frame).apply(rgb(frame))
            if pixels.shape[:2] != size:
                size = (pixels.shape[0], pixels.shape[1])
                self.notes.append(
                    f"from {newest.seconds:.1f} s on, the frames are {size[1]}x{size[0]} (width x height)"
                )
            self.taken += 1
            self.delays = [*self.delays[-999:], time.monotonic() - newest.arrived]
            name, output = frame_names(self.name, self.taken)
            yield VideoFrame(name, pixels, self.taken, output, seconds=newest.seconds)

    def close(self) -> None:
        """End the stream; waits for the thread, at most as long as a connection may be silent."""
        self._stopped.set()
        self._thread.join(timeout=self._silence + 1)

    def line(self) -> str:
        """What became of the frames, and how old they were when they were taken, for people."""
        dropped = -(-self.arrived // self.every) - self.taken
        text = f"{counted(self.arrived, 'frame')} came, {self.taken} used, {max(0, dropped)} dropped"
        if self.delays:
            text += f"; taken {np.median(self.delays):.3f} s after they came (median), {max(self.delays):.3f} s at most"
        return text + (f"; lost {counted(self.lost, 'time')}" if self.lost else "")

    def _orientation(self, frame: Any) -> Orientation:
        return Orientation.of(frame) or Orientation()

    def _wait(self, limit: float | None) -> _Newest | None:
        """The newest frame, when there is one; None when none will come, or none came for `limit` seconds."""
        with self._ready:
            # In short waits, so that Ctrl-C is heard on every system.
            end = None if limit is None else time.monotonic() + limit
            while self._newest is None and not self._ended and (end is None or time.monotonic() < end):
                self._ready.wait(0.2)
            return self._newest

    def _connect(self) -> tuple[Any, Any]:
        """A container and its video. Raises FFmpegError, or UserError where there is no video."""
        options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
        if self._url.lower().startswith("rtsp"):
            # TCP first: a lost packet of UDP costs all frames to the next key frame.
            options |= {"rtsp_flags": "prefer_tcp", "allowed_media_types": "video"}
            options["timeout"] = str(int(self._silence * 1e6))
        container = self._av.open(
            self._url, options=options, timeout=(self._silence, self._silence), metadata_errors="replace"
        )
        stream = video_stream(container)
        if stream is None:
            container.close()
            raise UserError("the stream holds no video", where=public_name(self._url))
        stream.thread_type = "SLICE"  # decoders that work on several frames at once hand them out late
        return container, stream

    def _work(self, container: Any, stream: Any) -> None:
        """The thread: read, and when the stream is lost, ask for it again."""
        while container is not None and not self._stopped.is_set():
            why = self._read(container, stream)
            container.close()
            if self._stopped.is_set():
                break
            self.lost += 1
            container, stream = self._again(why)
        with self._ready:
            self._ended = True
            self._ready.notify()

    def _again(self, why: str) -> tuple[Any, Any]:
        """Another connection; None and a word in `troubles` where there is none within the patience."""
        tries, self._origin = 0, None
        while not self._stopped.wait(_PAUSES[min(tries, len(_PAUSES) - 1)]):
            # Since the last frame: a camera may take connections and send nothing.
            patient = time.monotonic() - self._heard < self._patience
            try:
                if patient:
                    return self._connect()
            except (self._av.FFmpegError, OSError, UserError) as error:
                why, tries = reason(error), tries + 1
            if not patient:
                at = f" at {self._heard - self._begun:.1f} s" if self._begun is not None else ""
                self.troubles = f"the stream was lost{at} and did not come back within {self._patience:g} s ({why})"
                break
        return None, None

    def _read(self, container: Any, stream: Any) -> str:
        """Decode until the stream ends or fails; why it did."""
        try:
            for packet in container.demux(stream):
                if self._stopped.is_set():
                    return ""
                try:
                    frames = packet.decode()
                except self._av.error.InvalidDataError:
                    continue  # a frame of which packets were lost
                for frame in frames:
                    self._arrive(frame)
        except IndexError:
            return "another stream began in it"  # PyAV knows those alone that were there at the start
        except (self._av.FFmpegError, OSError) as error:
            return reason(error)
        return "it ended"

    def _arrive(self, frame: Any) -> None:
        now = time.monotonic()
        self._begun, self._heard = now if self._begun is None else self._begun, now
        seconds = self._seconds(frame, now - self._begun)
        if self.arrived % self.every == 0:
            with self._ready:
                self._newest = _Newest(frame, seconds, now)
                self._ready.notify()
        self.arrived += 1

    def _seconds(self, frame: Any, on_wall: float) -> float:
        """The time of a frame by its stamp, from the first one on; by the clock where the stamp is none or has gone astray."""
        if frame.pts is None:
            self._last = max(self._last, on_wall)
            return self._last
        stamp = frame.pts * Fraction(frame.time_base)
        if self._origin is None or abs(float(stamp - self._origin) - on_wall) > _ASTRAY:
            self._origin = stamp - Fraction(on_wall)
        self._last = max(self._last, float(stamp - self._origin))
        return self._last
