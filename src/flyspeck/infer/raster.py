"""Giant rasters by windows, through whichever optional library is there: rasterio, tifffile or pyvips.

None of them turns an image by its orientation tag except pyvips; giant rasters do not carry one in practice.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import ranges_text
from flyspeck.data.enlarge import resample
from flyspeck.data.images import check_bands
from flyspeck.data.tiff import DTYPES
from flyspeck.errors import UserError, missing_extra
from flyspeck.geo import GeoReference
from flyspeck.infer.windows import OpenOptions, Source, refuse_without_range

_CACHE_MB = 160  # decoded blocks kept: two rows of 512 px blocks across 40,000 px of RGB are 120 MB
_VIPS_TYPES = ("uchar", "ushort", "short", "float")
_BROKEN = "copy the file again; what was read so far is kept"


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
    """Anything that GDAL opens: GeoTIFF, BigTIFF, with overviews, bands and a coordinate system."""

    plain: bool
    """Whether Pillow would give the same pixels: 8-bit grey or colour, with alpha or palette, or 16-bit grey."""

    def __init__(self, path: Path, options: OpenOptions, *, name: str) -> None:
        try:
            import rasterio
            import rasterio.errors
        except ImportError:
            raise missing_extra("rasterio", "geo") from None
        self._rasterio: Any = rasterio
        self._env: dict[str, Any] = {"GDAL_CACHEMAX": _CACHE_MB}
        try:
            with rasterio.Env(**self._env), warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file: Any = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise UserError(f"not a raster that can be read ({error})", where=path, fix="convert it to TIFF") from error
        self.name = name
        self.size = (self._file.height, self._file.width)
        if self._file.crs is not None or not self._file.transform.is_identity:
            code = self._file.crs.to_epsg() if self._file.crs else None
            text = f"EPSG:{code}" if code else self._file.crs.to_wkt() if self._file.crs else None
            self.geo = GeoReference(tuple(self._file.transform)[:6], text)
        count, dtype = self._file.count, self._file.dtypes[0]
        meanings = [c.name for c in self._file.colorinterp]
        self._palette = _palette(self._file) if meanings[0] == "palette" else None
        self.plain = (dtype == "uint8" and (count in (1, 3) or (meanings[-1] == "alpha" and count in (2, 4)))) or (
            dtype,
            count,
        ) == ("uint16", 1)
        try:
            self._bands = _chosen(options, meanings)
            self._rule = replace(options.rule, bands=None)
            refuse_without_range(self._rule, np.dtype(dtype))
        except UserError as error:
            self.close()
            raise UserError(error.what, where=path, fix=error.fix) from None
        self.bands = len(self._bands) if self._palette is None else 3
        self.colours = _colours([meanings[band - 1] for band in self._bands])
        if count not in (1, 3) or dtype != "uint8":
            pairs = self._rule.value_range if self._rule.is_for(np.dtype(dtype)) else None
            said = ranges_text(pairs or ((0, 65535 if dtype == "uint16" else 255),))
            self.note = f"bands {','.join(map(str, self._bands))} of {count}, {dtype} {said} as black to white"

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`; a coarser `out` is taken from the overviews where the file has them."""
        window = ((y1, y2), (x1, x2))
        coarser = out if out is not None and out[0] <= y2 - y1 and out[1] <= x2 - x1 and self._palette is None else None
        shape = (len(self._bands), *(coarser or (y2 - y1, x2 - x1)))
        try:
            with self._rasterio.Env(**self._env):
                pixels = self._file.read(
                    self._bands,
                    window=window,
                    out_shape=shape,
                    resampling=self._rasterio.enums.Resampling.average
                    if coarser
                    else self._rasterio.enums.Resampling.nearest,
                )
        except self._rasterio.errors.RasterioError as error:
            raise UserError(
                f"the window {x1},{y1} to {x2},{y2} cannot be read ({error})", where=self.name, fix=_BROKEN
            ) from error
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
        if self._palette is not None:
            pixels = self._palette[pixels[:, :, 0]]
        return resample(self._rule.scaled(pixels), out)

    def close(self) -> None:
        """See `Source.close`."""
        self._file.close()


def _chosen(options: OpenOptions, meanings: list[str]) -> list[int]:
    """The bands to read, from 1: those asked for, or all but alpha, which counts where it makes the detector's number."""
    if options.bands is not None:
        check_bands(options.bands, len(meanings))
        return list(options.bands)
    seen = [number for number, meaning in enumerate(meanings, 1) if meaning != "alpha"]
    return list(range(1, len(meanings) + 1)) if len(seen) + 1 == len(meanings) == options.channels else seen


def _colours(meanings: list[str]) -> tuple[int, int, int] | None:
    """Places of red, green and blue, where all are there."""
    if not {"red", "green", "blue"} <= set(meanings):
        return None
    return meanings.index("red"), meanings.index("green"), meanings.index("blue")


def _palette(file: Any) -> np.ndarray:
    """Look-up table `(256 or 65536, 3)` uint8 of a palette raster."""
    table = np.zeros((65536 if file.dtypes[0] == "uint16" else 256, 3), np.uint8)
    for value, colour in file.colormap(1).items():
        table[value] = colour[:3]
    return table


