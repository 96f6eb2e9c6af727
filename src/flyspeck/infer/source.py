"""Images as windows: one small interface over arrays, image files, memory-mapped arrays and giant rasters.

A `Source` is opened, gives windows of pixels, and is closed; only formats that cannot do better are decoded whole. What a
command line names (files, folders, a COCO json) becomes a list of `Item`s first, cheap and in a fixed order; each is opened
when its turn comes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.enlarge import resample
from flyspeck.data.images import EXTENSIONS, MAX_PIXELS, read_image, read_size
from flyspeck.data.readers.assemble import find_root
from flyspeck.data.readers.coco import usual_places
from flyspeck.errors import UserError, missing_extra

_TIFF = (".tif", ".tiff")
_BOMB = 100  # pixels a byte; photographs have 1 to 10, blank scans some tens
_ONE_PIECE = 50_000_000  # pixels; larger TIFFs are read by windows where an extra is there to do it


@dataclass(frozen=True)
class GeoReference:
    """Where a raster lies on Earth."""

    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): x_map = a * x + b * y + c, y_map = d * x + e * y + f for pixel corners (x, y)."""
    crs: str | None
    """The coordinate system as `EPSG:n` or WKT; None where the file does not say."""


class Source(ABC):
    """One image, read by windows. Not thread-safe: one thread opens, reads and closes it."""

    name: str
    size: tuple[int, int]
    """(H, W) in pixels."""
    geo: GeoReference | None = None
    note: str = ""
    """How the file's values became the pixels, where that is a choice: bands and scale."""

    @abstractmethod
    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """The window as `(h, w, C)` uint8 or uint16, its own memory; resampled to `out` (h, w) where that is given.

        Raises UserError where the file is broken.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back files and memory."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ArraySource(Source):
    """An image in memory, or mapped into it: `(H, W)` or `(H, W, C)`, uint8 or uint16."""

    def __init__(self, pixels: np.ndarray, *, name: str = "array") -> None:
        if pixels.ndim not in (2, 3) or pixels.dtype not in (np.uint8, np.uint16) or 0 in pixels.shape:
            raise UserError(
                f"an image must be (H, W) or (H, W, C) of uint8 or uint16, not {pixels.shape} of {pixels.dtype}",
                where=name,
                fix="convert it first",
            )
        self.name, self.size = name, (pixels.shape[0], pixels.shape[1])
        self._pixels: np.ndarray | None = pixels if pixels.ndim == 3 else pixels[:, :, None]

    def read(self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        if self._pixels is None:
            raise ValueError(f"{self.name} is closed")
        return resample(np.array(self._pixels[y1:y2, x1:x2]), out)

    def close(self) -> None:
        """See `Source.close`."""
        self._pixels = None


@dataclass(frozen=True)
class Item:
    """An image to look at, not opened yet."""

    name: str
    """What messages and outputs call it."""
    image: Path | np.ndarray
    image_id: int | str


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How image files are opened."""

    max_pixels: int | None = MAX_PIXELS
    """Largest image that is decoded in one piece; None lifts the limit."""
    bands: tuple[int, ...] | None = None
    """Bands of a raster to read, counted from 1; None takes the first three, or the first of fewer than three."""
    value_range: tuple[float, float] | None = None
    """For rasters: values that become black and white. Needed for pixels that are neither 8 nor 16 bits unsigned."""


def open_source(image: Path | str | np.ndarray, options: OpenOptions | None = None, *, name: str = "") -> Source:
    """Open an image: an array, a `.npy` file (memory-mapped), a raster by windows, or an image file decoded whole.

    A TIFF with a coordinate system, or too large for one piece, is read by windows: through rasterio, tifffile or pyvips,
    the first that is installed. Raises UserError.
    """
    options = options or OpenOptions()
    if isinstance(image, np.ndarray):
        return ArraySource(image, name=name or "array")
    path = Path(image)
    if path.suffix.lower() == ".npy":
        return _memory_mapped(path, name or str(path))
    if not path.is_file():
        raise UserError("no such image file", where=path, fix="check the path")
    if path.suffix.lower() in _TIFF:
        source = _raster(path, options, name or str(path))
        if source is not None:
            return source
    if options.max_pixels is not None:
        height, width = read_size(path)
        if height * width > options.max_pixels:
            return _by_vips(path, options, name or str(path), height * width)
    return ArraySource(read_image(path, max_pixels=options.max_pixels), name=name or str(path))


