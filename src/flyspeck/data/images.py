"""Image files to arrays: one reader for every odd kind of file, NumPy and Pillow only.

What comes out is always upright (EXIF, XMP and TIFF orientation applied) and `(H, W, C)` with C = 1 or 3:

========================  ===================================================================================
file                      array
========================  ===================================================================================
grey, 1-bit               uint8, C = 1; a 1-bit image has the values 0 and 255
16-bit grey               uint16, C = 1, the file's own values
RGB, palette, YCbCr, LAB  uint8, C = 3; a palette is looked up, 16-bit RGB (PNG) is cut to its upper 8 bits
CMYK                      uint8, C = 3, by Pillow's plain formula (no colour profile)
HEIF, JPEG XL             as RGB or grey of 8 bits; need the extras `heif` and `jxl`
alpha, transparent key    composited onto black, so that colours hidden under transparency never reach a network
several frames            the first one
========================  ===================================================================================

Files are told by their content, not by their name. Only the raster formats in `FORMATS` are opened: others that Pillow
knows can start programs (EPS) or have no signature to check. Nothing global in Pillow is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from flyspeck.errors import UserError, missing_extra

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
"""Pillow's names of the formats that are opened."""

EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "tif", "tiff", "bmp", "dib", "gif"),
        *("jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm", "avif"),
        *(("heic", "heif") if find_spec("pi_heif") else ()),
        *(("jxl",) if find_spec("imagecodecs") else ()),
    )
)
"""Lower-case file name endings that a search for images in a folder should take."""

_EXTRAS = {".heic": "heif", ".heif": "heif", ".jxl": "jxl"}
UNREAD: dict[str, str] = {
    **{ending: extra for ending, extra in _EXTRAS.items() if ending not in EXTENSIONS},
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".psd", ".exr", ".hdr"), ""),
}
"""Endings of images that are not read here, with the extra that would; a search for images must not pass over them in silence."""

MAX_PIXELS = 200_000_000
"""Largest image that is decoded in one piece unless the caller allows more; bigger ones are read by windows."""

_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path | str, *, channels: int | None = None, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """The image in a file as `(H, W, C)` uint8, or uint16 for 16-bit grey, upright; see the table above.

    `channels` 1 or 3 converts (grey to colour by repetition, colour to grey by ITU-R 601 luma); None keeps the
    file's own. A header that claims more than `max_pixels` is refused before anything is decoded; None lifts the limit.
    Raises UserError with the path for a file that is missing, truncated, too big, or no image.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, not {channels}")
    with _explained(path), _opened(path, max_pixels) as image:
        image.load()
        orientation = _exif_orientation(image)
        pixels = _to_array(image, channels)
    return _upright(pixels, orientation)


def read_size(path: Path | str) -> tuple[int, int]:
    """`(H, W)` of the upright image, from the header alone: no pixel is decoded. Errors as for `read_image`."""
    with _explained(path), _opened(path, None) as image:
        width, height = image.size
        # Pillow swaps the size of a TIFF itself; asking a PNG for its EXIF the usual way would decode it whole.
        if image.format == "TIFF":
            return height, width
        if image.format == "PNG":
            orientation = _png_orientation(image, Path(path))
        else:
            orientation = _exif_orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


@contextmanager
def _opened(path: Path | str, max_pixels: int | None) -> Iterator[Image.Image]:
    """The file opened by the plugin that knows its first bytes.

    Image.open is not used: its own limit on pixels is one global number that warns at half of what it allows, so
    respecting `max_pixels` would mean changing global state, or a warning that is not true.
    """
    path = Path(path)
    Image.init()
    with path.open("rb") as file:
        prefix = file.read(16)
        special = _by_extra(prefix, file)
        if special is not None:
            yield _within(special, path, max_pixels)
            return
        for name in FORMATS:
            if name not in Image.OPEN:
                continue  # this build of Pillow lacks the codec
            factory, accept = Image.OPEN[name]
            known = accept is None or accept(prefix)
            if not known or isinstance(known, str):  # a string explains why this build cannot read what it recognises
                continue
            file.seek(0)
            try:
                image = factory(file, str(path))
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # Pillow's way of saying "not mine after all"
            yield _within(image, path, max_pixels)
            return
    if not prefix:
        raise UserError("the file is empty", where=path, fix="fetch it again or take it out of the list")
    raise UserError(
        f"not an image of a known kind (its first bytes are {prefix[:8]!r})",
        where=path,
        fix=f"convert it to one of {', '.join(FORMATS)}",
    )


def _within(image: Image.Image, path: Path, max_pixels: int | None) -> Image.Image:
    """`image`, if it has no more pixels than allowed."""
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise UserError(
            f"the image is {width} x {height} = {width * height / 1e6:.0f} megapixels, over the limit of"
            f" {max_pixels / 1e6:g}",
            where=path,
            fix="cut it into tiles, or raise max_pixels if the file is to be trusted",
        )
    return image


def _by_extra(prefix: bytes, file: BinaryIO) -> Image.Image | None:
    """An image of a kind that Pillow alone does not open (HEIF, JPEG XL); None for all others."""
    if prefix[4:12] in _HEIF:
        try:
            import pi_heif
        except ImportError:
            raise missing_extra("pi-heif", "heif") from None
        file.seek(0)
        found = pi_heif.open_heif(file, convert_hdr_to_8bit=True)
        return found.to_pillow()
    if prefix.startswith(_JPEG_XL):
        try:
            from imagecodecs import jpegxl_decode
        except ImportError:
            raise missing_extra("imagecodecs", "jxl") from None
        file.seek(0)
        pixels = jpegxl_decode(file.read())
        if pixels.dtype not in (np.uint8, np.uint16) or (pixels.dtype == np.uint16 and pixels.ndim > 2):
            raise UserError(f"its pixels are {pixels.dtype} of shape {pixels.shape}", fix="convert it to 8 bits first")
        return Image.fromarray(pixels)
    return None


_HEIF = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1")
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turns whatever a decoder or the file system throws into one UserError with the path."""
    try:
        yield
    except UserError as error:
        if error.where:
            raise
        raise UserError(error.what, where=path, fix=error.fix) from error
    except FileNotFoundError as error:
        raise UserError("no such image file", where=path, fix="check the path and the image root") from error
    except IsADirectoryError as error:
        raise UserError("a folder where an image file was expected", where=path, fix="name a file") from error
    except PermissionError as error:
        raise UserError("the image file may not be read", where=path, fix="check its permissions") from error
    except (
        Exception
    ) as error:  # decoders fail with anything: OSError, SyntaxError, struct.error, zlib.error, MemoryError
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the image is broken ({text})", where=path, fix="fetch it again or take it out of the list"
        ) from error


