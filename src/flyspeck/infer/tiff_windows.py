"""A tiled or striped TIFF by windows without GDAL: tifffile (extra `tiff`)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data import tiff
from flyspeck.data.bands import PixelRule, ranges_text
from flyspeck.data.images import check_bands
from flyspeck.data.nodata import is_nodata
from flyspeck.data.tiff import DTYPES, alpha_of
from flyspeck.errors import UserError, install, missing_extra
from flyspeck.infer.found_range import is_sampled, measured_highest, range_of
from flyspeck.infer.missing import at_size, both, shown
from flyspeck.infer.windows import BROKEN, CACHE_MB, OpenOptions, Source, chosen, refuse_without_range

_MASK = -1  # the level of the mask
_MOST_LEVELS = 32
_COLOURS = ("RGB", "MINISBLACK", "MINISWHITE", "YCBCR", "PALETTE")


class TifffileSource(Source):
    """A tiled or striped TIFF: only the segments under a window are decoded, of one file, whatever its text says of others."""

    def __init__(self, path: Path, options: OpenOptions | None = None, *, name: str) -> None:
        options = options or OpenOptions()
        try:
            import tifffile
        except ImportError:
            raise missing_extra("tifffile", "tiff") from None
        try:
            self._header = tiff.read_header(path)
            self._file: Any = tifffile.TiffFile(path)
            self._levels = {0: self._file.pages[0].aspage()}
            self._levels |= dict(enumerate(_smaller(self._file, self._levels[0]), start=1))
            if self._header.mask_page is not None:
                self._levels[_MASK] = self._file.pages[self._header.mask_page].aspage()
        except (tifffile.TiffFileError, OSError, IndexError, SyntaxError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a TIFF that can be read ({error})", where=path, fix="copy it again") from error
        self.name = name
        self._segments: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._held = 0
        page = self._levels[0]
        self.size = (page.imagelength, page.imagewidth)
        try:
            self._choose(options, page)
        except UserError as error:
            self._file.close()
            raise UserError(error.what, where=path, fix=error.fix) from None

    def _choose(self, options: OpenOptions, page: Any) -> None:
        """Which samples are read, and which values are black and white."""
        colours = page.photometric.name
        if page.dtype is None or page.dtype.name not in DTYPES or colours not in _COLOURS:
            raise UserError(f"its pixels are {page.dtype} {colours.lower()}", fix=install("geo"))
        self._samples, self._palette = page.samplesperpixel, None
        if "palette" in self._header.meanings:
            self._palette = self._header.palette
            if self._palette is None:
                self._palette = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
            self._chosen = [band - 1 for band in options.bands or (1, 2, 3)]
            check_bands([place + 1 for place in self._chosen], 3)
            self._alpha, self._planes = None, [0]
        else:
            meanings = list(self._header.meanings)
            self._chosen = [band - 1 for band in chosen(options, meanings)]
            alpha = alpha_of(meanings)
            self._alpha = None if alpha in self._chosen else alpha
            self._planes = [*self._chosen, *([] if self._alpha is None else [self._alpha])]
        self.bands = len(self._chosen)
        self._inverted = self._header.inverted
        self._rule = replace(options.rule, bands=None)
        stated = self._header.value_range
        self._top = int(np.iinfo(page.dtype).max if page.dtype.kind == "u" else 0)
        if stated is not None:
            self._top = int(stated[1])
        self._find_range(options, page.dtype)
        refuse_without_range(self._rule, page.dtype)

    def _find_range(self, options: OpenOptions, dtype: np.dtype) -> None:
        if self._rule.value_range is not None and self._rule.is_for(dtype):
            self.value_range = self._rule.value_range
        elif dtype == np.uint16 and options.find_range and self._palette is None:
            stated = self._header.value_range
            turned, self._inverted = self._inverted, False
            bits = None if stated is None else int(stated[1]).bit_length()
            highest = None if stated is not None else measured_highest(self.size, self._highest)
            self._inverted = turned
            found, said = range_of(bits, highest, sampled=is_sampled(self.size))
            if found is not None:
                self.value_range, self._top = found, int(found[0][1])
                self._rule = PixelRule(value_range=found, of="uint16", bits=8)
                self.note = f"{dtype} {ranges_text(found)} as black to white ({said})"

    def _highest(self, x1: int, y1: int, x2: int, y2: int) -> float:
        values, there = self._values(0, (x1, y1, x2, y2))
        kept = values if there is None else values[there]
        return float(kept.max()) if kept.size else float("nan")

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`; a coarser `out` is taken from the pyramid where the file has one."""
        level = self._level_for((y2 - y1, x2 - x1), out)
        page = self._levels[level]
        fy, fx = page.imagelength / self.size[0], page.imagewidth / self.size[1]
        left, top = int(x1 * fx), int(y1 * fy)
        right, bottom = max(left + 1, round(x2 * fx)), max(top + 1, round(y2 * fy))
        values, there = self._values(level, (left, top, right, bottom))
        if _MASK in self._levels:
            seen = self._stored(_MASK, (x1, y1, x2, y2), [0], 1)[:, :, 0] > 0
            there = both(there, at_size(seen, values.shape[:2]))
        return shown(values, self._rule, there, out)

    def _values(self, level: int, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """The values `(h, w, C)` of a window of a level, and what its alpha and "no data" say is there."""
        stored = self._stored(level, window, self._planes, self._samples)
        there = None if self._alpha is None else stored[:, :, self._alpha] > 0
        values = stored[:, :, [0] if self._palette is not None else self._chosen]
        if self._header.nodata is not None:
            lacks = is_nodata(values, self._header.nodata)
            if values.dtype.kind == "f":
                values = np.where(lacks, np.nan, values).astype(values.dtype)
            there = both(there, ~lacks.all(axis=2))
        if self._inverted and values.dtype.kind == "u":
            top = values.dtype.type(self._top)
            values = top - np.minimum(values, top)
        if self._palette is not None:
            values = self._palette[values[:, :, 0]][:, :, self._chosen]
        return np.ascontiguousarray(values), there

    def _stored(self, level: int, window: tuple[int, int, int, int], planes: list[int], samples: int) -> np.ndarray:
        """All samples `(h, w, S)` of a window x1, y1, x2, y2 of a level; those of `planes` alone where each lies by itself."""
        page = self._levels[level]
        left, top, right, bottom = window
        separate = page.planarconfig == 2
        kind = np.dtype(np.uint8) if level == _MASK else page.dtype
        pixels = np.zeros((bottom - top, right - left, samples), kind)
        nodata = self._header.nodata
        if level != _MASK and nodata is not None and (kind.kind == "f" or 0 <= nodata <= np.iinfo(kind).max):
            pixels[:] = nodata  # what the file leaves out
        high, wide = page.chunks[-2 if separate else 0], page.chunks[-1 if separate else 1]
        columns, rows = -(-page.imagewidth // wide), -(-page.imagelength // high)
        for plane in planes if separate else (0,):
            for row in range(top // high, -(-bottom // high)):
                for column in range(left // wide, -(-right // wide)):
                    segment = self._segment(level, (plane * rows + row) * columns + column)
                    if segment is not None:
                        at = (row * high - top, column * wide - left)
                        _paste(pixels, segment, at, plane if separate else None)
        return pixels

    def _level_for(self, asked: tuple[int, int], out: tuple[int, int] | None) -> int:
        """The coarsest level that still has as many pixels as `out` asks for."""
        if out is None:
            return 0
        fits = [
            k
            for k, page in self._levels.items()
            if k != _MASK
            and asked[0] * page.imagelength >= out[0] * self.size[0]
            and asked[1] * page.imagewidth >= out[1] * self.size[1]
        ]
        return max(fits, default=0)

    def _segment(self, level: int, index: int) -> np.ndarray | None:
        """A decoded tile or strip (h, w, samples), None where the file leaves it out; the last ones are kept."""
        key = (level, index)
        if key in self._segments:
            self._segments.move_to_end(key)
            return self._segments[key]
        page = self._levels[level]
        try:
            offset, length = page.dataoffsets[index], page.databytecounts[index]
            handle = self._file.filehandle
            handle.seek(offset)
            data = handle.read(length) if length else None
            if data is not None and len(data) < length:
                raise ValueError(f"the file ends inside segment {index}")
            decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        except Exception as error:  # codecs fail with anything
            raise UserError(f"segment {index} cannot be read ({error})", where=self.name, fix=BROKEN) from error
        segment = None if decoded is None else _uniform(decoded[0])
        self._segments[key] = segment
        self._held += 0 if segment is None else segment.nbytes
        while self._held > CACHE_MB * 2**20 and len(self._segments) > 1:
            _, old = self._segments.popitem(last=False)
            self._held -= 0 if old is None else old.nbytes
        return segment

    def close(self) -> None:
        """See `Source.close`."""
        self._segments.clear()
        self._file.close()


def _smaller(file: Any, page: Any) -> list[Any]:
    """The smaller copies of the first page, finest first: its sub-images, or reduced pages that follow.

    The library's own search for series is not asked: of OME-TIFFs and others it opens further files that the text names.
    """
    below = list(page.pages) if page.subifds else []
    if not below:
        for number in range(1, min(len(file.pages), _MOST_LEVELS)):
            below.append(file.pages[number])
    levels, last = [], page
    for one in below:
        level = one.aspage()
        smaller = level.imagewidth < last.imagewidth and level.imagelength < last.imagelength
        alike = (level.dtype, level.samplesperpixel, level.photometric) == (
            page.dtype,
            page.samplesperpixel,
            page.photometric,
        )
        if smaller and alike and (page.subifds or level.is_reduced):
            levels.append(level)
            last = level
    return levels


def _uniform(segment: np.ndarray) -> np.ndarray:
    """A decoded segment as (h, w, samples)."""
    return segment.reshape(segment.shape[-3:]) if segment.ndim > 3 else segment


def _paste(pixels: np.ndarray, segment: np.ndarray, at: tuple[int, int], plane: int | None) -> None:
    """Copy the part of `segment` (h, w, samples) that lies in `pixels` when its corner is placed `at` (y, x)."""
    y, x = at
    y1, x1 = max(0, y), max(0, x)
    y2, x2 = min(pixels.shape[0], y + segment.shape[0]), min(pixels.shape[1], x + segment.shape[1])
    if y2 <= y1 or x2 <= x1:
        return
    part = segment[y1 - y : y2 - y, x1 - x : x2 - x]
    if plane is None:
        pixels[y1:y2, x1:x2] = part[:, :, : pixels.shape[2]]
    else:
        pixels[y1:y2, x1:x2, plane] = part[:, :, 0]
