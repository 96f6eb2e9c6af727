"""TIFFs that Pillow cannot read whole: two or more bands, 16 bits a colour, signed and floating-point values; what bands mean.

The header is read by Pillow's own directory reader, which needs no extra; the pixels by tifffile (extra `tiff`).
"""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""
DTYPES = ("uint8", "uint16", "int16", "float16", "float32", "float64")
"""Values that are read, whatever the number of bands."""
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _HIGHEST, _EXTRA, _KIND = (
    *(256, 257, 258, 262, 274, 277, 281, 338, 339),
)
_SUBFILE, _TILE_WIDTH, _TILE_HEIGHT, _STRIP_ROWS = 254, 322, 323, 278
_STRIP_OFFSETS, _TILE_OFFSETS, _PLANAR, _COLOUR_MAP = 273, 324, 284, 320
_GDAL, _NODATA = 42112, 42113
_PLACE = (33550, 33922, 34264, 34735)  # GeoTIFF: pixel scale, tie points, transformation, keys
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE = 0, 1, 2, 3
_MASK_BIT, _MOST_PAGES = 4, 64
_ALPHA = (1, 2)  # of ExtraSamples: associated, not associated
_KINDS = {1: "uint", 2: "int", 3: "float", 4: "uint"}


COLOURS = ("red", "green", "blue")
"""Meanings of bands, as GDAL calls them."""


class TiffFault(Exception):
    """Why a TIFF is not read: `what`, and what to do about it, or the `package` that is missing."""

    def __init__(self, what: str, *, fix: str = "", package: str = "") -> None:
        super().__init__(what)
        self.what, self.fix, self.package = what, fix, package


@dataclass(frozen=True)
class TiffHeader:
    """What the first directory of a TIFF says."""

    size: tuple[int, int]
    """(H, W) as stored, before the orientation counts."""
    samples: int
    """Values of a pixel, alpha included."""
    dtype: str
    """Type of a value: uint8, float32, …; `uint12` and the like where values are packed."""
    bits: int
    """Of a value, of the widest sample."""
    alpha: int | None
    """Which sample, from 0, is tagged as transparency."""
    plain: bool
    """Whether Pillow reads all of it: grey or colour of 8 bits, a palette, grey of 16 bits."""
    coloured: bool
    """Whether the first three samples are red, green and blue."""
    orientation: int
    value_range: tuple[float, float] | None
    """Lowest and highest value by the metadata (`MaxSampleValue`, GDAL's `NBITS`); None where it says nothing of use."""
    nodata: float | None
    inverted: bool = False
    """Whether 0 is white (`MINISWHITE`); of 8 bits and fewer Pillow turns it around."""
    meanings: tuple[str, ...] = ()
    """Of each sample, as GDAL calls it: red, green, blue, alpha, gray, palette, undefined."""
    placed: bool = False
    """Whether GeoTIFF's tags say where it lies on Earth."""
    piece: int = 0
    """Pixels of a tile or strip, which is decoded in one piece."""
    segments: tuple[int, int] = (1, 1)
    """Strips or tiles that it lists, and those that its size takes."""
    mask_page: int | None = None
    """Which page, from 0, is a mask of the first one (`NewSubfileType`)."""
    planes: bool = False
    """Whether each sample lies in a plane of its own."""
    palette: np.ndarray | None = field(default=None, compare=False)
    """Colours `(N, 3)` uint8 of a file that has a colour map and calls itself grey, read as GDAL does; Pillow passes it over."""

    @property
    def order(self) -> tuple[int, ...]:
        """The samples, from 0, in the order in which they are read: red, green, blue first where they are tagged, no alpha."""
        return reading_order(self.meanings)

    def numbers(self, grey: np.ndarray) -> np.ndarray:
        """Places in `palette`, from the values that Pillow gives (any shape): it spreads those of fewer than 8 bits to 255."""
        assert self.palette is not None
        return grey // (255 // (len(self.palette) - 1)) if len(self.palette) < 256 else grey


def has_colours(meanings: Sequence[str]) -> bool:
    """Whether one band each is red, green and blue."""
    return all(list(meanings).count(colour) == 1 for colour in COLOURS)


def alpha_of(meanings: Sequence[str]) -> int | None:
    """Which band, from 0, says how much of each pixel is there; None where none does, or several."""
    found = [number for number, meaning in enumerate(meanings) if meaning == "alpha"]
    return found[0] if len(found) == 1 else None


