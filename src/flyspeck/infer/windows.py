"""Images as windows: one small interface over arrays, image files, memory-mapped arrays and giant rasters.

A `Source` is opened, gives windows of pixels, and is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flyspeck.data.bands import PixelRule, Ranges, rule_of
from flyspeck.data.images import MAX_PIXELS, check_bands
from flyspeck.data.tiff import DTYPES, chosen_order
from flyspeck.errors import UserError
from flyspeck.geo import GeoReference
from flyspeck.infer.missing import shown
from flyspeck.infer.web import WebRule

CACHE_MB = 160  # decoded blocks kept: two rows of 512 px blocks across 40,000 px of RGB are 120 MB
BROKEN = "copy the file again; what was read so far is kept"


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How image files are opened."""

    max_pixels: int | None = MAX_PIXELS
    """Largest image that is decoded in one piece; None lifts the limit."""
    channels: int | None = None
    """What the detector takes: an image that does not give it is refused (grey and colour give each other); None takes all."""
    bands: tuple[int, ...] | None = None
    """Bands to read, counted from 1, alpha among them; None takes all but alpha."""
    value_range: tuple[float, float] | Ranges | None = None
    """Values that become black and white, for all bands or one pair a band. Needed for pixels that are neither 8 nor 16 bits
    unsigned."""
    of: str | None = None
    """Type of the values that the range is for, where it was found for those of a training; None: it is for every type."""
    bits: int = 8
    """What a range gives: 8 or 16."""
    find_range: bool = False
    """Whether 16-bit values of fewer bits are stretched to the full scale, by the metadata or the values themselves."""
    place: bool = False
    """Whether results are written in map coordinates: a file whose place cannot be read is then refused."""
    allow_references: bool = False
    """Whether a local file may refer to files outside its folder, and to other computers."""
    web: WebRule = field(default_factory=WebRule)
    """How long servers are waited for, and how much is taken of them."""

    @property
    def rule(self) -> PixelRule:
        """How the values become pixels; grey and colour are left to the detector."""
        given = self.value_range
        pairs = None if given is None else given if isinstance(given[0], tuple) else (given,)
        return PixelRule(bands=self.bands, value_range=pairs, of=self.of, bits=self.bits)  # type: ignore[arg-type]

    def completed(self, description: Mapping[str, Any]) -> OpenOptions:
        """With what is not said as the training of the run, or of the exported file, read its images."""
        rule = rule_of(description)
        return replace(
            self,
            channels=self.channels or rule.channels,
            bands=self.bands or rule.bands,
            value_range=self.value_range or rule.value_range,
            of=self.of if self.value_range else rule.of,
            bits=rule.bits,
            find_range=rule.bits == 8,
        )

    def check(self, bands: int) -> None:
        """Raises UserError where an image of so many bands, those that are read, gives the detector too few or too many."""
        if self.channels in (None, bands) or (bands, self.channels) in ((1, 3), (3, 1)):
            return
        first = ",".join(str(band + 1) for band in range(min(self.channels or 0, bands)))
        fix = (
            f"--bands {first} reads the first {self.channels}"
            if bands > (self.channels or 0)
            else "choose with --bands"
        )
        raise UserError(
            f"an image of {bands} band{'s' * (bands > 1)} for a detector of {self.channels}",
            fix=f"{fix}; data.channels trains one on others",
        )


