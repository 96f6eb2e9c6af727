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
_SURROUND = 1.6
"""Width of the outer Gaussian by the inner one's: where their difference is nearest to a Laplacian (Marr, Hildreth, 1980)."""


def response(image: np.ndarray, kind: Kind, size: float, width: float) -> np.ndarray:
    """How much brighter a blob of `size` px about each pixel is than what surrounds it, `(H, W)` float32, at least 0.

    `width` is the side of the top-hat's square in sizes of the object; a difference of Gaussians needs none.
    """
    if kind == "top-hat":
        side = max(3, round(size * width) | 1)
        opened = running(running(image, side, np.minimum), side, np.maximum)
        return image - opened
    # A disc of diameter d answers most to a Laplacian of sigma = d / (2 sqrt 2).
    sigma = size / (2 * 2**0.5)
    return np.maximum(gaussian(image, sigma) - gaussian(image, _SURROUND * sigma), 0)


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