def reading_order(meanings: Sequence[str]) -> tuple[int, ...]:
    """The bands, from 0, in the order in which a detector gets them: red, green, blue, then the others; alpha is none of them.

    Bands that are not tagged as colours stay in the order of the file.
    """
    alpha = alpha_of(meanings)
    places = [number for number in range(len(meanings)) if number != alpha]
    if not has_colours(meanings):
        return tuple(places)
    colours = [list(meanings).index(colour) for colour in COLOURS]
    return (*colours, *(number for number in places if number not in colours))


def chosen_order(meanings: Sequence[str], channels: int | None) -> tuple[int, ...]:
    """As `reading_order`, for a detector of `channels` bands: of tagged colours with further bands it gets the colours where it
    takes three, and alpha counts as the last band where that makes the number.
    """
    order, alpha = reading_order(meanings), alpha_of(meanings)
    if alpha is not None and len(order) + 1 == channels:
        return (*order, alpha)
    return order[:3] if channels == 3 and has_colours(meanings) else order


def is_tiff(prefix: bytes) -> bool:
    """Whether a file that begins so is a TIFF."""
    return prefix[:4] in MAGIC


def read_header(path: Path) -> TiffHeader:
    """The header of a TIFF. Raises SyntaxError and the like for a broken one."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on broken tags: whoever decodes the file says what is wrong
        head = file.read(8)
        if head[2:4] in (b"+\0", b"\0+"):
            head += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        return _header(tags, _mask_page(file, head, tags))


def _mask_page(file: Any, head: bytes, first: Any) -> int | None:
    """Which of the next pages is a mask of the size of the first."""
    size, offset, seen = (first.get(_WIDTH), first.get(_HEIGHT)), first.next, set()
    for page in range(1, _MOST_PAGES):
        if not offset or offset in seen:
            return None
        seen.add(offset)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        with contextlib.suppress(SyntaxError, KeyError, TypeError, ValueError, IndexError, OSError, struct.error):
            file.seek(offset)
            tags.load(file)
            if int(tags.get(_SUBFILE, 0)) & _MASK_BIT and (tags.get(_WIDTH), tags.get(_HEIGHT)) == size:
                return page
            offset = tags.next
            continue
        return None
    return None


def _header(tags: Any, mask_page: int | None) -> TiffHeader:
    samples = int(tags.get(_SAMPLES, 1))
    bits = tags.get(_BITS, (1,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    kinds = tags.get(_KIND, (1,))
    kind = _KINDS.get(kinds[0] if isinstance(kinds, tuple) else kinds, "complex")
    depth = bits[0] if len(set(bits)) == 1 else 0
    photometric = tags.get(_PHOTOMETRIC, _MINISBLACK)
    extra = tags.get(_EXTRA, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    meanings = _meanings(samples, photometric, extra, str(tags.get(_GDAL, "")))
    palette = _hidden_palette(tags, depth) if (samples, kind, photometric) == (1, "uint", _MINISBLACK) else None
    meanings = meanings if palette is None else ("palette",)
    alpha = alpha_of(meanings)
    bands = samples - (alpha is not None)
    grey = photometric in (_MINISWHITE, _MINISBLACK)
    known = (photometric == _RGB and bands == 3) or (grey and bands == 1) or photometric not in (_RGB, 0, 1)
    known = known and reading_order(meanings) == tuple(range(bands))
    planes = samples > 1 and int(tags.get(_PLANAR, 1)) == 2
    known = known and not (planes and samples == 2)  # Pillow reads no grey with alpha in planes
    plain = kind == "uint" and known and (depth <= 8 or (depth == 16 and samples == 1))
    if samples == 1 and depth == 32 and kind in ("uint", "int"):
        plain = (
            True  # whether they fit into 16 bits is looked at after decoding; floats Pillow may read in the wrong order
        )
    return TiffHeader(
        size=(int(tags[_HEIGHT]), int(tags[_WIDTH])),
        samples=samples,
        dtype=f"{kind}{depth}",
        bits=max(int(each) for each in bits),
        alpha=alpha,
        plain=plain,
        coloured=has_colours(meanings),
        orientation=int(tags.get(_ORIENTATION, 1)),
        value_range=_stated_range(tags, kind, depth),
        nodata=_nodata(tags),
        inverted=photometric == _MINISWHITE,
        meanings=meanings,
        placed=any(tag in tags for tag in _PLACE),
        piece=_piece(tags),
        segments=_segments(tags, samples),
        mask_page=mask_page,
        planes=planes,
        palette=palette,
    )


def _hidden_palette(tags: Any, depth: int) -> np.ndarray | None:
    """The colour map, if it has a colour for each value; maps of 8-bit colours are written, too."""
    entries = tags.get(_COLOUR_MAP, ())
    if depth not in (1, 2, 4, 8, 16) or not isinstance(entries, tuple) or len(entries) != 3 * 2**depth:
        return None
    colours = np.array(entries, np.uint16).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _meanings(samples: int, photometric: int, extra: tuple[int, ...], metadata: str) -> tuple[str, ...]:
    """What each sample is: by GDAL's note where there is one, else by the colour space and the tags of the extra samples."""
    kinds = {_RGB: ("red", "green", "blue"), _PALETTE: ("palette",)}
    first = kinds.get(photometric, ("gray",) if photometric in (_MINISWHITE, _MINISBLACK) else ("undefined",))
    found = [*first, *["undefined"] * samples][:samples]
    if photometric not in (_RGB, _PALETTE, _MINISWHITE, _MINISBLACK) and samples - len(extra) == 3:
        found[:3] = ["red", "green", "blue"]  # YCbCr and Lab come out so
    for place, meaning in enumerate(extra):
        if meaning in _ALPHA and 0 <= samples - len(extra) + place < samples:
            found[samples - len(extra) + place] = "alpha"
    for item in re.finditer(r"<Item\b([^>]*)>([^<]*)</Item>", metadata):
        sample = re.search(r'sample="(\d+)"', item[1])
        if 'name="COLORINTERP"' in item[1] and sample and int(sample[1]) < samples:
            found[int(sample[1])] = item[2].strip().lower()
    return tuple(found)


