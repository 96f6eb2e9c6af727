"""Filters that answer to blobs of one size, in NumPy: top-hats and a difference of Gaussians, on `(H, W)` float32 images.

A top-hat (Meyer, 1979) is what an opening with a square removes: what is brighter than its surroundings and narrower than the
square. Minima and maxima in windows are taken by doubling, in a number of passes that grows with the logarithm of the side.
A wide Gaussian is three means in windows one after the other (Wells, 1986), each a difference of running sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Kind = Literal["top-hat", "difference of Gaussians"]
KINDS: tuple[Kind, ...] = ("top-hat", "difference of Gaussians")
_SQUARE = 2.0
"""Side of a top-hat's square in sizes of the object."""
_SURROUND = 1.6
"""Width of the outer Gaussian by the inner one's: where their difference is nearest to a Laplacian (Marr, Hildreth, 1980)."""


def response(image: np.ndarray, kind: Kind, size: float) -> tuple[np.ndarray, np.ndarray]:
    """How much brighter, and how much darker, a blob of `size` px about each pixel is than what surrounds it.

    Both `(H, W)` float32, at least 0.
    """
    if kind == "top-hat":
        side = max(3, round(size * _SQUARE) | 1)
        both = image - opening(image, side), -opening(-image, side) - image
        # A single pixel of noise is no blob, and plateaus become peaks.
        return both if size < 5 else (mean(both[0], 3), mean(both[1], 3))
    # A disc of diameter d answers most to a Laplacian of sigma = d / (2 sqrt 2).
    sigma = size / (2 * 2**0.5)
    answer = gaussian(image, sigma) - gaussian(image, _SURROUND * sigma)
    return np.maximum(answer, 0), np.maximum(-answer, 0)


def opening(image: np.ndarray, side: int) -> np.ndarray:
    """Without what is brighter than its surroundings and narrower than a square of the odd `side`."""
    return running(running(image, side, np.minimum), side, np.maximum)


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of `factor` px; borders are extended to whole squares."""
    if factor == 1:
        return image
    image = np.pad(image, [(0, -side % factor) for side in image.shape], mode="edge")
    height, width = (side // factor for side in image.shape)
    return image.reshape(height, factor, width, factor).mean((1, 3), dtype=np.float32)


def running(image: np.ndarray, side: int, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """Minimum or maximum (`choose` is NumPy's) in a square window of the odd `side` about each pixel; borders are extended."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (side // 2, side // 2)
        row = np.moveaxis(np.pad(image, pad, mode="edge"), axis, 0)
        reached = 1
        while reached < side:
            step = min(reached, side - reached)
            row = choose(row[: len(row) - step], row[step:])
            reached += step
        image = np.moveaxis(row, 0, axis)
    return np.ascontiguousarray(image)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """A blur by a Gaussian of `sigma` px, from 3 px on by about that; borders are extended."""
    if sigma >= 3:
        # Three windows of side n have a variance of 3 (n^2 - 1) / 12 together.
        side = 2 * round(((4 * sigma * sigma + 1) ** 0.5 - 1) / 2) + 1
        for _ in range(3):
            image = mean(image, side)
        return image
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        row = np.moveaxis(np.pad(image, pad, mode="edge"), axis, 0)
        length = len(row) - 2 * reach
        blurred = np.zeros((length, row.shape[1]), np.float32)
        for k, weight in enumerate(weights):
            blurred += weight * row[k : k + length]
        image = np.moveaxis(blurred, 0, axis)
    return np.ascontiguousarray(image)


def mean(image: np.ndarray, side: int) -> np.ndarray:
    """Mean in a square window of the odd `side` about each pixel; borders are extended."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (side // 2 + 1, side // 2)
        row = np.moveaxis(np.pad(image, pad, mode="edge"), axis, 0)
        total = np.cumsum(row, 0, dtype=np.float64)
        image = np.moveaxis(((total[side:] - total[:-side]) / side).astype(np.float32), 0, axis)
    return np.ascontiguousarray(image)


def peaks(answer: np.ndarray, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the `most` highest local maxima of `answer` above 0: the highest within windows of the odd `side`.

    Of a plateau all pixels are maxima; suppression of what overlaps is left to the caller.
    """
    y, x = np.nonzero((answer >= running(answer, side, np.maximum)) & (answer > 0))
    order = np.argsort(-answer[y, x], kind="stable")[:most]
    return y[order], x[order]


def extents(answer: np.ndarray, y: np.ndarray, x: np.ndarray, share: float, reach: int) -> np.ndarray:
    """Boxes `(N, 4)` xyxy about peaks: as far as `answer` stays above `share` of the peak, along its row and column.

    At most `reach` px to each side.
    """
    height, width = answer.shape
    floor = share * answer[y, x]
    sides = []
    for dy, dx in ((0, -1), (-1, 0), (0, 1), (1, 0)):
        length, going = np.zeros(len(y), np.int64), np.ones(len(y), bool)
        for step in range(1, reach + 1):
            ys, xs = y + dy * step, x + dx * step
            going &= (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
            if not going.any():
                break
            going[going] = answer[ys[going], xs[going]] >= floor[going]
            length += going
        sides.append(length)
    left, up, right, down = sides
    return np.stack([x - left, y - up, x + right + 1, y + down + 1], 1).astype(np.float64)


def refined(answer: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of peaks to parts of a pixel, by a parabola through the neighbours; at most half a pixel away."""
    height, width = answer.shape
    low_y, high_y = answer[np.maximum(y - 1, 0), x], answer[np.minimum(y + 1, height - 1), x]
    low_x, high_x = answer[y, np.maximum(x - 1, 0)], answer[y, np.minimum(x + 1, width - 1)]

    def off(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        bend = 2 * answer[y, x] - low - high
        return np.clip(0.5 * (high - low) / np.maximum(bend, 1e-9), -0.5, 0.5)

    return y + off(low_y, high_y), x + off(low_x, high_x)


def integral(image: np.ndarray) -> np.ndarray:
    """Sums of all that is above and left of each corner, `(H + 1, W + 1, ...)` float64, for `window_means`."""
    sums = np.zeros((image.shape[0] + 1, image.shape[1] + 1, *image.shape[2:]))
    np.cumsum(np.cumsum(image, 0, dtype=np.float64), 1, out=sums[1:, 1:])
    return sums


def window_means(sums: np.ndarray, y: np.ndarray, x: np.ndarray, side: float) -> np.ndarray:
    """Mean in a square of `side` px about each place (y, x), of what of it lies in the image; whole pixels, at least one."""
    bounds = []
    for place, length in ((y, sums.shape[0] - 1), (x, sums.shape[1] - 1)):
        low = np.clip(np.round(place + 0.5 - side / 2).astype(np.int64), 0, length - 1)
        high = np.clip(np.round(place + 0.5 + side / 2).astype(np.int64), low + 1, length)
        bounds.append((low, high))
    (y0, y1), (x0, x1) = bounds
    total = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    count = (y1 - y0) * (x1 - x0)
    return total / count.reshape(-1, *(1,) * (total.ndim - 1))
