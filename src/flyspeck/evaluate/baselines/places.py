"""Places of an image that stand out as blobs at several sizes, and what a rule can rank them by. NumPy only.

Of every size, the local maxima of how much brighter, and of how much darker, a blob is than its surroundings
(`filters.response`); no threshold. Large sizes are looked for in a reduced image. Every image is brought to mean 0 and deviation
1 before, so that one rule ranks those of several cameras.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flyspeck.evaluate.baselines.filters import Kind, extents, integral, peaks, reduced, refined, response, window_means

MOST = 250
"""Places of a size, bright or dark, in a window."""
WINDOW = 1024
"""Pixels: the side of the windows that large images are looked at in."""
BANDS = 6
"""Of an image at most: the first ones."""
_FINE = 6.0
"""Pixels that a blob has at least in the image in which it is looked for."""


@dataclass(frozen=True)
class Places:
    """Blobs of an image."""

    middle: np.ndarray
    """(N, 2) x and y in pixels of the image."""
    size: np.ndarray
    """(N,) pixels: the square root of an object's area."""
    extent: np.ndarray
    """(N, 4) xyxy: as far as it stands out by more than half of what it does at most, along its row and column."""
    features: np.ndarray
    """(N, F): how many there are depends on the image's bands alone."""

    def __len__(self) -> int:
        return len(self.size)

    @staticmethod
    def joined(found: list[Places]) -> Places:
        """All of several, which are some."""
        return Places(*(np.concatenate([getattr(one, name) for one in found]) for name in Places.__dataclass_fields__))


def places(pixels: np.ndarray, kind: Kind, sizes: tuple[float, ...], bands: int) -> Places:
    """Those of an image `(H, W, C)`; large images go in windows that overlap by what the filters reach.

    What describes a place is of so many `bands`: of an image with fewer their mean, of one with more the first.
    """
    values = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    grey = values.mean(2)
    values = values[:, :, :bands] if values.shape[2] >= bands else np.repeat(grey[:, :, None], bands, 2)
    level, spread = values.mean((0, 1), dtype=np.float64), values.std((0, 1), dtype=np.float64) + 1e-6
    values = ((values - level) / spread).astype(np.float32)
    grey = (grey - grey.mean(dtype=np.float64)).astype(np.float32) / np.float32(grey.std(dtype=np.float64) + 1e-6)
    margin, found = int(3 * max(sizes)) + 8, []
    for top in range(0, pixels.shape[0], WINDOW):
        for left in range(0, pixels.shape[1], WINDOW):
            y0, x0 = max(0, top - margin), max(0, left - margin)
            rows, columns = slice(y0, top + WINDOW + margin), slice(x0, left + WINDOW + margin)
            for own in _of_window(grey[rows, columns], values[rows, columns], kind, sizes):
                middle = own.middle + np.array([x0, y0])
                mine = (middle[:, 0] >= left) & (middle[:, 0] < left + WINDOW)
                mine &= (middle[:, 1] >= top) & (middle[:, 1] < top + WINDOW)
                extent = own.extent[mine] + np.array([x0, y0, x0, y0])
                found.append(Places(middle[mine], own.size[mine], extent, own.features[mine]))
    return Places.joined(found)


def _of_window(grey: np.ndarray, values: np.ndarray, kind: Kind, sizes: tuple[float, ...]) -> Iterator[Places]:
    """Those of each size, bright and dark."""
    sums, squares, bands = integral(grey), integral(grey * grey), integral(values)
    for size in sizes:
        factor = 2 ** max(0, int(np.floor(np.log2(size / _FINE))))
        small = reduced(grey, factor)
        for sign, answer in zip((1.0, -1.0), response(small, kind, size / factor), strict=True):
            y, x = peaks(answer, max(3, round(0.6 * size / factor) | 1), MOST)
            strength = answer[y, x].astype(np.float64)
            fine_y, fine_x = refined(answer, y, x)
            fine_y, fine_x = ((place + 0.5) * factor - 0.5 for place in (fine_y, fine_x))
            middle = np.stack([fine_x, fine_y], 1) + 0.5
            features = _features(sums, squares, bands, fine_y, fine_x, size, sign, strength)
            extent = factor * extents(answer, y, x, 0.5, max(2, round(1.5 * size / factor)))
            yield Places(middle, np.full(len(y), size), extent, features)


def _features(
    sums: np.ndarray,
    squares: np.ndarray,
    bands: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    size: float,
    sign: float,
    strength: np.ndarray,
) -> np.ndarray:
    """`(N, F)`: contrast, bright and dark apart (`rule.CONTRASTS`); by how much the pixels around differ; whether it is bright;
    how rough it is around and inside; its size; and of each band the level inside, and that beyond around.
    """
    inside, around = window_means(sums, y, x, 0.8 * size), window_means(sums, y, x, 3 * size)
    rough = np.sqrt(np.maximum(window_means(squares, y, x, 3 * size) - around**2, 0))
    within = np.sqrt(np.maximum(window_means(squares, y, x, 0.8 * size) - inside**2, 0))
    own, wide = window_means(bands, y, x, 0.8 * size), window_means(bands, y, x, 3 * size)
    contrast, relative = np.log(strength + 0.02), np.log((strength + 0.02) / (rough + 0.1))
    columns = [
        strength * (sign > 0), strength * (sign < 0), contrast, relative, np.full(len(y), sign), np.log(rough + 0.02),
        np.log(within + 0.02), np.full(len(y), np.log(size)), (inside - around) / (rough + 0.1),
    ]  # fmt: skip
    return (
        np.concatenate([np.stack(columns, 1), own, own - wide], 1) if len(y) else np.zeros((0, 9 + 2 * bands.shape[2]))
    )
