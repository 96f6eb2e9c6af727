"""Videos made anew for tests, and a detector of bright spots for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from flyspeck.infer.job_video import VideoJob
from flyspeck.infer.predictor import Predictor
from flyspeck.types import Detections

SIZE = (96, 128)
BASE = Fraction(1, 90_000)
CODECS = {
    ".mp4": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".avi": "mpeg4",
    ".ts": "libx264",
    ".webm": "libvpx",
    ".gif": "gif",
    ".flv": "flv1",
    ".mpg": "mpeg2video",
}


def scene(boxes: Sequence[Sequence[float]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A dark frame (H, W, 3) with bright boxes."""
    pixels = np.full((*size, 3), 40, np.uint8)
    for x1, y1, x2, y2 in np.asarray(boxes).reshape(-1, 4).round().astype(int).tolist():
        pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 250
    return pixels


def moving(count: int, step: float = 3) -> list[np.ndarray]:
    """Frames with one 6 px spot that moves to the right by `step` px a frame."""
    return [scene([[10 + step * k, 20, 16 + step * k, 26]]) for k in range(count)]


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    times: Sequence[float] | None = None,
    rate: int = 25,
    codec: str | None = None,
    pixels: str = "yuv420p",
    rotation: float | None = None,
    matrix: Any = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: bool = False,
    bitrate: int = 4_000_000,
) -> Path:
    """A video of `frames` at `times` (seconds), or at `rate` frames per second."""
    import av

    with av.open(str(path), "w", container_options=container or {}) as out:
        stream: Any = out.add_stream(codec or CODECS[path.suffix], rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else pixels
        stream.bit_rate = bitrate
        stream.options = options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 60_000)
        voice: Any = out.add_stream("aac", rate=16_000) if sound else None
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(image), format="rgb24" if image.shape[2] == 3 else "rgba"
            )
            if times is not None:
                frame.pts, frame.time_base = round(times[k] * 60_000), Fraction(1, 60_000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if voice is not None:
            for k in range(40):
                piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                piece.sample_rate, piece.pts = 16_000, 1024 * k
                out.mux(voice.encode(piece))
            out.mux(voice.encode())
    return path


def spots(windows: Sequence[np.ndarray]) -> list[Detections]:
    """Each bright spot of a window, in the order of rows."""
    out = []
    for window in windows:
        marks, count = ndimage.label(window[:, :, 0] > 150)
        boxes = [[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in ndimage.find_objects(marks)]
        size = (window.shape[0], window.shape[1])
        found = np.array(boxes, np.float32).reshape(-1, 4)
        out.append(Detections(found, [0.9] * count, [0] * count, size, ("spot",)))
    return out


def job(
    path: Path | str, out: Path, *, model: Callable[..., Any] = spots, said: list[str] | None = None, **changes: Any
) -> Any:
    """Run a video job with the detector of bright spots; what it says goes to `said`."""
    said = [] if said is None else said
    options: dict[str, Any] = {"formats": ("csv",), "classes": ("spot",), "show": 0.3}
    asked = {**options, **changes}
    return VideoJob(source=path, out=out, say=said.append, warn=said.append, **asked).run(
        Predictor(model, batch_size=4)
    )


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a csv file by the names of its head."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
