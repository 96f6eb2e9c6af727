"""Pixels that a file does not have: under a mask, "no data", wholly transparent, no finite number.

A network always sees something in their place. Black or white puts an edge around everything that is there, which small
detectors take for objects, and the "no data" value of a scale may be the brightest of it. The nearest pixel of the row or column
draws an object that meets the border out of all proportion. So each missing pixel gets the mean of what is there around it, in
blocks. Counted with `models/aerialcars` on 10 images cut by 4 borders each, most of them along or through an object
(`benchmarks/collar.py`), within 24 px of these: of 291 boxes, 71 lost and 30 that the whole image does not have with black, 36
and 42 with the mean of all, 68 and 20 with the nearest, 33 and 41 so.

What is found is then compared with what is there: `hidden` says which boxes lie in what is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import resample

_BLOCK = 8  # pixels; objects that are looked for are hardly larger, and count little among what surrounds them
_PRIOR = 4.0  # pixels; how much the larger surroundings count beside the 64 of a block


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
    """`(h, w, C)` with the values that are `lacking` (h, w, C) replaced by the mean of those of their band that are there and
    near; 0 where there is none at all.
    """
    if (lacking == lacking[:, :, :1]).all():
        return _filled(pixels, lacking[:, :, 0])
    bands = [_filled(pixels[:, :, [band]], lacking[:, :, band]) for band in range(pixels.shape[2])]
    return np.concatenate(bands, axis=2)


def _filled(pixels: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """`(h, w, C)` with the pixels that are `gone` (h, w) in all bands filled."""
    if gone.all():
        return np.zeros_like(pixels)
    sums = np.where(gone[:, :, None], 0, pixels).astype(np.float32)
    weights = (~gone).astype(np.float32)[:, :, None]
    around = _around(np.concatenate([sums, weights], axis=2), _BLOCK)
    near = around[:, :, :-1] / around[:, :, -1:]
    if pixels.dtype.kind != "f":
        near = np.rint(near)
    return np.where(gone[:, :, None], near.astype(pixels.dtype), pixels)


def _around(totals: np.ndarray, block: int) -> np.ndarray:
    """What lies around each place of `totals (h, w, C + 1)`, sums of values and last their number: those of blocks, without steps
    between these, with a little of twice as large blocks, so that no place has nothing.
    """
    height, width, count = totals.shape
    rows, columns = -(-height // block), -(-width // block)
    full = np.zeros((rows * block, columns * block, count), np.float32)
    full[:height, :width] = totals
    blocks = full.reshape(rows, block, columns, block, count).sum(axis=(1, 3))
    if rows * columns > 1:
        coarse = _around(blocks, 2)
        blocks = blocks + _PRIOR * coarse / coarse[:, :, -1:]
    size = (columns * block, rows * block)
    planes = [
        np.asarray(Image.fromarray(blocks[:, :, k]).resize(size, Image.Resampling.BILINEAR)) for k in range(count)
    ]
    return np.stack(planes, axis=2)[:height, :width]


def at_size(there: np.ndarray, out: tuple[int, int] | None) -> np.ndarray:
    """`(h, w)` bool at the size `out`: a pixel is there where the nearest one was."""
    if out is None or out == there.shape:
        return there
    small = Image.fromarray(there.astype(np.uint8)).resize((out[1], out[0]), Image.Resampling.NEAREST)
    return np.asarray(small).astype(bool)


def hidden(boxes: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which boxes `(N, 4)` xyxy lie in what is missing, `(N,)` bool: their centre is not there, nor is more than half of them.

    `there` is `(h, w)` bool in the frame of the boxes. A box of less than a pixel counts the pixel of its centre. The centre
    alone would lose objects over a single dead pixel; the area alone those that lie half under a border.
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
    x, y = centre.clip(0, [width - 1, height - 1]).astype(np.int64).T
    return (2 * missing >= (x2 - x1) * (y2 - y1)) & ~there[y, x]


def trimmed(boxes: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Boxes `(N, 4)` xyxy without their outer rows and columns of which no pixel is `there` (h, w) bool: an object ends where the
    image does. A box of which nothing is there stays as it is.
    """
    height, width = there.shape
    kept = boxes.copy()
    low = np.floor(boxes[:, :2]).clip(0).astype(np.int64)
    high = np.ceil(boxes[:, 2:]).clip(0, [width, height]).astype(np.int64)
    for row, ((x1, y1), (x2, y2)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        part = there[y1:y2, x1:x2]
        if part.all() or not part.any():
            continue
        columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
        kept[row, :2] = np.maximum(kept[row, :2], (x1 + columns[0], y1 + rows[0]))
        kept[row, 2:] = np.minimum(kept[row, 2:], (x1 + columns[-1] + 1, y1 + rows[-1] + 1))
    return kept
