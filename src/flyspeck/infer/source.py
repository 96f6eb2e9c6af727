"""From what a command line names (files, folders, annotations) to a list of `Item`s, and from an item to its open `Source`.

The list is made first, cheap and in a fixed order; each image is opened when its turn comes. Only formats that cannot do better
are decoded whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flyspeck.data.images import EXTENSIONS, read_image, read_size
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.data.readers.coco import read_listing
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer import raster
from flyspeck.infer.windows import ArraySource, OpenOptions, Source
from flyspeck.plugins import UnknownPart

_TIFF = (".tif", ".tiff")
_BOMB = 100  # pixels a byte; photographs have 1 to 10, blank scans some tens
_ONE_PIECE = 50_000_000  # pixels; larger TIFFs are read by windows where an extra is there to do it


@dataclass(frozen=True)
class Item:
    """An image to look at, not opened yet."""

    name: str
    """What messages and outputs call it."""
    image: Path | np.ndarray
    image_id: int | str


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
    """The images that `sources` name (files, folders, one file of annotations), and the categories of the annotations.

    Folders are searched to the bottom, in the order of names. Images of annotations keep their ids; others are numbered from
    1. Raises UserError for a source that is not there, holds no image, or for annotations beside other sources.
    """
    paths = [Path(s) for s in sources]
    tables = [p for p in paths if _holds_annotations(p)]
    if tables:
        if len(paths) > 1:
            raise UserError("a file of annotations beside other sources", where=tables[0], fix="give it alone")
        # Of a COCO json only the list of images is wanted, whatever its annotations are worth.
        return _coco_items(tables[0]) if tables[0].suffix.lower() == ".json" else _annotated_items(tables[0])
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
    """Names and numbers of an annotation file's categories, in its order."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def _holds_annotations(path: Path) -> bool:
    """Whether a file is none of images: by its ending where that is known, else by what a reader of annotations sees."""
    ending = path.suffix.lower()
    if ending == ".json" or ending in EXTENSIONS or ending == ".npy" or not path.is_file():
        return ending == ".json"
    try:
        format_of(path)
    except UnknownPart:
        return False
    return True


def _annotated_items(path: Path) -> tuple[list[Item], Categories]:
    """Images of annotations in any other format that is read, those of plugins too."""
    table = read_annotations(path)
    if not len(table):
        raise UserError("lists no image", where=path)
    ids = [key if isinstance(key, str) else int(key) for key in table.image_ids]
    items = [Item(name, table.path(row), ids[row]) for row, name in enumerate(table.file_names)]
    return items, Categories(table.classes, table.category_ids)


def _coco_items(path: Path) -> tuple[list[Item], Categories]:
    """Images of a COCO json, as the reader of annotations takes them; its annotations are not looked at."""
    draft = read_listing(path)
    if not draft.file_names:
        fix = "it needs images with id and file_name, and categories"
        raise UserError("lists no image", where=path, fix=draft.problems[0] if draft.problems else fix)
    items = zip(draft.image_ids, draft.file_names, strict=True)
    table = Categories(tuple(draft.names), tuple(draft.category_ids))
    return [Item(name, draft.root / name, image_id) for image_id, name in items], table
