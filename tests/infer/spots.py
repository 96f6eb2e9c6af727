"""A whole prediction job with a free detector: whatever is brighter than 200 is a spot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.infer import job
from flyspeck.types import Detections


class Spots:
    """Finds bright rectangles that are apart by whole rows or columns; counts the windows that it saw."""

    classes = ("spot",)

    def __init__(self) -> None:
        self.taken: Counter = Counter()
        self.windows = 0

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        self.windows += len(windows)
        return [self._see(window) for window in windows]

    def _see(self, window: np.ndarray) -> Detections:
        bright = window[:, :, 0] > (200 if window.dtype == np.uint8 else 200 * 257)
        boxes = []
        for x1, x2 in runs(bright.any(0)):
            boxes += [[x1, y1, x2, y2] for y1, y2 in runs(bright[:, x1:x2].any(1))]
        count = len(boxes)
        found = np.array(boxes, np.float32).reshape(-1, 4)
        return Detections(found, np.full(count, 0.9), np.zeros(count, int), window.shape[:2], self.classes)


def runs(line: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def spots_model(monkeypatch: pytest.MonkeyPatch, folder: Path, **description: Any) -> tuple[Spots, Path]:
    """The detector, and the path under which a job finds it."""
    model, path = Spots(), folder / "spots.onnx"
    path.write_bytes(b"spots")
    said = {"training_size": [64, 64], "object_side_99": 12, "channels": 3, **description}
    monkeypatch.setattr(job, "load_model", lambda *_, **__: (model, said))
    return model, path


def geotiff(path: Path, pixels: np.ndarray, transform: tuple[float, ...], crs: str | None, **settings: Any) -> Path:
    """`(H, W)` or `(H, W, C)` as a GeoTIFF."""
    import rasterio
    from rasterio.transform import Affine

    stored = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    shape = {"count": stored.shape[0], "height": stored.shape[1], "width": stored.shape[2], "dtype": stored.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=Affine(*transform), **shape, **settings) as file:
        file.write(stored)
    return path


def spotted(size: tuple[int, int], places: list[tuple[int, int]], side: int = 4) -> np.ndarray:
    """Grey `(H, W)` with bright squares whose upper left corners are the (x, y) of `places`."""
    pixels = np.full(size, 60, np.uint8)
    for x, y in places:
        pixels[y : y + side, x : x + side] = 250
    return pixels
