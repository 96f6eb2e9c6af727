"""Videos: frames in, detections with track numbers and an annotated video out. Through PyAV (FFmpeg) and Roboflow's `trackers`.

The tracker is ByteTrack (Zhang et al., 2022, arXiv 2110.06864) with the buffered IoU of C-BIoU (Yang et al., 2023, arXiv
2211.14317): boxes of a few pixels move further than their own size from frame to frame, so they are compared enlarged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck import convert
from flyspeck.drawing import draw_boxes
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.reading import Result
from flyspeck.infer.source import Item
from flyspeck.infer.writer import disk_full
from flyspeck.types import Detections

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_ENCODERS = ("libx264", "libopenh264", "mpeg4")


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself."""

    size: tuple[int, int]
    """(H, W) in pixels."""
    rate: Fraction
    """Frames per second."""
    frames: int
    """0 where the file does not say."""


def is_video(path: Path | str) -> bool:
    """Whether the name's ending is that of a video."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


class VideoReader:
    """The frames of a video, decoded one at a time as `Item`s whose ids count from 1.

    `broken` says why decoding ended early, where it did. Raises UserError for a file that is no video.
    """

    def __init__(self, path: Path, *, every: int = 1) -> None:
        self._av = _pyav()
        if every < 1:
            raise UserError(f"every {every}th frame", fix="give at least 1")
        self.path, self.every, self.broken = path, every, ""
        try:
            self._container: Any = self._av.open(str(path))
            stream = self._container.streams.video[0]
        except (self._av.FFmpegError, IndexError) as error:
            raise UserError(f"not a video that can be read ({error})", where=path, fix="convert it to mp4") from error
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.info = VideoInfo((stream.height, stream.width), Fraction(rate) / every, stream.frames // every)

    def frames(self) -> Iterator[Item]:
        """Each frame as (H, W, 3) uint8, the image of an item called `name#number`."""
        number = 0
        try:
            for index, frame in enumerate(self._container.decode(video=0)):
                if index % self.every == 0:
                    number += 1
                    name, output = f"{self.path.name}#{number:06d}", f"{self.path.stem}_{number:06d}"
                    yield Item(name, frame.to_ndarray(format="rgb24"), number, output)
        except self._av.FFmpegError as error:
            self.broken = f"frame {number + 1} cannot be decoded ({error})"

    def close(self) -> None:
        """Give back the file."""
        self._container.close()


class VideoWriter:
    """An mp4 that is fed frame by frame; its sides are even, as the encoders want them."""

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self._av = _pyav()
        self.path = path
        self._size = (info.size[0] // 2 * 2, info.size[1] // 2 * 2)
        name = next(name for name in _ENCODERS if name in self._av.codecs_available)
        try:
            self._container: Any = self._av.open(str(path), "w")
            self._stream: Any = self._container.add_stream(name, rate=info.rate.limit_denominator(65535))
        except (self._av.FFmpegError, OSError) as error:
            raise disk_full(path, error) from error
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        # Bits enough that a box one pixel wide stays visible.
        self._stream.bit_rate = int(max(1e6, 0.2 * self._size[0] * self._size[1] * float(info.rate)))

    def add(self, pixels: np.ndarray) -> None:
        """The next frame, (H, W, 3) uint8. Raises UserError when the disk does not take it."""
        high, wide = self._size
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:high, :wide]), format="rgb24")
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (self._av.FFmpegError, OSError) as error:
            raise disk_full(self.path, error) from error

    def close(self) -> None:
        """Write what the encoder still holds, and the index without which players refuse the file."""
        try:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
        except (self._av.FFmpegError, OSError) as error:
            raise disk_full(self.path, error) from error


class Tracker:
    """Gives detections of following frames the number of their object.

    `score` is the least of a detection that may start a track; weaker ones only continue one. `memory` is the number of frames
    that a lost object is waited for.
    """

    def __init__(self, *, rate: float, score: float = 0.3, memory: int = 30, buffer: float = 0.5) -> None:
        try:
            from trackers import ByteTrackTracker
            from trackers.utils.iou import BIoU
        except ImportError:
            raise missing_extra("trackers", "video") from None
        self._tracker = ByteTrackTracker(
            lost_track_buffer=memory,
            frame_rate=rate,
            track_activation_threshold=score,
            high_conf_det_threshold=score,
            minimum_consecutive_frames=1,
            iou=BIoU(buffer_ratio=buffer),
        )

    def __call__(self, found: Detections) -> Detections:
        """The same detections with the column `track` (int64, -1 for none), tracked ones first."""
        import supervision

        given = supervision.Detections(
            xyxy=found.boxes.astype(np.float64),
            confidence=found.scores.astype(np.float64),
            class_id=found.labels,
            data={"row": np.arange(len(found))},
        )
        tracked = self._tracker.update(given)
        # Rows come back in another order, and those that no track took may be left out.
        rows = np.asarray(tracked.data.get("row", np.zeros(0)), np.int64)
        numbers = np.full(len(found), -1, np.int64)
        if len(rows):
            numbers[rows] = np.asarray(tracked.tracker_id, np.int64)
        order = np.lexsort([np.arange(len(found)), numbers < 0])
        extra = {**found.extra, "track": numbers}
        return Detections(
            found.boxes,
            found.scores,
            found.labels,
            found.image_size,
            found.classes,
            found.image_id,
            extra,
        )[order]


class TrackTable:
    """`tracks.csv`: a line a tracked box: frame, seconds, track, box in pixels, score, class."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self._rate = path, rate
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write("frame,seconds,track,x1,y1,x2,y2,score,label,class\n")
        self.numbers: set[int] = set()

    def add(self, result: Result) -> None:
        """Append a frame's tracks; `result.item.image_id` is its number from 1."""
        found = result.detections[result.detections.extra["track"] >= 0]
        frame = int(result.item.image_id)
        track = found.extra["track"]
        self.numbers.update(track.tolist())
        x1, y1, x2, y2 = found.boxes.T
        columns = {
            "frame": [frame] * len(found),
            "seconds": [float((frame - 1) / self._rate)] * len(found),
            "track": track,
            **{"x1": x1, "y1": y1, "x2": x2, "y2": y2, "score": found.scores, "label": found.labels},
            "class": convert.class_names(found),
        }
        try:
            self._file.writelines(line + "\n" for line in convert.csv_lines(columns))
            self._file.flush()
        except OSError as error:
            raise disk_full(self.path, error) from error

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def draw_tracks(pixels: np.ndarray, found: Detections, *, least: float) -> np.ndarray:
    """A copy of the frame (H, W, 3) with outlines around tracked boxes and boxes of at least the score `least`.

    A track keeps its colour, and its number is written beside it.
    """
    from PIL import Image, ImageDraw, ImageFont

    track = found.extra.get("track", np.full(len(found), -1))
    shown = found[(found.scores >= least) | (track >= 0)]
    numbers = shown.extra.get("track", np.full(len(shown), -1))
    image = draw_boxes(Image.fromarray(pixels.copy()), shown.boxes, np.where(numbers >= 0, numbers, shown.labels))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for (x1, y1, _, _), number in zip(shown.boxes.tolist(), numbers.tolist(), strict=True):
        if number >= 0:
            draw.text((x1, y1 - 14), str(number), fill="white", font=font, stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise missing_extra("av", "video") from None
    return av
