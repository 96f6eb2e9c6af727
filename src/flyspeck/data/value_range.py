"""Which values of 16-bit and floating-point images are black and white: from the metadata, or from the images themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flyspeck.data.bands import Ranges, ranges_text
from flyspeck.data.headers import ImageHeader
from flyspeck.data.nodata import is_nodata
from flyspeck.errors import counted

_FEW_BITS = 8


@dataclass(frozen=True)
class FoundRange:
    """A range of values and where it comes from."""

    ranges: Ranges | None
    """One pair, or one a band; None: the full scale of the type."""
    reason: str


def stated_range(headers: Sequence[ImageHeader]) -> FoundRange | None:
    """The range that the metadata of all images state, if they do and agree."""
    stated = {header.value_range for header in headers}
    if len(stated) != 1 or None in stated:
        return None
    (pair,) = stated
    assert pair is not None
    return FoundRange((pair,), f"values {ranges_text([pair])}, as the files' metadata say")


def measured_range(images: Iterable[tuple[np.ndarray, float | None]]) -> FoundRange:
    """The range of `(H, W, C)` images of one type and number of bands, each with its value for "nothing here", if it has one.

    16 bits without a sign: the fewest whole bits, eight at least, that hold every value, alike for all bands. Other types: the
    lowest and the highest value of each band; what is no number does not count, nor what is nothing. Never quantiles: a bright
    object of four pixels is above all of them.
    """
    low = high = None
    count, name = 0, ""
    for pixels, nodata in images:
        least, most = extremes(pixels, nodata)
        low = least if low is None else np.fmin(low, least)
        high = most if high is None else np.fmax(high, most)
        count, name = count + 1, pixels.dtype.name
    if low is None or high is None:
        return FoundRange(None, "no image could be read")
    if np.isnan(high).all():
        return FoundRange(None, "no image has a value")
    if name == "uint16":
        top = np.nanmax(high)
        bits = max(_FEW_BITS, int(top).bit_length())
        if bits >= 16:
            return FoundRange(None, f"values up to {top:.0f}: the full 16 bits")
        pair = (0.0, float(2**bits - 1))
        return FoundRange(
            (pair,), f"values up to {top:.0f} in {counted(count, 'image')}: {bits} bits, {ranges_text([pair])}"
        )
    pairs = tuple(_pair(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return FoundRange(pairs, f"values of {name} in {counted(count, 'image')}, by band: {ranges_text(pairs)}")


def extremes(pixels: np.ndarray, nodata: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each band of `(H, W, C)`, float64; NaN where there is none.

    Only finite numbers other than `nodata` count.
    """
    flat = pixels.reshape(-1, pixels.shape[2])
    if pixels.dtype.kind != "f" and nodata is None:
        return flat.min(0).astype(np.float64), flat.max(0).astype(np.float64)
    there = np.isfinite(flat)
    if nodata is not None:
        there &= ~is_nodata(flat, nodata)
    empty = ~there.any(0)
    low, high = np.where(there, flat, np.inf).min(0), np.where(there, flat, -np.inf).max(0)
    return np.where(empty, np.nan, low).astype(np.float64), np.where(empty, np.nan, high).astype(np.float64)


def _pair(low: float, high: float) -> tuple[float, float]:
    """A range that is never empty."""
    if not np.isfinite(low):
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)
