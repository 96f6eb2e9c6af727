"""An mp4 that is fed frame by frame, each with its time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.infer.video.pyav import pyav
from flyspeck.infer.video.reader import VideoInfo
from flyspeck.infer.writer import disk_full

_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_BASE = Fraction(1, 60_000)
"""Unit of the times: whole for 24, 25, 30, 50 and 60 frames per second, and as fine as MPEG-4 takes."""
_LEAST = 16  # px; encoders refuse smaller frames
_FASTEST = 120  # frames per second that the bit rate grows with


class VideoWriter:
    """An mp4 at `path` of frames like `info`; its sides are even, as the encoders want them: odd ones are padded.

    `live`: written in pieces, so that what is there can be played whenever the job dies; else it can be played when it is closed.
    Raises UserError when the disk does not take it.
    """

    def __init__(self, path: Path, info: VideoInfo, *, live: bool = False) -> None:
        self._av = pyav()
        self.path, self._size, self._rate = path, info.size, info.rate
        self.padded = (_even(info.size[0]), _even(info.size[1]))
        """(H, W) of what is written."""
        name = next(name for name in _ENCODERS if name in self._av.codecs_available)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if live else {}
        rate = min(max(info.rate, Fraction(1)), Fraction(1000)).limit_denominator(1001)
        try:
            self._container: Any = self._av.open(str(path), "w", options=options)
            self._stream: Any = self._container.add_stream(name, rate=rate)
        except (self._av.FFmpegError, OSError) as error:
            raise disk_full(path, error) from error
        self._stream.height, self._stream.width = self.padded
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _BASE
        self._stream.codec_context.max_b_frames = 0
        # Bits enough that a box one pixel wide stays visible.
        speed = min(float(rate), _FASTEST)
        self._stream.bit_rate = int(max(1e6, 0.2 * self.padded[0] * self.padded[1] * speed))
        self._last, self._duration = -1, 0.0
        self._next = Fraction(0)

    def add(self, pixels: np.ndarray, seconds: float | None = None, *, duration: float = 0.0) -> None:
        """The next frame, (H, W, 3) uint8, and when it is shown; None: a period after the one before.

        `duration` is for how long, which counts for the last one. A frame of another size is fitted into the first one's,
        centred on black. Raises UserError when the disk does not take it.
        """
        time = self._next if seconds is None else Fraction(seconds)
        frame = self._av.VideoFrame.from_ndarray(self._fitted(pixels), format="rgb24")
        frame.time_base = _BASE
        frame.pts = max(round(time / _BASE), self._last + 1)
        self._next, self._last, self._duration = time + 1 / self._rate, frame.pts, duration
        self._mux(lambda: self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and the index without which players refuse the file."""
        try:
            if self._last >= 0:
                self._mux(self._stream.encode)
        finally:
            try:
                self._container.close()
            except (self._av.FFmpegError, OSError) as error:
                raise disk_full(self.path, error) from error

    def _mux(self, encode: Any) -> None:
        try:
            for packet in encode():
                if packet.pts == self._last:
                    packet.duration = max(1, round((self._duration or 1 / float(self._rate)) / packet.time_base))
                self._container.mux(packet)
        except (self._av.FFmpegError, OSError) as error:
            raise disk_full(self.path, error) from error

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        """The frame at the size that is written: odd sides repeat their last row or column."""
        if pixels.shape[:2] != self._size:
            pixels = _letterbox(pixels, self._size)
        if self.padded != self._size:
            down, right = (after - before for after, before in zip(self.padded, self._size, strict=True))
            pixels = np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="edge")
        return np.ascontiguousarray(pixels)


def _even(side: int) -> int:
    return max(_LEAST, side + side % 2)


def _letterbox(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scaled to fit into (H, W), on black."""
    from PIL import Image

    ratio = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    high, wide = (max(1, round(side * ratio)) for side in pixels.shape[:2])
    small = np.asarray(Image.fromarray(pixels).resize((wide, high)))
    out = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    out[top : top + high, left : left + wide] = small
    return out
