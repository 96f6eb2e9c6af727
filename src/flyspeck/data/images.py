"""Image files to arrays: one reader for every odd kind of file; NumPy and Pillow, and tifffile for TIFFs that Pillow cuts.

What comes out is always upright (EXIF, XMP and TIFF orientation applied) and `(H, W, C)`, C being the file's bands:

==========================  =================================================================================
file                        array
==========================  =================================================================================
grey, 1-bit                 uint8, C = 1; a 1-bit image has the values 0 and 255
16-bit grey                 uint16, C = 1, the file's own values
RGB, palette, YCbCr, LAB    uint8, C = 3; a palette is looked up, of a TIFF that calls itself grey too
16-bit RGB (PNG, TIFF)      uint16, C = 3; other formats are cut to 8 bits
TIFF of any other bands     C of them, uint8, uint16, int16 or float32, the file's own values
CMYK                        uint8, C = 3, by Pillow's plain formula (no colour profile)
HEIF, JPEG XL               as RGB or grey of 8 bits; need the extras `heif` and `jxl`
`.npy`                      (H, W) or (H, W, C) of the same types, as NumPy wrote it
alpha, transparent key      composited onto black, so that colours hidden under transparency never reach a network;
                            read as a band where it is asked for
several frames              the first one
==========================  =================================================================================

Files are told by their content, not by their name. Only the raster formats in `FORMATS` are opened: others that Pillow
knows can start programs (EPS) or have no signature to check. Nothing global in Pillow is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data import tiff
from flyspeck.data.by_extra import BYTES_EACH, NeedsPackage, open_by_extra, size_by_extra
from flyspeck.data.copied import copied
from flyspeck.data.decoding_cost import bytes_each, is_bomb
from flyspeck.data.nodata import is_nodata
from flyspeck.data.orientation import exif_orientation, png_orientation, upright
from flyspeck.data.transparency import on_black, straight
from flyspeck.errors import UserError, install, missing_extra

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

MAX_BANDS = 4096
"""Of a TIFF; a hyperspectral sensor has some hundred."""

_RAISE = "raise the limit (--max-megapixels of predict; max_pixels) if the file is to be trusted"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_WIDE_PNG = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}
"""How Pillow unpacks a PNG of 16 bits and more than one sample, and in which ways it has to, to give all the bytes."""


def read_image(
    path: Path | str,
    *,
    channels: int | None = None,
    bands: Sequence[int] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> np.ndarray:
    """The image in a file as `(H, W, C)` of its own values, upright; see the table above.

    Args:
        path: The file.
        channels: How many are wanted: 1 and 3 are converted into each other (grey to colour by repetition, colour to grey by
            ITU-R 601 luma), alpha counts as a band where that makes the number; any other difference is an error, as nothing is
            cut in silence. None keeps the file's own.
        bands: Some of them, counted from 1, alpha among them.
        max_pixels: A header that claims more is refused before anything is decoded; None lifts the limit.

    Returns:
        `(H, W, C)` of the file's type.

    Raises:
        UserError: With the path, for a file that is missing, truncated, too big, or no image.
    """
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be 1 or more, or None, not {channels}")
    with _explained(path):
        pixels = _own(Path(path), channels, bands, max_pixels)
        return pixels if channels is None else match_channels(pixels, channels)


def _own(path: Path, channels: int | None, bands: Sequence[int] | None, max_pixels: int | None) -> np.ndarray:
    """The file's bands, or those that are picked; grey or colour already where Pillow makes it of 8 bits."""
    if path.suffix.lower() == ".npy":
        return _picked(np.array(open_array(path)), bands)
    header = tiff_header(path)
    if header is not None:
        check_claims(header, path)
        whole = header.size[0] * header.size[1]
        if header.piece > max(whole, 1 << 20):  # a tile of more than the image, which is decoded all the same
            limited((header.piece, 1), path, max_pixels, bytes_each=header.samples * 4, what="a tile of it")
    if header is not None and not header.plain:
        each = 2 * header.samples * max(1, header.bits // 8)
        limited((header.size[1], header.size[0]), path, max_pixels, bytes_each=each)
        values = header.size[0] * header.size[1] * header.samples
        if max_pixels is not None and values > 4 * max_pixels:
            raise UserError(
                f"{header.samples} bands of {header.size[0]}x{header.size[1]} pixels, more than is decoded in one piece",
                fix=f"{install('geo')} to read it by windows, or {_RAISE}",
            )
        return upright(_picked(_tiff_bands(path, header, channels, bands), bands), header.orientation)
    with _opened(path, max_pixels, max_pixels) as image:
        wide = packing(image)  # loading forgets it
        image.load()
        orientation = exif_orientation(image)
        raw = bands is not None or (image.has_transparency_data and channels == _samples(image))
        if wide in _WIDE_PNG:
            samples = len(wide.split(";")[0])
            pixels = _wide_colours(path, wide, bands is not None or channels == samples, max_pixels)
        elif header is not None and header.palette is not None:
            pixels = header.palette[header.numbers(_to_array(image, None)[:, :, 0])]
        elif raw:
            pixels = _planes(image)
        else:
            pixels = _to_array(image, channels)
    if header is not None and header.inverted and pixels.dtype == np.uint16:  # of 8 bits Pillow does it
        top = np.uint16(65535 if header.value_range is None else header.value_range[1])
        pixels = top - np.minimum(pixels, top)
    if header is not None and header.nodata is not None and pixels.dtype == np.float32:
        pixels[is_nodata(pixels, header.nodata)] = np.nan
    return upright(_picked(pixels, bands), orientation)


def tiff_header(path: Path) -> tiff.TiffHeader | None:
    """The header of a TIFF; None for every other file, and for a TIFF so broken that Pillow shall say what is wrong."""
    with path.open("rb") as file:
        if not tiff.is_tiff(file.read(4)):
            return None
    try:
        return tiff.read_header(path)
    except (SyntaxError, KeyError, TypeError, ValueError, IndexError, OSError, struct.error):
        return None


def check_claims(header: tiff.TiffHeader, path: Path) -> None:
    """Raises UserError for a TIFF that lists fewer strips or tiles than its size takes, since decoders leave the rest black; and
    for one of more bands than any sensor has."""
    there, needed = header.segments
    what = ""
    if header.samples > MAX_BANDS:
        what = f"it claims {header.samples} bands, where {MAX_BANDS} are read"
    elif there < needed:
        size = f"{header.size[0]}x{header.size[1]}"
        what = f"its {size} pixels take {needed} strips or tiles, and it has {there}"
    if what:
        raise UserError(f"the image is broken ({what})", where=path, fix="fetch it again or take it out of the list")


def _tiff_bands(path: Path, header: tiff.TiffHeader, channels: int | None, bands: Sequence[int] | None) -> np.ndarray:
    """What tifffile reads of it: all samples where bands are picked, else all but alpha, black where that is 0."""
    try:
        pixels = tiff.read_samples(path, header)
    except tiff.TiffFault as fault:
        if fault.package:
            raise missing_extra(fault.package, "tiff") from None
        raise UserError(fault.what, fix=fault.fix) from None
    if header.nodata is not None and pixels.dtype == np.float32:
        pixels[is_nodata(pixels, header.nodata)] = np.nan
    if bands is not None:
        return pixels
    if header.alpha is not None and channels == header.samples:
        return pixels[:, :, [*header.order, header.alpha]]
    if header.alpha is None:
        return pixels[:, :, header.order] if header.coloured else pixels
    seen = pixels[:, :, header.alpha] > 0
    return pixels[:, :, header.order] * seen[:, :, None].astype(pixels.dtype)


def open_array(path: Path) -> np.ndarray:
    """A `.npy` file mapped into memory as `(H, W, C)`; raises UserError for what is no image."""
    pixels = mapped_array(path)
    if pixels.ndim not in (2, 3) or pixels.dtype.name not in tiff.DTYPES or 0 in pixels.shape:
        raise UserError(
            f"an image must be (H, W) or (H, W, C) of uint8, uint16, int16 or float32, not {pixels.shape} of {pixels.dtype}",
            where=path,
            fix="convert it first",
        )
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def mapped_array(path: Path) -> np.ndarray:
    """A `.npy` file mapped into memory; no other file of NumPy's, and never an object. Raises UserError, and OSError."""
    try:
        with np.errstate(over="ignore"):  # of a shape that no memory holds
            return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # its head is Python text, which fails in any way
        raise UserError(f"not an array file ({error})", where=path, fix="write it with numpy.save") from None


def _picked(pixels: np.ndarray, bands: Sequence[int] | None) -> np.ndarray:
    """The `bands`, counted from 1, of `(H, W, C)`."""
    if bands is None:
        return pixels
    check_bands(bands, pixels.shape[2])
    return np.ascontiguousarray(pixels[:, :, [band - 1 for band in bands]])


def check_bands(bands: Sequence[int], count: int) -> None:
    """Raises UserError unless an image of `count` bands has all of them."""
    if not bands or min(bands) < 1 or max(bands) > count:
        said = ",".join(map(str, bands))
        raise UserError(
            f"bands {said} of an image that has {count}", fix=f"choose from 1 to {count} (--bands, data.bands)"
        )


def match_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """`(H, W, C)` as grey or colour where the other is wanted; raises UserError for any other difference."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (have, channels) == (3, 1):
        if pixels.dtype.kind != "u":
            return (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None].astype(pixels.dtype)
        luma = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((luma + 0x8000) >> 16).astype(pixels.dtype)[:, :, None]
    raise UserError(
        f"an image of {have} band{'s' * (have > 1)} where {channels} are wanted",
        fix=f"choose {channels} of its bands (--bands, data.bands), or set data.channels before training",
    )


def read_size(path: Path | str) -> tuple[int, int]:
    """`(H, W)` of the upright image, from the header alone: no pixel is decoded. Errors as for `read_image`."""
    with _explained(path):
        path = Path(path)
        if path.suffix.lower() == ".npy":
            height, width = open_array(path).shape[:2]
            return height, width
        header = tiff_header(path)
        if header is not None:
            height, width = header.size
            return (width, height) if header.orientation in (5, 6, 7, 8) else (height, width)
        size = size_by_extra(path)
        if size is not None:
            return size[1], size[0]
        with _opened(path, None, None) as image:
            width, height = image.size
            # Asking a PNG for its EXIF the usual way would decode it whole.
            orientation = png_orientation(image, path) if image.format == "PNG" else exif_orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


@contextmanager
def opened(
    path: Path | str, *, max_pixels: int | None = None, decoded: int | None = MAX_PIXELS
) -> Iterator[Image.Image]:
    """The file opened by Pillow, not yet decoded, but for HEIF and JPEG XL up to `decoded` pixels; errors as for `read_image`."""
    with _explained(path), _opened(path, max_pixels, decoded if max_pixels is None else max_pixels) as image:
        yield image


@contextmanager
def _opened(path: Path | str, max_pixels: int | None, decoded: int | None) -> Iterator[Image.Image]:
    """The file opened by the plugin that knows its first bytes.

    Image.open is not used: its own limit on pixels is one global number that warns at half of what it allows, so
    respecting `max_pixels` would mean changing global state, or a warning that is not true.
    """
    path = Path(path)
    Image.init()
    with path.open("rb") as file:
        prefix = file.read(16)
        special = open_by_extra(prefix, file, lambda size: limited(size, path, decoded, bytes_each=BYTES_EACH))
        if special is not None:
            yield special
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
    """`image`, if it has no more pixels than allowed, and is no bomb."""
    limited(image.size, path, max_pixels, bytes_each=bytes_each(image))
    return image


def limited(
    size: tuple[int, int], path: Path, max_pixels: int | None, *, bytes_each: float = 0.0, what: str = "the image"
) -> None:
    """Raises UserError for a `size` (width, height) of more pixels than allowed, or for a bomb (`decoding_cost.is_bomb`) whose
    pixels take `bytes_each` of memory. None allows everything.
    """
    width, height = size
    pixels = width * height
    if max_pixels is None:
        return
    if pixels > max_pixels:
        raise UserError(
            f"{what} is {width} x {height} = {pixels / 1e6:.0f} megapixels, over the limit of {max_pixels / 1e6:g}",
            where=path,
            fix=f"cut it into tiles, or {_RAISE}",
        )
    held = path.stat().st_size
    if is_bomb(pixels, bytes_each, held=held, max_pixels=max_pixels):
        memory = f"{pixels / 1e6:,.0f} megapixels in {held / 1e6:.3f} MB would take {pixels * bytes_each / 1e9:.1f} GB of memory"
        raise UserError(
            f"{memory}, more than an image is usually packed",
            where=path,
            fix="raise the limit (--max-megapixels, max_pixels) if the file is to be trusted",
        )


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turns whatever a decoder or the file system throws into one UserError with the path."""
    try:
        yield
    except UserError as error:
        if error.where:
            raise
        raise UserError(error.what, where=path, fix=error.fix) from error
    except NeedsPackage as needed:
        error = missing_extra(needed.package, needed.extra)
        raise UserError(error.what, where=path, fix=error.fix) from None
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
        return np.array(image, np.float32)[:, :, None]
    if image.has_transparency_data:
        image = on_black(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    pixels = copied(image)
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


def packing(image: Image.Image) -> str:
    """How a PNG's values lie in the file, as `RGB;16B`: Pillow's mode does not tell 16 bits of colour from 8. Else empty."""
    tiles = getattr(image, "tile", None)
    return tiles[0].args if image.format == "PNG" and tiles and isinstance(tiles[0].args, str) else ""


def _wide_colours(path: Path, unpacked: str, raw: bool, max_pixels: int | None) -> np.ndarray:
    """A 16-bit PNG of colours, or with alpha, as uint16: Pillow unpacks one byte of each value, so it is asked twice."""
    passes = []
    for mode in _WIDE_PNG[unpacked]:
        with _opened(path, max_pixels, max_pixels) as image:
            tiled: Any = image
            tiled.tile = [tile._replace(args=mode) for tile in tiled.tile]
            passes.append(np.array(image).astype(np.uint16))
    # Grey and alpha come as four bytes of a pixel: the high and the low one of each.
    high, low = passes if len(passes) == 2 else (passes[0][:, :, ::2], passes[0][:, :, 1::2])
    values = (high << 8) | low
    if raw or values.shape[2] == 3:
        return values
    colours, alpha = values[:, :, :-1].astype(np.uint64), values[:, :, -1:].astype(np.uint64)
    return ((colours * alpha + 32767) // 65535).astype(np.uint16)


def _samples(image: Image.Image) -> int:
    """Bands with alpha, as `_planes` gives them."""
    grey = image.mode in ("1", "L", "LA", "La", "I", "F", *_SIXTEEN_BIT)
    return (1 if grey else 3) + image.has_transparency_data


def _planes(image: Image.Image) -> np.ndarray:
    """All samples, alpha not composited."""
    if not image.has_transparency_data:
        return _to_array(image, None)
    return np.array(straight(image).convert("LA" if _samples(image) == 2 else "RGBA"))