class TifffileSource(Source):
    """A tiled or striped TIFF without GDAL: only the segments under a window are decoded."""

    def __init__(self, path: Path, options: OpenOptions | None = None, *, name: str) -> None:
        options = options or OpenOptions()
        try:
            import tifffile
        except ImportError:
            raise missing_extra("tifffile", "tiff") from None
        try:
            self._file: Any = tifffile.TiffFile(path)
            # The pages of a pyramid, finest first; a plain file has one level.
            self._levels = [level.pages[0].aspage() for level in self._file.series[0].levels]
        except (tifffile.TiffFileError, OSError, IndexError) as error:
            raise UserError(f"not a TIFF that can be read ({error})", where=path, fix="copy it again") from error
        self.name = name
        page = self._levels[0]
        self.size = (page.imagelength, page.imagewidth)
        if page.dtype.name not in DTYPES or page.photometric.name not in ("RGB", "MINISBLACK", "YCBCR"):
            raise UserError(
                f"its pixels are {page.dtype} {page.photometric.name.lower()}",
                where=path,
                fix="pip install 'flyspeck[geo]'",
            )
        self._samples = page.samplesperpixel
        alpha = {
            page.samplesperpixel - len(page.extrasamples) + k for k, e in enumerate(page.extrasamples) if e in (1, 2)
        }
        meanings = ["alpha" if k in alpha else "undefined" for k in range(self._samples)]
        try:
            self._chosen = [band - 1 for band in _chosen(options, meanings)]
            self._rule = replace(options.rule, bands=None)
            refuse_without_range(self._rule, page.dtype)
        except UserError as error:
            self._file.close()
            raise UserError(error.what, where=path, fix=error.fix) from None
        self.bands = len(self._chosen)
        self._segments: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._held = 0

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`; a coarser `out` is taken from the pyramid where the file has one."""
        level = self._level_for((y2 - y1, x2 - x1), out)
        page = self._levels[level]
        fy, fx = page.imagelength / self.size[0], page.imagewidth / self.size[1]
        left, top = int(x1 * fx), int(y1 * fy)
        right, bottom = max(left + 1, round(x2 * fx)), max(top + 1, round(y2 * fy))
        pixels = np.zeros((bottom - top, right - left, self._samples), page.dtype)
        high, wide = page.chunks[0 if page.planarconfig == 1 else -2], page.chunks[1 if page.planarconfig == 1 else -1]
        columns, rows = -(-page.imagewidth // wide), -(-page.imagelength // high)
        for plane in self._chosen if page.planarconfig == 2 else (0,):
            for row in range(top // high, -(-bottom // high)):
                for column in range(left // wide, -(-right // wide)):
                    segment = self._segment(level, (plane * rows + row) * columns + column)
                    if segment is not None:
                        _paste(
                            pixels,
                            segment,
                            (row * high - top, column * wide - left),
                            plane if page.planarconfig == 2 else None,
                        )
        if self._chosen != list(range(self._samples)):
            pixels = np.ascontiguousarray(pixels[:, :, self._chosen])
        return resample(self._rule.scaled(pixels), out)

    def _level_for(self, asked: tuple[int, int], out: tuple[int, int] | None) -> int:
        """The coarsest level that still has as many pixels as `out` asks for."""
        if out is None:
            return 0
        fits = [
            k
            for k, page in enumerate(self._levels)
            if asked[0] * page.imagelength >= out[0] * self.size[0]
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
            raise UserError(f"segment {index} cannot be read ({error})", where=self.name, fix=_BROKEN) from error
        segment = None if decoded is None else decoded[0]
        self._segments[key] = segment
        self._held += 0 if segment is None else segment.nbytes
        while self._held > _CACHE_MB * 2**20 and len(self._segments) > 1:
            _, old = self._segments.popitem(last=False)
            self._held -= 0 if old is None else old.nbytes
        return segment

    def close(self) -> None:
        """See `Source.close`."""
        self._segments.clear()
        self._file.close()


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


class VipsSource(Source):
    """Any image that libvips reads; formats without windows are unpacked to a temporary file, not to memory."""

    def __init__(self, path: Path, options: OpenOptions | None = None, *, name: str) -> None:
        options = options or OpenOptions()
        try:
            import pyvips
        except ImportError:
            raise missing_extra("pyvips", "vips") from None
        self._vips: Any = pyvips
        try:
            image = pyvips.Image.new_from_file(str(path), access="random").autorot()
            if options.bands is not None:
                check_bands(options.bands, image.bands)
                image = image.extract_band(options.bands[0] - 1).bandjoin(
                    [image.extract_band(band - 1) for band in options.bands[1:]]
                )
            elif image.hasalpha() and image.bands != options.channels:
                image = image.flatten(background=[0.0])
            if image.format not in _VIPS_TYPES:
                image = image.colourspace("srgb")
        except pyvips.Error as error:
            raise UserError(f"libvips cannot read it ({_line(error)})", where=path, fix="convert it to TIFF") from error
        self.name, self._rule, self.bands = name, replace(options.rule, bands=None), image.bands
        self._image: Any = image
        self.size = (image.height, image.width)

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        try:
            pixels = self._image.crop(x1, y1, x2 - x1, y2 - y1).numpy()
        except self._vips.Error as error:
            raise UserError(f"the window cannot be read ({_line(error)})", where=self.name, fix=_BROKEN) from error
        return resample(self._rule.scaled(np.array(pixels).reshape(y2 - y1, x2 - x1, -1)), out)

    def close(self) -> None:
        """See `Source.close`."""
        self._image = None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
