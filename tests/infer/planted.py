"""An image whose pixels say which object they belong to, and a model that reads them: what a perfect detector would report."""

from __future__ import annotations

import numpy as np

from flyspeck.types import Detections


def plant(size: tuple[int, int], objects: np.ndarray, layers: int = 1) -> np.ndarray:
    """`(H, W, layers)` uint16; object k (row of `objects`, integer xyxy) has the value k + 1, on layer k modulo `layers`."""
    pixels = np.zeros((*size, layers), np.uint16)
    for k, (x1, y1, x2, y2) in enumerate(np.asarray(objects, np.int64).tolist()):
        assert not pixels[y1:y2, x1:x2, k % layers].any(), "planted objects of one layer may not overlap"
        pixels[y1:y2, x1:x2, k % layers] = k + 1
    return pixels


class SeesPlanted:
    """Reports the visible part of every planted object; parts score higher than wholes if `proud`, which is the hard case."""

    def __init__(self, objects: np.ndarray, labels: np.ndarray | None = None, *, proud: bool = True) -> None:
        self.objects, self.proud = np.asarray(objects, np.float64), proud
        self.labels = np.zeros(len(objects), np.int64) if labels is None else labels
        self.shapes: list[tuple[int, ...]] = []
        self.batches: list[int] = []

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        self.batches.append(len(windows))
        self.shapes += [w.shape for w in windows]
        return [self._see(window) for window in windows]

    def _see(self, window: np.ndarray) -> Detections:
        rows, boxes, scores = [], [], []
        for value in np.unique(window)[1:] if (window == 0).any() else np.unique(window):
            y, x = np.nonzero((window == value).any(axis=2))
            box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float64)
            whole = self.objects[value - 1]
            share = min(1.0, np.prod(box[2:] - box[:2]) / np.prod(whole[2:] - whole[:2]))
            rows.append(value - 1)
            boxes.append(box)
            scores.append(0.95 - 0.3 * share if self.proud else 0.3 + 0.6 * share)
        size = (window.shape[0], window.shape[1])
        return Detections(np.array(boxes).reshape(-1, 4), np.array(scores), self.labels[np.array(rows, int)], size)
