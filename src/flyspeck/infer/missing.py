"""Pixels that a file does not have: under a mask, "no data", wholly transparent, no finite number.

A network always sees something in their place. Black, white or the mean puts an edge around everything that is there, which
small detectors take for objects, and the "no data" value of a scale may be the brightest of it. So each missing pixel gets the
nearest one that is there in its row or column: what meets the border has no edge there. Counted with `models/aerialcars` on 14
images cut by a slanted border, within 24 px of it: boxes that the whole image does not have, and those lost of its 23, are 7 and
8 with black, 1 and 9 with white, 12 and 5 with the mean, 4 and 4 with the nearest.

What is found is then compared with what is there: `hidden` says which boxes lie in what is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import resample

_NOWHERE = 1 << 40
_HUGE = 1e30  # a "no data" value of such size was often written with fewer digits than it has


def shown(
    values: np.ndarray, rule: PixelRule, there: np.ndarray | None, out: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values of a file `(h, w, C)` as a network sees them, and which pixels are there.

    `there` (h, w) bool, None where all are; values that are no finite number are not, in the band that lacks them, and a pixel
    that lacks all its bands is missing. Both come out at the size `out` (h, w).
    """
    lacking = None
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            lacking = ~finite
            there = both(there, finite.any(axis=2))
    pixels = rule.scaled(values)
    if there is not None and there.all():
        there = None
    if there is not None:
        lacking = ~there[:, :, None] | (False if lacking is None else lacking)
    if lacking is not None:
        pixels = filled(pixels, np.broadcast_to(lacking, pixels.shape))
    return resample(pixels, out), None if there is None else at_size(there, out)


def both(there: np.ndarray | None, also: Any) -> np.ndarray:
    """What is there by two accounts `(h, w)` bool; None for the first: by the second alone."""
    return np.asarray(also) if there is None else there & np.asarray(also)


def filled(pixels: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """`(h, w, C)` with the values that are `lacking` (h, w, C) replaced by the nearest one of their band in the row or the column
    that is there; where these have none by the mean of the others, 0 where there is none at all.
    """
    if (lacking == lacking[:, :, :1]).all():
        return _filled(pixels, lacking[:, :, 0])
    bands = [_filled(pixels[:, :, [band]], lacking[:, :, band]) for band in range(pixels.shape[2])]
    return np.concatenate(bands, axis=2)


def _filled(pixels: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """`(h, w, C)` with the pixels that are `gone` (h, w) in all bands filled."""
    if gone.all():
        return np.zeros_like(pixels)
    column, across = _nearest(gone)
    row, along = _nearest(gone.T)
    row, along = row.T, along.T
    rows, columns = np.arange(gone.shape[0])[:, None], np.arange(gone.shape[1])[None]
    by_row = across <= along
    found = pixels[np.where(by_row, rows, row), np.where(by_row, column, columns)]
    mean = np.round(pixels[~gone].mean(axis=0)).astype(pixels.dtype)
    return np.where((np.minimum(across, along) < _NOWHERE)[:, :, None], found, mean)


def _nearest(gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel `(h, w)`, the column of the nearest one in its row that is there, and how far that is, else `_NOWHERE`."""
    places = np.arange(gone.shape[1])
    before = np.maximum.accumulate(np.where(gone, -1, places), axis=1)
    after = np.minimum.accumulate(np.where(gone, _NOWHERE, places)[:, ::-1], axis=1)[:, ::-1]
    left = np.where(before >= 0, places - before, _NOWHERE)
    right = np.where(after < _NOWHERE, after - places, _NOWHERE)
    column = np.where(left <= right, before, after)
    return np.where(np.minimum(left, right) < _NOWHERE, column, 0), np.minimum(left, right)


def at_size(there: np.ndarray, out: tuple[int, int] | None) -> np.ndarray:
    """`(h, w)` bool at the size `out`: a pixel is there where the nearest one was."""
    if out is None or out == there.shape:
        return there
    small = Image.fromarray(there.astype(np.uint8)).resize((out[1], out[0]), Image.Resampling.NEAREST)
    return np.asarray(small).astype(bool)


def is_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """Which values (any shape) are the "no data" value of their file."""
    if np.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        limits = np.iinfo(values.dtype)
        if not limits.min <= nodata <= limits.max or nodata != int(nodata):
            return np.zeros(values.shape, bool)
        return values == values.dtype.type(int(nodata))
    if abs(nodata) > _HUGE:
        return np.abs(values.astype(np.float64) - nodata) <= 1e-5 * abs(nodata)
    return values == values.dtype.type(nodata)


def hidden(boxes: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which boxes `(N, 4)` xyxy lie in what is missing, `(N,)` bool: those of which at least half of the pixels are not there.

    `there` is `(h, w)` bool in the frame of the boxes. A box of less than a pixel counts the pixel of its centre. The centre
    alone would lose objects over a single dead pixel, and keep a box around an empty frame.
    """
    height, width = there.shape
    total = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(np.cumsum(~there, axis=0), axis=1, out=total[1:, 1:])
    centre = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2)
    low = np.minimum(np.round(boxes[:, :2]), centre).clip(0, [width - 1, height - 1]).astype(np.int64)
    high = np.maximum(np.round(boxes[:, 2:]), centre + 1).clip(1, [width, height]).astype(np.int64)
    high = np.maximum(high, low + 1)
    (x1, y1), (x2, y2) = low.T, high.T
    missing = total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1]
    return 2 * missing >= (x2 - x1) * (y2 - y1)