def _memory_mapped(path: Path, name: str) -> Source:
    try:
        return ArraySource(np.load(path, mmap_mode="r", allow_pickle=False), name=name)
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"not an array file ({error})", where=path, fix="write it with numpy.save") from error


def _raster(path: Path, options: OpenOptions, name: str) -> Source | None:
    """A TIFF by windows, or None where it is small and plain enough to be decoded as any image is."""
    from flyspeck.infer import raster

    if raster.has_rasterio():
        source = raster.RasterioSource(path, options, name=name)
        height, width = source.size
        chosen = options.bands is not None or options.value_range is not None
        if chosen or source.geo is not None or height * width > _ONE_PIECE or not source.plain:
            return source
        source.close()
        return None
    if options.bands is not None or options.value_range is not None:
        raise missing_extra("rasterio", "geo")
    height, width = read_size(path)
    if height * width > _ONE_PIECE and raster.has_tifffile():
        return raster.TifffileSource(path, name=name)
    return None


def _by_vips(path: Path, options: OpenOptions, name: str, pixels: int) -> Source:
    from flyspeck.infer import raster

    if raster.has_pyvips():
        if path.suffix.lower() not in _TIFF and pixels > _BOMB * path.stat().st_size:
            raise UserError(
                f"{pixels / 1e6:.0f} megapixels in {path.stat().st_size / 1e6:.1f} MB, more than a photograph can be packed",
                where=path,
                fix="raise the limit (--max-megapixels) if the file is to be trusted",
            )
        return raster.VipsSource(path, name=name)
    extra = "geo" if path.suffix.lower() in _TIFF else "vips"
    raise UserError(
        f"{pixels / 1e6:.0f} megapixels are over the limit of {(options.max_pixels or 0) / 1e6:g} for one piece",
        where=path,
        fix=f"pip install 'flyspeck[{extra}]' to read it by windows, or raise the limit if the file is to be trusted",
    )


def find_items(sources: Sequence[str | Path]) -> tuple[list[Item], Categories | None]:
    """The images that `sources` name (files, folders, one COCO json), and the categories of the json.

    Folders are searched to the bottom, in the order of names. Images of a COCO json keep their ids; others are numbered from
    1. Raises UserError for a source that is not there, holds no image, or for a json beside other sources.
    """
    paths = [Path(s) for s in sources]
    tables = [p for p in paths if p.suffix.lower() == ".json"]
    if tables:
        if len(paths) > 1:
            raise UserError("a COCO json beside other sources", where=tables[0], fix="give it alone")
        return _coco_items(tables[0])
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise UserError("no image in this folder", where=path, fix=f"known endings: {_endings()}")
            found += [(str(p.relative_to(path)), p) for p in inside]
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise UserError("no such image or folder", where=path, fix="check the path")
    names = [name for name, _ in found]
    if len(set(names)) < len(names):  # the same name from two folders
        found = [(str(path), path) for _, path in found]
    return [Item(name, path, number) for number, (name, path) in enumerate(found, start=1)], None


def _endings() -> str:
    return " ".join(sorted(EXTENSIONS))


@dataclass(frozen=True)
class Categories:
    """Names and numbers of a COCO json's categories, in file order."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def _coco_items(path: Path) -> tuple[list[Item], Categories]:
    """Images of a COCO json; only `images` and `categories` are looked at."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except (ValueError, OSError) as error:
        raise UserError(f"not a json file ({error})", where=path) from error
    try:
        images, categories = content["images"], content["categories"]
        names = [(image["id"], str(image["file_name"])) for image in images]
        table = Categories(tuple(str(c["name"]) for c in categories), tuple(int(c["id"]) for c in categories))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"not a COCO json ({error})", where=path, fix="it needs images with id and file_name, and categories"
        ) from error
    if not names:
        raise UserError("lists no image", where=path)
    root = find_root(usual_places(path), [name for _, name in names])
    return [Item(name, root / name, image_id) for image_id, name in names], table
