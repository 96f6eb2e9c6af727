"""Any image by windows through libvips: pyvips (extra `vips`). It turns an image by its orientation tag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import PixelRule, ranges_text
from flyspeck.data.headers import read_header
from flyspeck.data.images import tiff_header
from flyspeck.data.nodata import is_nodata
from flyspeck.data.tiff import alpha_of
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.found_range import is_sampled, measured_highest, range_of
from flyspeck.infer.missing import both, shown
from flyspeck.infer.whole import mask_in
from flyspeck.infer.windows import BROKEN, OpenOptions, Source, chosen, refuse_without_range

_TYPES = {"uchar": "uint8", "ushort": "uint16", "short": "int16", "float": "float32", "double": "float64"}


class VipsSource(Source):
    """Any image that libvips reads; formats without windows are unpacked to a temporary file, not to memory."""

    def __init__(self, path: Path, options: OpenOptions | None = None, *, name: str) -> None:
        options = options or OpenOptions()
        try:
            import pyvips
        except ImportError:
            raise missing_extra("pyvips", "vips") from None
        self._vips: Any = pyvips
        self._header = tiff_header(path)
        if self._header is not None and self._header.planes:  # libvips 8.18 mixes up their rows, or does not read them
            raise missing_extra("tifffile", "tiff")
        try:
            image = pyvips.Image.new_from_file(str(path), access="random").autorot()
            if image.format not in _TYPES:
                raise UserError(f"its pixels are {image.format}", where=path, fix="convert it to 8 or 16 bits first")
        except pyvips.Error as error:
            raise UserError(f"libvips cannot read it ({_line(error)})", where=path, fix="convert it to TIFF") from error
        self._mask = None
        if self._header is not None and "palette" in self._header.meanings:
            if self._header.nodata is not None:  # a place in the palette, which libvips has looked up
                raise missing_extra("rasterio", "geo")
            if self._header.palette is not None:  # libvips spreads grey of fewer bits as Pillow does
                values = np.arange(max(256, len(self._header.palette)))
                table = self._header.palette[self._header.numbers(values)]
                image = image.maplut(pyvips.Image.new_from_memory(table.tobytes(), len(table), 1, 3, "uchar"))
        if self._header is not None and self._header.mask_page is not None:
            self._mask = mask_in(path, self._header)
        self.name = name
        self._image: Any = image
        self.size = (image.height, image.width)
        try:
            self._choose(options, path)
        except UserError as error:
            raise UserError(error.what, where=path, fix=error.fix) from None

    def _choose(self, options: OpenOptions, path: Path) -> None:
        """Which bands are read, and which values are black and white."""
        meanings = self._meanings()
        alpha = alpha_of(meanings)
        self._chosen = [band - 1 for band in chosen(options, meanings)]
        self._alpha = None if alpha in self._chosen else alpha
        self.bands = len(self._chosen)
        dtype = np.dtype(_TYPES[self._image.format])
        self._rule = replace(options.rule, bands=None)
        if self._rule.value_range is not None and self._rule.is_for(dtype):
            self.value_range = self._rule.value_range
        elif dtype == np.uint16 and options.find_range:
            stated = read_header(path).value_range
            bits = None if stated is None else int(stated[1]).bit_length()
            highest = None if stated is not None else measured_highest(self.size, self._highest)
            found, said = range_of(bits, highest, sampled=is_sampled(self.size))
            if found is not None:
                self.value_range = found
                self._rule = PixelRule(value_range=found, of="uint16", bits=8)
                self.note = f"uint16 {ranges_text(found)} as black to white ({said})"
        refuse_without_range(self._rule, dtype)

    def _meanings(self) -> list[str]:
        """Of each band; a palette is looked up by libvips already."""
        image = self._image
        if (
            self._header is not None
            and len(self._header.meanings) == image.bands
            and "palette" not in self._header.meanings
        ):
            return list(self._header.meanings)
        colours = ["red", "green", "blue"] if image.bands >= 3 else ["gray"]
        rest = image.bands - len(colours)
        return [
            *colours,
            *["undefined"] * (rest - 1),
            *(["alpha" if image.hasalpha() else "undefined"] if rest else []),
        ]

    def _highest(self, x1: int, y1: int, x2: int, y2: int) -> float:
        values, there = self._values(x1, y1, x2, y2)
        kept = values if there is None else values[there]
        return float(kept.max()) if kept.size else float("nan")

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        values, there = self._values(x1, y1, x2, y2)
        return shown(values, self._rule, there, out)

    def _values(self, x1: int, y1: int, x2: int, y2: int) -> tuple[np.ndarray, np.ndarray | None]:
        place = (x1, y1, x2 - x1, y2 - y1)
        try:
            stored = np.array(self._image.crop(*place).numpy()).reshape(y2 - y1, x2 - x1, -1)
        except self._vips.Error as error:
            raise UserError(f"the window cannot be read ({_line(error)})", where=self.name, fix=BROKEN) from error
        there = None if self._mask is None else self._mask[y1:y2, x1:x2]
        if self._alpha is not None:
            there = both(there, stored[:, :, self._alpha] > 0)
        values = np.ascontiguousarray(stored[:, :, self._chosen])
        nodata = None if self._header is None else self._header.nodata
        if nodata is not None:
            if self._header is not None and self._header.inverted and values.dtype.kind == "u":
                nodata = float(np.iinfo(values.dtype).max) - nodata  # libvips has turned the values around
            lacks = is_nodata(values, nodata)
            if values.dtype.kind == "f":
                values[lacks] = np.nan
            there = both(there, ~lacks.all(axis=2))
        return values, there

    def close(self) -> None:
        """See `Source.close`."""
        self._image = self._mask = None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