class Source(ABC):
    """One image, read by windows. Not thread-safe: one thread opens, reads and closes it."""

    name: str
    size: tuple[int, int]
    """(H, W) in pixels."""
    bands: int
    """Of the windows."""
    colours: tuple[int, int, int] | None = None
    """Which of them, from 0, are red, green and blue, where the file says so."""
    geo: GeoReference | None = None
    stamp: tuple[int, ...] = ()
    """Of what is no local file: equal as long as it is the same."""
    note: str = ""
    """How the file's values became the pixels, where that is a choice: bands and scale."""
    remark: str = ""
    """What is to be known of where it lies on Earth."""
    value_range: Ranges | None = None
    """The range of values that is black to white, given or found; None: the full scale of the type."""

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """The window as `(h, w, C)` uint8 or uint16, its own memory; resampled to `out` (h, w) where that is given.

        Pixels that are not there are filled (`flyspeck.infer.missing`). Raises UserError where the file is broken.
        """
        return self.window(x1, y1, x2, y2, out)[0]

    @abstractmethod
    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As `read`, and which of the pixels are there `(h, w)` bool; None where all are."""

    @abstractmethod
    def close(self) -> None:
        """Give back files and memory."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_without_range(rule: PixelRule, dtype: np.dtype) -> None:
    """Raises UserError for complex values, and for a type without a black and white of its own where the rule says none."""
    if dtype.kind == "c":
        fix = "write their magnitude or another real value as floating point"
        raise UserError(f"its values are complex numbers ({dtype})", fix=fix)
    least = np.zeros((1, 1, len(rule.value_range or (0,))), dtype)
    rule.scaled(least - 1 if dtype == np.int16 else least)


def chosen(options: OpenOptions, meanings: list[str]) -> list[int]:
    """The bands to read, from 1: those asked for, or colours first and all but alpha (`chosen_order`)."""
    if options.bands is not None:
        check_bands(options.bands, len(meanings))
        return list(options.bands)
    return [place + 1 for place in chosen_order(meanings, options.channels)]


class ArraySource(Source):
    """An image in memory, or mapped into it: `(H, W)` or `(H, W, C)`, uint8, uint16, int16 or float.

    `there` (H, W) bool says which pixels the file has; floating-point values that are no finite number are not there either.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        name: str = "array",
        rule: PixelRule | None = None,
        there: np.ndarray | None = None,
    ) -> None:
        if pixels.ndim not in (2, 3) or pixels.dtype.name not in DTYPES or 0 in pixels.shape:
            raise UserError(
                f"an image must be (H, W) or (H, W, C) of uint8, uint16, int16 or float32, not {pixels.shape} of"
                f" {pixels.dtype}",
                where=name,
                fix="convert it first",
            )
        self.name, self.size = name, (pixels.shape[0], pixels.shape[1])
        self._pixels: np.ndarray | None = pixels if pixels.ndim == 3 else pixels[:, :, None]
        self._rule, self._there = rule or PixelRule(), there
        try:
            if self._rule.bands is not None:
                check_bands(self._rule.bands, self._pixels.shape[2])
            refuse_without_range(self._rule, pixels.dtype)
        except UserError as error:
            raise UserError(error.what, where=name, fix=error.fix) from None
        self.bands = self._pixels.shape[2] if self._rule.bands is None else len(self._rule.bands)
        if self._rule.value_range is not None and self._rule.is_for(pixels.dtype):
            self.value_range = self._rule.value_range
            self.note = f"{pixels.dtype}, {self._rule.text}"

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        if self._pixels is None:
            raise ValueError(f"{self.name} is closed")
        values = self._pixels[y1:y2, x1:x2]
        if self._rule.bands is not None:
            values = values[:, :, [band - 1 for band in self._rule.bands]]
        there = None if self._there is None else self._there[y1:y2, x1:x2]
        return shown(np.array(values), self._rule, there, out)

    def close(self) -> None:
        """See `Source.close`."""
        self._pixels = self._there = None


class AroundSource(Source):
    """What another source gives, of an image that comes from elsewhere."""

    def _take(self, inner: Source, name: str, stamp: tuple[int, ...] = ()) -> None:
        self._inner = inner
        self.name, self.size, self.bands, self.colours = name, inner.size, inner.bands, inner.colours
        self.geo, self.note, self.remark = inner.geo, inner.note, inner.remark
        self.value_range, self.stamp = inner.value_range, stamp

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        return self._inner.window(x1, y1, x2, y2, out)

    def close(self) -> None:
        """See `Source.close`."""
        self._inner.close()
