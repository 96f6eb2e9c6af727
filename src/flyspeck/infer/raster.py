"""Giant rasters by windows through GDAL (rasterio), and which libraries that read windows are there.

GDAL does not turn an image by its orientation tag; rasters do not carry one in practice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import PixelRule, ranges_text
from flyspeck.data.images import MAX_BANDS, check_bands
from flyspeck.data.nodata import is_nodata
from flyspeck.data.tiff import COLOURS, alpha_of, has_colours, reading_order
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.found_range import (
    is_sampled,
    measured_highest,
    range_of,
    stated_bits,
    stated_highest,
)
from flyspeck.infer.georeference import place_of
from flyspeck.infer.missing import at_size, both, shown
from flyspeck.infer.references import LOCAL_ONLY, covered
from flyspeck.infer.windows import BROKEN, CACHE_MB, OpenOptions, Source, chosen, refuse_without_range


def has_rasterio() -> bool:
    """Whether the extra `geo` is installed."""
    return find_spec("rasterio") is not None


def has_tifffile() -> bool:
    """Whether the extra `tiff` is installed."""
    return find_spec("tifffile") is not None


def has_pyvips() -> bool:
    """Whether the extra `vips` is installed."""
    return find_spec("pyvips") is not None


class RasterioSource(Source):
    """Anything that GDAL opens, with overviews, bands, masks and a coordinate system.

    Args:
        path: A local file; or a name that GDAL understands, as a string, for which nothing is forbidden.
        options: How it is opened; `options.allow_references` lifts the bar to other folders and computers.
        name: What messages call it.
        driver: The one driver that may open it; None: any.
        settings: Further configuration of GDAL.
        opener: Gives the file in place of the disk, as rasterio takes one.
    """

    plain: bool
    """Whether Pillow would give the same pixels: 8-bit grey or colour, with alpha or palette, or 16-bit grey."""
    masked: bool
    """Whether it says which pixels are there otherwise than by an alpha band."""
    lost: str
    """Why it has a place on Earth that cannot be given; "" where nothing is amiss."""
    piece: int
    """Pixels that are decoded at once: of a block."""

    def __init__(
        self,
        path: Path | str,
        options: OpenOptions,
        *,
        name: str,
        driver: str | None = None,
        settings: Mapping[str, Any] | None = None,
        opener: Callable[..., Any] | None = None,
    ) -> None:
        try:
            import rasterio
            import rasterio.errors
        except ImportError:
            raise missing_extra("rasterio", "geo") from None
        self._rasterio: Any = rasterio
        local = isinstance(path, Path) and not options.allow_references
        self._env: dict[str, Any] = {"GDAL_CACHEMAX": CACHE_MB, **(LOCAL_ONLY if local else {}), **(settings or {})}
        try:
            with rasterio.Env(**self._env), warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file: Any = rasterio.open(path, driver=driver, opener=opener)
        except Exception as error:  # GDAL's own errors are none of rasterio's
            raise UserError(
                f"not a raster that can be read ({_line(error)})", where=path, fix="convert it to TIFF"
            ) from error
        if self._file.count > MAX_BANDS:
            self._file.close()
            raise UserError(f"it has {self._file.count} bands, where {MAX_BANDS} are read", where=name)
        self._path = path if isinstance(path, Path) else None
        self.name = name
        self.size = (self._file.height, self._file.width)
        self.piece = max(rows * columns for rows, columns in self._file.block_shapes)
        try:
            with rasterio.Env(**self._env):
                place = place_of(self._file)
                self.geo, self.remark, self.lost = place.geo, place.remark, place.lost
                if self.lost and options.place:
                    fix = "gdalwarp it first, or choose other formats"
                    raise UserError(f"{self.lost}: map coordinates cannot be given", fix=fix)
                if self.lost:
                    self.remark = f"{self.lost}: coordinates are pixels"
                self._choose(options)
        except UserError as error:
            self.close()
            raise UserError(error.what, where=name, fix=error.fix) from None
        except Exception as error:
            self.close()
            raise UserError(
                f"its header cannot be read ({_line(error)})", where=name, fix="convert it to TIFF"
            ) from error

    def _choose(self, options: OpenOptions) -> None:
        """Which bands are read, what of them is there, and which values are black and white."""
        file = self._file
        count, dtype = file.count, file.dtypes[0]
        meanings = [colour.name for colour in file.colorinterp]
        if len(set(file.dtypes)) > 1:
            raise UserError(
                f"its bands are of different types: {', '.join(dict.fromkeys(file.dtypes))}", fix="convert it"
            )
        # Of a broken JPEG 2000 GDAL never finds the end of these.
        structure = {} if file.driver == "JP2OpenJPEG" else file.tags(ns="IMAGE_STRUCTURE")
        first = {**file.tags(1), **file.tags(1, ns="IMAGE_STRUCTURE")}
        bits = stated_bits({**file.tags(), **structure, **first})
        self._inverted = structure.get("MINISWHITE", "").upper() == "YES"
        if self._inverted and meanings[0] == "palette":  # GDAL makes one that says the same in 8 bits
            meanings[0] = "gray"
        self._palette = _palette(file) if meanings[0] == "palette" else None
        self._picked: list[int] | None = None
        if self._palette is not None:
            self._bands = [1]
            self._picked = [band - 1 for band in options.bands or (1, 2, 3)]
            check_bands([band + 1 for band in self._picked], 4)
            alpha, seen = None, [COLOURS[band] if band < 3 else "alpha" for band in self._picked]
        else:
            self._bands = chosen(options, meanings)
            alpha, seen = alpha_of(meanings), [meanings[band - 1] for band in self._bands]
        self.bands = len(seen)
        self.colours = _colours(seen)
        self._alpha = None if alpha is None or alpha + 1 in self._bands else alpha + 1
        nodata = [file.nodatavals[band - 1] for band in self._bands]
        self._nodata = nodata if any(value is not None for value in nodata) else None
        # The flags of an alpha band are the same bit; GDAL's own mask would count a band that is read as data, too.
        flags = [{flag.name for flag in one} for one in file.mask_flag_enums]
        self._mask = any("alpha" not in one and ("per_dataset" in one or not one) for one in flags)
        self._covered = self._where_covered()
        self.masked = self._nodata is not None or self._mask or self._covered is not None
        self.plain = self._is_plain(dtype, count, meanings, bits)
        top = 2**bits - 1 if bits is not None and dtype in ("uint8", "uint16") else 65535 if dtype == "uint16" else 255
        self._top = top
        self._rule, found = self._range(options, dtype, bits)
        refuse_without_range(self._rule, np.dtype(dtype))
        self.note = self._said(meanings, dtype, found)

    def _where_covered(self) -> np.ndarray | None:
        """Of a VRT that does not say what is missing: where it has sources (`covered`), unless that is everywhere."""
        if self._path is None or self._file.driver != "VRT" or self._nodata is not None or self._mask:
            return None
        try:
            rectangles = covered(self._path)
        except UserError:  # of one that was let through unread
            return None
        whole = np.array([0, 0, self.size[1], self.size[0]])
        if (
            rectangles is None
            or ((rectangles[:, :2] <= whole[:2]) & (rectangles[:, 2:] >= whole[2:])).all(axis=1).any()
        ):
            return None
        return rectangles

    def _is_plain(self, dtype: str, count: int, meanings: list[str], bits: int | None) -> bool:
        if self._inverted or (bits is not None and dtype == "uint8" and bits not in (1, 8)):
            return False
        if reading_order(meanings) != tuple(range(len(reading_order(meanings)))):
            return False
        alpha = meanings[-1] == "alpha" and count in (2, 4)
        return (dtype == "uint8" and (count in (1, 3) or alpha)) or (dtype, count) == ("uint16", 1)

    def _range(self, options: OpenOptions, dtype: str, bits: int | None) -> tuple[PixelRule, str]:
        """The rule for the values, and how its range was found where it was not given."""
        rule = replace(options.rule, bands=None)
        if rule.value_range is not None and rule.is_for(np.dtype(dtype)):
            self.value_range = rule.value_range
            return rule, ""
        found: Any = None
        said = ""
        if dtype == "uint8" and bits is not None and bits < 8 and self._palette is None:
            found, said = range_of(bits, None, sampled=False)
        elif dtype == "uint16" and options.find_range and self._palette is None:
            tags = [self._file.tags(band) for band in self._bands]
            stated = [stated_highest(one) for one in tags]
            if bits is not None:
                found, said = range_of(bits, None, sampled=False)
            elif None not in stated:
                highest = max(value for value in stated if value is not None)
                found, said = range_of(None, highest, sampled=False)
                said = said.replace("its values", "its statistics")
            else:
                turned, self._inverted = self._inverted, False
                highest = measured_highest(self.size, self._highest)
                found, said = range_of(None, highest, sampled=is_sampled(self.size))
                self._inverted = turned
        if found is None:
            return rule, ""
        self.value_range, self._top = found, int(found[0][1])
        return PixelRule(value_range=found, of=dtype, bits=8), said

    def _highest(self, x1: int, y1: int, x2: int, y2: int) -> float:
        values, there = self._values(x1, y1, x2, y2, None)
        kept = values if there is None else values[there]
        return float(kept.max()) if kept.size else float("nan")

    def _said(self, meanings: list[str], dtype: str, found: str) -> str:
        """How the values become pixels, where somebody might want it otherwise."""
        count = len(meanings)
        taken = ",".join(map(str, self._bands))
        moved = self._palette is None and self._bands != list(range(1, len(self._bands) + 1))
        if count in (1, 3) and dtype == "uint8" and not moved and not self._inverted and not found:
            return ""
        pairs = self._rule.value_range if self._rule.is_for(np.dtype(dtype)) else None
        text = ranges_text(pairs or ((0, 65535 if dtype == "uint16" else 255),))
        named = f" ({', '.join(meanings[band - 1] for band in self._bands)})" if moved and has_colours(meanings) else ""
        said = f"bands {taken}{named} of {count}, {dtype} {text} as black to white"
        said += f" ({found})" if found else ""
        return said + (", inverted: its 0 is white" if self._inverted else "")

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`; a coarser `out` is taken from the overviews where the file has them."""
        coarser = out if out is not None and out[0] <= y2 - y1 and out[1] <= x2 - x1 and self._palette is None else None
        values, there = self._values(x1, y1, x2, y2, coarser)
        return shown(values, self._rule, there, out)

    def _values(
        self, x1: int, y1: int, x2: int, y2: int, coarser: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The file's values `(h, w, C)`, palette looked up and white turned to the top, and which pixels are there."""
        methods = self._rasterio.enums.Resampling
        asked = {
            "window": ((y1, y2), (x1, x2)),
            "resampling": methods.average if coarser else methods.nearest,
        }
        shape = coarser or (y2 - y1, x2 - x1)
        try:
            with self._rasterio.Env(**self._env):
                values = self._file.read(self._bands, out_shape=(len(self._bands), *shape), **asked)
                there = None
                if self._alpha is not None:
                    there = self._file.read(self._alpha, out_shape=shape, **asked) > 0
                if self._mask:
                    there = both(there, self._file.dataset_mask(out_shape=shape, window=asked["window"]) > 0)
        except Exception as error:
            raise UserError(
                f"the window {x1},{y1} to {x2},{y2} cannot be read ({_line(error)})", where=self.name, fix=BROKEN
            ) from error
        if self._covered is not None:
            there = both(there, at_size(_inside(self._covered, (x1, y1, x2, y2)), shape))
        if self._nodata is not None:
            gone = np.ones(shape, bool)
            for plane, nodata in zip(values, self._nodata, strict=True):
                lacks = np.zeros(shape, bool) if nodata is None else is_nodata(plane, nodata)
                if plane.dtype.kind == "f":
                    plane[lacks] = np.nan
                gone &= lacks
            there = both(there, ~gone)
        values = np.ascontiguousarray(np.moveaxis(values, 0, 2))
        if self._inverted:
            top = values.dtype.type(self._top)
            values = top - np.minimum(values, top) if values.dtype.kind == "u" else values
        if self._palette is not None and self._picked is not None:
            colours = self._palette[values[:, :, 0]]
            if 3 not in self._picked and (self._palette[:, 3] == 0).any():
                there = both(there, colours[:, :, 3] > 0)
            values = np.ascontiguousarray(colours[:, :, self._picked])
        return values, there

    def close(self) -> None:
        """See `Source.close`."""
        self._file.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _inside(rectangles: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Which pixels `(h, w)` bool of a window lie in one of the rectangles `(N, 4)`."""
    x1, y1, x2, y2 = window
    there = np.zeros((y2 - y1, x2 - x1), bool)
    met = (rectangles[:, 0] < x2) & (rectangles[:, 2] > x1) & (rectangles[:, 1] < y2) & (rectangles[:, 3] > y1)
    for left, top, right, bottom in rectangles[met].tolist():
        there[max(0, top - y1) : bottom - y1, max(0, left - x1) : right - x1] = True
    return there


def _colours(meanings: list[str]) -> tuple[int, int, int] | None:
    """Places of red, green and blue, where all are there."""
    if not has_colours(meanings):
        return None
    return meanings.index("red"), meanings.index("green"), meanings.index("blue")


def _palette(file: Any) -> np.ndarray:
    """Look-up table `(256 or 65536, 4)` uint8 of a palette raster; values that it does not name are not there."""
    table = np.zeros((65536 if file.dtypes[0] == "uint16" else 256, 4), np.uint8)
    for value, colour in file.colormap(1).items():
        table[value] = colour
    return table