def _to_array(image: Image.Image, channels: int | None) -> np.ndarray:
    """Decoded pixels as `(H, W, C)`, not yet turned upright."""
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return _wide_grey(image, channels)
    if image.mode == "F":
        raise UserError("the pixels are floating point", fix="convert the image to 8 or 16 bits first")
    if image.has_transparency_data:
        image = _on_black(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    pixels = np.array(image)  # a copy: asarray of a Pillow image is read-only
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels, 3, axis=2) if channels == 3 and pixels.shape[2] == 1 else pixels


def _wide_grey(image: Image.Image, channels: int | None) -> np.ndarray:
    """Grey of more than 8 bits as uint16, `(H, W, 1 or 3)`."""
    values = np.array(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise UserError(
            f"the grey values run from {values.min()} to {values.max()}, beyond 16 bits",
            fix="convert the image to 16 bits first",
        )
    # astype also brings big-endian files into the machine's own byte order, which torch asks for.
    pixels = values.astype(np.uint16)[:, :, None]
    return np.repeat(pixels, 3, axis=2) if channels == 3 else pixels


def _on_black(image: Image.Image) -> Image.Image:
    """An image with any kind of transparency, composited onto black; grey stays grey."""
    grey = image.mode in ("1", "L", "LA", "La")
    layer = image.convert("RGBA")
    black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layer).convert("L" if grey else "RGB")


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` turned as the EXIF orientation 1-8 asks (any other value counts as 1), contiguous."""
    if orientation in (5, 6, 7, 8):  # the file's rows are the image's columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif_orientation(image: Image.Image) -> int:
    """Orientation 1-8 from the image's EXIF or XMP block; 1 where there is none or the block is broken."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block raises anything, and is no reason to refuse sound pixels
        return 1


def _png_orientation(image: Image.Image, path: Path) -> int:
    """Orientation of a PNG without decoding it: its EXIF chunk may stand behind the pixels, so the chunks are walked."""
    exif = Image.Image.getexif(image)
    if _ORIENTATION in exif:
        return exif[_ORIENTATION]
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                late = Image.Exif()
                late.load(b"Exif\0\0" + file.read(length))
                return late.get(_ORIENTATION, 1)
            file.seek(length + 4, 1)
    return 1
