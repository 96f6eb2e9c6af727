"""Boxes of masks: polygons and run-length encodings as COCO and its tools write them."""

from __future__ import annotations

from typing import Any

import numpy as np

from flyspeck.data.readers.values import as_number, as_numbers

_NOWHERE = [float("nan")] * 4


def mask_box(segmentation: Any) -> list[float]:
    """xywh around a COCO `segmentation`: polygons `[[x, y, …], …]`, or a run-length encoding; NaN where it is none.

    A polygon's box goes from its least to its greatest corner, a run-length encoding's to the far edge of its last pixel.
    """
    if isinstance(segmentation, list) and segmentation:
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        return _of_polygons(parts)
    if isinstance(segmentation, dict):
        return _of_runs(segmentation)
    return list(_NOWHERE)


def _of_polygons(parts: list[Any]) -> list[float]:
    corners: list[float] = []
    for part in parts:
        if not isinstance(part, list) or len(part) < 4 or len(part) % 2:
            return list(_NOWHERE)
        corners += as_numbers(part)
    points = np.array(corners).reshape(-1, 2)
    if not np.isfinite(points).all():
        return list(_NOWHERE)
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _of_runs(encoded: dict[str, Any]) -> list[float]:
    """From alternating runs of background and object down the columns, as a list of lengths or COCO's compressed text."""
    size, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(1 <= as_number(side) < 2**31 for side in size):
        return list(_NOWHERE)
    height, width = int(size[0]), int(size[1])
    lengths = (
        _uncompressed(counts) if isinstance(counts, str) else as_numbers(counts) if isinstance(counts, list) else []
    )
    runs = np.array(lengths, dtype=np.float64)
    if not len(runs) or not np.isfinite(runs).all() or (runs < 0).any() or runs.sum() != height * width:
        return list(_NOWHERE)
    ends = np.cumsum(runs.astype(np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # of each run of the object
    filled = last >= first[: len(last)]
    first, last = first[: len(last)][filled], last[filled]
    if not len(first):
        return list(_NOWHERE)
    x1, x2 = int(first.min()) // height, int(last.max()) // height
    # A run that goes on into the next column touches the top and the bottom.
    wraps = (first // height != last // height).any()
    y1 = 0 if wraps else int((first % height).min())
    y2 = height - 1 if wraps else int((last % height).max())
    return [float(x1), float(y1), float(x2 - x1 + 1), float(y2 - y1 + 1)]


def _uncompressed(text: str) -> list[float]:
    """COCO's text form (pycocotools' rleFrString): six bits a character, least first, each length less the one before last."""
    lengths: list[float] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text) or not 48 <= ord(text[at]) < 112 or shift > 60:
                return []
            bits = ord(text[at]) - 48
            value |= (bits & 0x1F) << shift
            more, at, shift = bool(bits & 0x20), at + 1, shift + 5
            if not more and bits & 0x10:
                value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths
