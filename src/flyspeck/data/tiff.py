"""TIFFs that Pillow cannot read whole: two or more bands, 16 bits a colour, signed and floating-point values.

The header is read by Pillow's own directory reader, which needs no extra; the pixels by tifffile (extra `tiff`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
_GDAL, _NODATA = 42112, 42113
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2
_ALPHA = (1, 2)  # of ExtraSamples: associated, not associated
_KINDS = {1: "uint", 2: "int", 3: "float", 4: "uint"}


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


def is_tiff(prefix: bytes) -> bool:
    """Whether a file that begins so is a TIFF."""
    return prefix[:4] in MAGIC


def read_header(path: Path) -> TiffHeader:
    """The header of a TIFF. Raises SyntaxError and the like for a broken one."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[2:4] in (b"+\0", b"\0+"):
            head += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
    return _header(tags)


def _header(tags: Any) -> TiffHeader:
    samples = int(tags.get(_SAMPLES, 1))
    bits = tags.get(_BITS, (1,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    kinds = tags.get(_KIND, (1,))
    kind = _KINDS.get(kinds[0] if isinstance(kinds, tuple) else kinds, "complex")
    depth = bits[0] if len(set(bits)) == 1 else 0
    photometric = tags.get(_PHOTOMETRIC, _MINISBLACK)
    extra = tags.get(_EXTRA, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    tagged = [samples - len(extra) + place for place, meaning in enumerate(extra) if meaning in _ALPHA]
    alpha = tagged[0] if tagged and 0 <= tagged[0] < samples else None
    bands = samples - (alpha is not None)
    grey = photometric in (_MINISWHITE, _MINISBLACK)
    known = (photometric == _RGB and bands == 3) or (grey and bands == 1) or photometric not in (_RGB, 0, 1)
    plain = kind == "uint" and known and (depth <= 8 or (depth == 16 and samples == 1))
    if samples == 1 and depth == 32 and kind in ("uint", "int"):
        plain = (
            True  # whether they fit into 16 bits is looked at after decoding; floats Pillow may read in the wrong order
        )
    return TiffHeader(
        size=(int(tags[_HEIGHT]), int(tags[_WIDTH])),
        samples=samples,
        dtype=f"{kind}{depth}",
        alpha=alpha,
        plain=plain,
        coloured=photometric == _RGB and bands >= 3,
        orientation=int(tags.get(_ORIENTATION, 1)),
        value_range=_stated_range(tags, kind, depth),
        nodata=_nodata(tags),
    )


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
