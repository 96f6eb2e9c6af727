"""Which values of a 16-bit raster are black and white, for a detector that learnt from 8 bits.

11- and 12-bit sensors keep their values in files of 16 bits, of which they would fill a corner. The metadata say it (`NBITS`,
`SIGNIFICANT_BITS`, a maximum), or else the values: the fewest whole bits, eight at least, that hold them. Never quantiles, as a
bright object of four pixels is above all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import numpy as np

from flyspeck.data.bands import Ranges
from flyspeck.errors import UserError

_BITS = ("NBITS", "SIGNIFICANT_BITS", "MAXSAMPLEVALUE", "TIFFTAG_MAXSAMPLEVALUE")
_WHOLE = 16_000_000  # pixels that are looked at one and all
_WINDOWS, _SAMPLE = 8, 256  # of larger ones: so many windows each way, of so many pixels
_HIGH, _WIDE = 128, 4096  # of the windows that cover a smaller one: a hole in a broken file costs no more

Highest = Callable[[int, int, int, int], float]
"""The highest value in a window x1, y1, x2, y2 of what is there; NaN where nothing is."""


def stated_bits(metadata: Mapping[str, str]) -> int | None:
    """Bits of a value by what a raster's metadata say; None where they say nothing of use."""
    said = {key.upper(): value for key, value in metadata.items()}
    for key in _BITS:
        text = said.get(key, "").strip()
        if text.isdigit():
            bits = int(text) if "BITS" in key else int(text).bit_length()
            if 1 <= bits < 16:
                return bits
    return None


def stated_highest(metadata: Mapping[str, str]) -> float | None:
    """The highest value by statistics that were taken of all pixels."""
    if metadata.get("STATISTICS_APPROXIMATE", "").upper() == "YES":
        return None
    try:
        return float(metadata["STATISTICS_MAXIMUM"])
    except (KeyError, ValueError):
        return None


def looked_at(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Windows x1, y1, x2, y2 that cover an image of `size` (H, W), or of a large one a grid of samples."""
    height, width = size
    if height * width <= _WHOLE:
        for y in range(0, height, _HIGH):
            for x in range(0, width, _WIDE):
                yield x, y, min(width, x + _WIDE), min(height, y + _HIGH)
        return
    tall, wide = min(height, _SAMPLE), min(width, _SAMPLE)
    for y in np.linspace(0, height - tall, _WINDOWS).astype(int).tolist():
        for x in np.linspace(0, width - wide, _WINDOWS).astype(int).tolist():
            yield x, y, x + wide, y + tall


def measured_highest(size: tuple[int, int], highest: Highest) -> float:
    """The highest value in the windows of `looked_at` that can be read; NaN where nothing is there."""
    most = float("nan")
    for window in looked_at(size):
        with suppress(UserError):  # told when the window is run
            most = float(np.fmax(most, highest(*window)))
    return most


def range_of(bits: int | None, highest: float | None, *, sampled: bool) -> tuple[Ranges | None, str]:
    """The range, and where it comes from, for people; None for 16 bits that are used, or values that nobody has seen."""
    if bits is not None:
        return ((0.0, float(2**bits - 1)),), f"{bits} bits by its metadata"
    if highest is None or not np.isfinite(highest):
        return None, ""
    found = max(8, int(highest).bit_length())
    if found >= 16:
        return None, ""
    return (
        (0.0, float(2**found - 1)),
    ), f"{found} bits by {'samples of ' if sampled else ''}its values, up to {highest:g}"


def is_sampled(size: tuple[int, int]) -> bool:
    """Whether only samples of an image of `size` (H, W) are looked at."""
    return size[0] * size[1] > _WHOLE
