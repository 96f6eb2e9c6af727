"""What is written of tracks: a table, and their outlines on the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck import convert
from flyspeck.drawing import draw_boxes
from flyspeck.infer.growing_csv import GrowingCsv, seconds_cell
from flyspeck.infer.reading import Result
from flyspeck.infer.video.reader import VideoFrame
from flyspeck.types import Detections


class TrackTable:
    """`tracks.csv`: a line a tracked box: frame, seconds, track, box in pixels, score, class."""

    def __init__(self, path: Path) -> None:
        self._file = GrowingCsv(path, "frame,seconds,track,x1,y1,x2,y2,score,label,class")
        self.numbers: set[int] = set()

    def add(self, result: Result) -> None:
        """Append a frame's tracks; `result.item` is the frame, whose id is its number from 1."""
        found = result.detections[result.detections.extra["track"] >= 0]
        item = result.item
        track = found.extra["track"]
        self.numbers.update(track.tolist())
        x1, y1, x2, y2 = found.boxes.T
        columns = {
            "frame": [item.number] * len(found),
            "seconds": [seconds_cell(seconds_of(result))] * len(found),
            "track": track,
            **{"x1": x1, "y1": y1, "x2": x2, "y2": y2, "score": found.scores, "label": found.labels},
            "class": convert.class_names(found),
        }
        self._file.add(convert.csv_lines(columns))

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def seconds_of(result: Result) -> float:
    """When the frame of a result is shown."""
    return result.item.seconds if isinstance(result.item, VideoFrame) else 0.0


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
    for (x1, y1, _, y2), number in zip(shown.boxes.tolist(), numbers.tolist(), strict=True):
        if number >= 0:
            place = (max(0, min(x1, pixels.shape[1] - 7 * len(str(number)))), y1 - 14 if y1 >= 14 else y2 + 1)
            draw.text(place, str(number), fill="white", font=font, stroke_width=1, stroke_fill="black")
    return np.asarray(image)
