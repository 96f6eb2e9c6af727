"""The best sight of each track: a crop of the frame around it, and a table of what each crop shows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flyspeck import convert
from flyspeck.infer.growing_csv import GrowingCsv, seconds_cell
from flyspeck.infer.reading import Result
from flyspeck.infer.video.reader import VideoInfo
from flyspeck.infer.video.tracks import seconds_of
from flyspeck.infer.writer import disk_full

_CONTEXT = 4  # times the longer side of the object
_LEAST = 64  # px of the frame that a crop shows at least, where the frame has them
_SHOWN = 256  # px that a crop's longer side has at least when it is written
_COLUMNS = ("track", "frame", "seconds", "x1", "y1", "x2", "y2", "score", "label", "class")


@dataclass
class _Best:
    rank: tuple[float, float]
    """Score and area."""
    crop: np.ndarray
    window: tuple[int, int, int, int]
    values: tuple[object, ...]
    last: int


class Stills:
    """`stills/track-000012.png`: each track where its score is best, enlarged by a whole factor; and `stills.csv`.

    The table says of each file: track, frame, seconds, the box in pixels of the frame, score, class; the corners of the crop in
    the frame, and the factor. A track is written when the tracker has forgotten it, or at the end.
    """

    def __init__(self, folder: Path, info: VideoInfo) -> None:
        self._folder = folder
        head = ",".join(("file", *_COLUMNS, "crop_x1", "crop_y1", "crop_x2", "crop_y2", "factor"))
        self._table = GrowingCsv(folder / "stills.csv", head)
        self._best: dict[int, _Best] = {}
        self._number, self._forget = 0, int(20 * info.rate) + 100

    def add(self, result: Result) -> None:
        """The next frame's tracks; `result.item.image` is the frame."""
        image = result.item.image
        assert isinstance(image, np.ndarray)
        self._number += 1
        found = result.detections
        names, when = convert.class_names(found), seconds_cell(seconds_of(result))
        for row in np.flatnonzero(found.extra["track"] >= 0).tolist():
            number, box, score = int(found.extra["track"][row]), found.boxes[row], float(found.scores[row])
            rank = (score, float((box[2] - box[0]) * (box[3] - box[1])))
            known = self._best.get(number)
            if known is not None and known.rank >= rank:
                known.last = self._number
                continue
            window = window_around(box, (image.shape[0], image.shape[1]))
            crop = image[window[1] : window[3], window[0] : window[2]].copy()
            label = int(found.labels[row])
            values = (number, result.item.number, when, *box.tolist(), score, label, names[row])
            self._best[number] = _Best(rank, crop, window, values, self._number)
        if self._number % self._forget == 0:
            self._write([k for k, one in self._best.items() if one.last < self._number - self._forget])

    def close(self) -> None:
        """Write the tracks that are left; nothing more comes."""
        try:
            self._write(list(self._best))
        finally:
            self._table.close()

    def _write(self, numbers: list[int]) -> None:
        for number in sorted(numbers):
            best = self._best.pop(number)
            factor = max(1, -(-_SHOWN // max(best.crop.shape[:2])))
            name = f"stills/track-{number:06d}.png"
            self._save(self._folder / name, best.crop, factor)
            cells = dict(zip(_COLUMNS, best.values, strict=True))
            corners = dict(zip(("crop_x1", "crop_y1", "crop_x2", "crop_y2"), best.window, strict=True))
            columns = {key: [value] for key, value in {"file": name, **cells, **corners, "factor": factor}.items()}
            self._table.add(convert.csv_lines(columns))

    def _save(self, path: Path, crop: np.ndarray, factor: int) -> None:
        from PIL import Image

        pixels = crop.repeat(factor, axis=0).repeat(factor, axis=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise disk_full(path, error) from error


def window_around(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What a crop shows of a frame of `size` (H, W): a square around the box xyxy, moved inside the frame, whole pixels.

    Its side is four times that of the object and at least 64 px, or what the frame has; it is never empty.
    """
    x1, y1, x2, y2 = box.tolist()
    side = max(_LEAST, round(_CONTEXT * max(x2 - x1, y2 - y1)))
    corners = []
    for low, high, limit in ((x1, x2, size[1]), (y1, y2, size[0])):
        length = min(side, limit)
        start = min(max(0, round((low + high) / 2 - length / 2)), limit - length)
        corners.append((start, start + length))
    return corners[0][0], corners[1][0], corners[0][1], corners[1][1]
