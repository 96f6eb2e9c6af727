"""Pixels that a file does not have: under a mask, "no data", wholly transparent, no finite number.

A network always sees something in their place. Black or white would put an edge around everything that is there, which small
detectors take for objects, and the "no data" value of a scale may be the brightest of it. So each band gets the mean of what the
window has: after normalisation that is the least that can be said, it has no contrast of its own, and no value beyond those of
the image. (The nearest pixel that is there would smear objects at the border into streaks.)

What is found is then compared with what is there: `hidden` says which boxes lie in what is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import resample

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
    """`(h, w, C)` with the values that are `lacking` (h, w, C) replaced by the mean of the band's others, 0 where it has none."""
    pixels = pixels.copy()
    for band in range(pixels.shape[2]):
        plane, gone = pixels[:, :, band], lacking[:, :, band]
        kept = plane[~gone]
        plane[gone] = round(float(kept.mean())) if len(kept) else 0
    return pixels


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