def _segments(tags: Any, samples: int) -> tuple[int, int]:
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    tiled = _TILE_WIDTH in tags
    wide = int(tags[_TILE_WIDTH]) if tiled else width
    high = int(tags.get(_TILE_HEIGHT, height)) if tiled else min(height, int(tags.get(_STRIP_ROWS, height)))
    listed = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    planes = samples if int(tags.get(_PLANAR, 1)) == 2 else 1
    needed = planes * -(-width // max(1, wide)) * -(-height // max(1, high))
    if not isinstance(listed, tuple):
        return 1, needed
    return len(listed) or needed, needed  # old JPEGs in TIFF have other ways to say where they lie


def _piece(tags: Any) -> int:
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if _TILE_WIDTH in tags:
        return int(tags[_TILE_WIDTH]) * int(tags.get(_TILE_HEIGHT, height))
    return width * min(height, int(tags.get(_STRIP_ROWS, height)))


def _stated_range(tags: Any, kind: str, depth: int) -> tuple[float, float] | None:
    """Of 16-bit values that use fewer bits, as a camera or GDAL notes it."""
    if kind != "uint" or depth != 16:
        return None
    highest = tags.get(_HIGHEST)
    highest = max(highest) if isinstance(highest, tuple) and highest else highest
    bits = re.search(r'name="NBITS"[^>]*>\s*(\d+)\s*<', str(tags.get(_GDAL, "")))
    if bits:
        highest = 2 ** int(bits[1]) - 1
    return (0.0, float(highest)) if isinstance(highest, int) and 255 < highest < 65535 else None


def _nodata(tags: Any) -> float | None:
    with contextlib.suppress(ValueError):
        return float(str(tags.get(_NODATA, "")).strip("\0 "))
    return None


def read_samples(path: Path, header: TiffHeader) -> np.ndarray:
    """All samples `(H, W, S)` as stored, in the machine's byte order; raises TiffFault for values that are not read."""
    if header.dtype not in DTYPES:
        raise TiffFault(
            f"its pixels are {header.samples} bands of {header.dtype}",
            fix="convert it to 8 or 16 bits or float32",
        )
    with _tifffile(path) as file:
        page = file.pages[0]
        pixels = page.asarray()
        if page.axes == "YX":
            pixels = pixels[:, :, None]
        elif page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, 2)
        elif page.axes != "YXS":
            raise TiffFault(f"its pixels are laid out as {page.axes}", fix="write it as height x width x bands")
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


def read_mask(path: Path, page: int) -> np.ndarray:
    """The mask `(H, W)` bool in a page: which pixels of the first page are there. Raises TiffFault without tifffile."""
    with _tifffile(path) as file:
        return np.squeeze(file.pages[page].asarray()) > 0


@contextlib.contextmanager
def _tifffile(path: Path) -> Iterator[Any]:
    try:
        import tifffile
    except ImportError:
        raise TiffFault("tifffile is not installed", package="tifffile") from None
    with tifffile.TiffFile(path) as file:
        try:
            yield file
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise TiffFault("imagecodecs is not installed", package="imagecodecs") from None
            raise
