"""How the bands and values of image files become what a detector sees; a run keeps its rule, and everybody follows it.

Values become 8- or 16-bit full scale: uint8 and uint16 stay as they are unless a range says which values are black and white.
So 12 bits of a camera fill the scale that augmentation and normalisation work in, and signed or floating-point values have one.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import MAX_PIXELS, read_image
from flyspeck.errors import UserError

KEY = "reading"
"""Of a run's description: its `PixelRule`."""
Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class PixelRule:
    """From the values of a file to `(H, W, C)` uint8 or uint16."""

    channels: int | None = None
    """What the detector takes: 1 and 3 are converted into each other, nothing else is; None keeps the file's own."""
    bands: tuple[int, ...] | None = None
    """Bands that are read, counted from 1; None: all."""
    value_range: Ranges | None = None
    """(low, high), the values that become black and white: one pair for all bands, or one a band; None: the type's full scale."""
    of: str | None = None
    """Type of the values that the range was found for (`uint16`, `int16`, `float32`); None: it is for every type."""
    bits: int = 16
    """What a range gives: 8 or 16."""

    def read(self, path: Path | str, *, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """The image in a file, `(H, W, C)` uint8 or uint16. Raises UserError, see `read_image`."""
        pixels = read_image(path, channels=self.channels, bands=self.bands, max_pixels=max_pixels)
        try:
            return self.scaled(pixels)
        except UserError as error:
            raise UserError(error.what, where=path, fix=error.fix) from None

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """`(H, W, C)` of any type as uint8 or uint16; what is no number becomes black."""
        if self.value_range is None or not self.is_for(pixels.dtype):
            return _full_scale(pixels)
        if len(self.value_range) not in (1, pixels.shape[2]):
            raise UserError(
                f"{len(self.value_range)} value ranges for an image of {pixels.shape[2]} bands",
                fix="give one pair, or one a band",
            )
        top, kind = (255, np.uint8) if self.bits == 8 else (65535, np.uint16)
        if len(self.value_range) == 1 and pixels.dtype in (np.uint16, np.int16):
            table = _stretched(np.arange(65536).astype(np.uint16).view(pixels.dtype), self.value_range[0], top)
            return table.astype(kind)[pixels.view(np.uint16)]
        pairs = self.value_range * (pixels.shape[2] if len(self.value_range) == 1 else 1)
        planes = [_stretched(pixels[:, :, band], pair, top).astype(kind) for band, pair in enumerate(pairs)]
        return np.stack(planes, axis=2)

    def is_for(self, dtype: np.dtype) -> bool:
        """Whether the range speaks of values of this type: 16 bits are 16 bits, signed or not."""
        return self.of is None or _width(self.of) == _width(dtype.name)

    def to_dict(self) -> dict[str, Any]:
        """For a description, as JSON."""
        return {
            "channels": self.channels,
            "bands": None if self.bands is None else list(self.bands),
            "value_range": None if self.value_range is None else [list(pair) for pair in self.value_range],
            "of": self.of,
            "bits": self.bits,
        }

    @property
    def text(self) -> str:
        """For people."""
        said = "all bands" if self.bands is None else f"bands {','.join(map(str, self.bands))}"
        if self.value_range is not None:
            said += f", values {ranges_text(self.value_range)} as black to white"
        return said


def rule_of(description: Mapping[str, Any]) -> PixelRule:
    """The rule in the description of a run, a weights file or an exported file; those of before have none but their channels.

    Raises UserError for one that is broken.
    """
    kept = description.get(KEY)
    try:
        if kept is None:
            return PixelRule(channels=int(description.get("channels") or len(description["mean"])), bits=8)
        ranges, bands = kept.get("value_range"), kept.get("bands")
        return PixelRule(
            channels=int(kept["channels"]),
            bands=None if bands is None else tuple(int(band) for band in bands),
            value_range=None if ranges is None else tuple((float(low), float(high)) for low, high in ranges),
            of=kept.get("of"),
            bits=int(kept.get("bits", 16)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(
            "what the model says of its pixels cannot be read",
            where=KEY,
            fix="copy it again, or train or export it again",
        ) from None


def ranges_text(ranges: Sequence[tuple[float, float]]) -> str:
    """`0 to 4095`; of several, each."""
    return ", ".join(f"{low:g} to {high:g}" for low, high in ranges)


def _width(name: str) -> str:
    return {"uint8": "8", "uint16": "16", "int16": "16"}.get(name, "float")


def _stretched(values: np.ndarray, pair: tuple[float, float], top: int) -> np.ndarray:
    low, high = pair
    share = (values.astype(np.float64) - low) / (high - low)
    return np.round(np.nan_to_num(share, nan=0.0).clip(0, 1) * top)


def _full_scale(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype == np.int16 and pixels.min() >= 0:
        return pixels.view(np.uint16)
    raise UserError(
        f"its pixels are {pixels.dtype}",
        fix="say which values are black and white: data.value_range in training, --value-range LOW,HIGH in prediction",
    )
