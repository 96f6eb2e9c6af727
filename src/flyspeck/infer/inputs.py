"""Whatever a program holds its images in, as `Item`s: one meaning for each kind, and one line for what has none.

=====================================  ===========================================================================
given                                  taken as
=====================================  ===========================================================================
address (`str`)                        an image at it (`flyspeck.infer.remote`)
path (`str`, `Path`)                   an image file; a folder is all images in it and below; `*`, `?` and `[` match
                                       names, `**` folders
`bytes`, or a file that is open        an encoded image (JPEG, PNG, TIFF ...), like the file that holds the same bytes
Pillow image                           like the file of it: upright by its EXIF, transparency laid on black
NumPy array, or what becomes one       (H, W), (H, W, C) or (C, H, W); RGB unless `channel_order="bgr"` says otherwise
torch tensor, on any device            (H, W), (C, H, W) or (H, W, C); likewise
list, tuple, generator of such         one after the other
=====================================  ===========================================================================

Of three axes the channels are the one of 1, 3 or 4 (or as many as the detector takes); where both ends could be, NumPy arrays
have them last and tensors first, as their worlds do. Floating-point values are 0 (black) to 1 (white) where no range of values
is given; 8 and 16 bits unsigned are their own. What is wrong with one image is told in its own result and stops no other.
"""

from __future__ import annotations

import glob
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage

from flyspeck.data.images import check_bands
from flyspeck.data.orientation import exif_orientation, upright
from flyspeck.errors import UserError
from flyspeck.infer.remote import is_remote, remote_name
from flyspeck.infer.source import Held, Item, find_items, matched, open_source, remote_item
from flyspeck.infer.whole import in_memory
from flyspeck.infer.windows import AroundSource, OpenOptions, Source

ChannelOrder = Literal["rgb", "bgr"]
Loose = Any
"""One image, or an iterable of them, as the table above has it."""

_CHANNELS = (1, 3, 4)


def is_one(images: Loose) -> bool:
    """Whether this is one image, and not several: a folder and a pattern are several."""
    if isinstance(images, str | Path):
        return not _several(images)
    return (
        isinstance(images, Item | bytes | bytearray | memoryview | PillowImage.Image)
        or _is_file(images)
        or (hasattr(images, "__array__") or _is_tensor(images))
    )


def items_of(images: Loose, *, channel_order: ChannelOrder = "rgb") -> Iterator[Item]:
    """The images one after the other, none opened yet. The `image_id` of a file is its path or address; nothing else has one.

    `channel_order` is that of arrays and tensors; files, bytes and Pillow images say their own.
    Raises UserError for what is no image, when its turn comes.
    """
    if channel_order not in ("rgb", "bgr"):
        raise UserError(f"a channel order of {channel_order!r}", where="channel_order", fix="'rgb' or 'bgr'")
    number = 0
    for image in [images] if is_one(images) or isinstance(images, str | Path) else _each(images):
        for item in _items(image, number + 1, channel_order):
            number += 1
            yield item


def _each(images: Any) -> Iterable[Any]:
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise UserError(f"{type(images).__name__} is no image", fix=_FIX)
    return images


_FIX = "give a path, bytes, a file that is open, a Pillow image, an array, a tensor, or a list of them"


def _items(image: Any, number: int, order: ChannelOrder) -> Iterator[Item]:
    if isinstance(image, Item):
        yield image
    elif isinstance(image, str | Path):
        yield from _of_path(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        yield _held(f"bytes {number}", lambda options, name: _Encoded(bytes(image), options, name))
    elif isinstance(image, PillowImage.Image):
        file = str(getattr(image, "filename", ""))
        held = _held(file or f"image {number}", lambda options, name: _of_pillow(image, options, name))
        yield replace(held, image_id=file or None)
    elif _is_file(image):
        own = getattr(image, "name", None)
        own = own if isinstance(own, str) else None  # a pipe's is a number
        name = own or f"file {number}"
        content = _content(image, name)
        yield replace(_held(name, lambda options, name: _Encoded(content, options, name)), image_id=own)
    elif hasattr(image, "__array__") or _is_tensor(image):
        name = f"{'tensor' if _is_tensor(image) else 'array'} {number}"
        yield _held(name, lambda options, name: _of_array(image, options, name, order))
    else:
        raise UserError(f"{type(image).__name__} is no image", where=f"image {number}", fix=_FIX)


def _held(name: str, source: Callable[[OpenOptions, str], Source]) -> Item:
    return Item(name, Held(source), None)


def _several(path: str | Path) -> bool:
    text = os.fspath(path)
    return "://" not in text and ((glob.has_magic(text) and not os.path.exists(text)) or os.path.isdir(text))


def _of_path(path: str | Path) -> Iterator[Item]:
    """The file; of a folder or a pattern, all images."""
    if is_remote(path):
        yield remote_item(str(path), remote_name(str(path)))
        return
    if not _several(path):
        yield Item(str(path), Path(path), str(path))
        return
    found = [item.image for item in find_items([path])[0]] if os.path.isdir(path) else matched(path)
    for file in found:
        yield Item(str(file), file, str(file))


def _is_file(image: Any) -> bool:
    return isinstance(image, io.IOBase) or (callable(getattr(image, "read", None)) and not hasattr(image, "__array__"))


def _content(file: Any, name: str) -> bytes:
    """What is left to read of an open file: now, as it may be closed, or read on, before its turn comes. Raises UserError."""
    try:
        content = file.read()
    except (ValueError, OSError) as error:
        raise UserError(f"cannot be read ({error})", where=name, fix="give it open, or its path") from None
    if not isinstance(content, bytes):
        raise UserError("a file that is open for text", where=name, fix="open it with 'rb'")
    place = 0
    with suppress(AttributeError, ValueError, OSError):
        place = file.tell()
    if not content and place:
        raise UserError("nothing is left to read in it", where=name, fix="seek(0) before")
    return content


def _is_tensor(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "torch" and callable(getattr(image, "detach", None))


class _Encoded(AroundSource):
    """The bytes of an image file: read as the file would be, from a temporary one."""

    def __init__(self, content: bytes, options: OpenOptions, name: str) -> None:
        # In a folder of its own: nothing beside it belongs to it.
        self._folder = Path(tempfile.mkdtemp(prefix="flyspeck-"))
        try:
            path = self._folder / "image"
            with path.open("wb") as file:
                file.write(content)
            inner = open_source(path, options, name=name)
        except UserError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UserError(error.what, where=name, fix=error.fix) from None
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._take(inner, name)

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _of_pillow(image: PillowImage.Image, options: OpenOptions, name: str) -> Source:
    """As the file of it would be read: upright by its EXIF; what is neither plain grey nor RGB by way of a file without loss."""
    buffer = io.BytesIO()
    try:
        if image.mode in ("L", "RGB") and not image.has_transparency_data:
            pixels = np.asarray(image)
            pixels = upright(pixels if pixels.ndim == 3 else pixels[:, :, None], exif_orientation(image))
            return in_memory(_picked(pixels, options), options, name=name)
        plain = image.convert("RGB") if image.mode in ("HSV", "YCbCr", "LAB", "CMYK") else image
        plain.save(buffer, "TIFF" if image.mode in ("F", "I") else "PNG", exif=image.getexif())
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise UserError(f"a Pillow image that cannot be read ({error})", where=name, fix="load() it first") from None
    return _Encoded(buffer.getvalue(), options, name)


def _of_array(image: Any, options: OpenOptions, name: str, order: ChannelOrder) -> Source:
    tensor, mask = _is_tensor(image), None
    if isinstance(image, np.ma.MaskedArray):  # as rasterio gives what is not there
        mask, image = np.ma.getmaskarray(image), image.data
    try:
        if tensor:
            image = image.detach().cpu()
            image = (image.float() if image.dtype.is_floating_point else image).numpy()
        pixels = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"no array ({error})", where=name, fix=_FIX) from None
    pixels = _ordered(_channels_last(pixels, options.channels, first=tensor, name=name), order, name)
    if pixels.dtype.kind == "f" and (options.value_range is None or not options.rule.is_for(np.dtype(np.float32))):
        pixels = _from_unit(pixels, options.bits, name)
    elif pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32, copy=False)
    there: np.ndarray | None = None
    if mask is not None and mask.any():
        there = np.logical_not(np.all(_channels_last(mask, options.channels, first=tensor, name=name), axis=2))
    try:
        return in_memory(_picked(pixels, options), options, name=name, there=there)
    except UserError as error:
        raise UserError(error.what, where=name, fix=error.fix) from None


def _picked(pixels: np.ndarray, options: OpenOptions) -> np.ndarray:
    """The bands of `(H, W, C)` that the options choose."""
    if options.bands is None:
        return pixels
    check_bands(options.bands, pixels.shape[2])
    return pixels[:, :, [band - 1 for band in options.bands]]


def _channels_last(pixels: np.ndarray, wanted: int | None, *, first: bool, name: str) -> np.ndarray:
    """`(H, W, C)`, a view; `first`: channels come first where both ends could be theirs."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        fix = f"{_FIX}, each of 2 or 3 axes"
        if pixels.ndim == 4:
            fix = "a batch: give the images of it, list(batch)"
        raise UserError(f"an array of shape {pixels.shape} is no image", where=name, fix=fix)
    known = (*_CHANNELS, wanted) if wanted else _CHANNELS
    in_front, behind = pixels.shape[0] in known, pixels.shape[2] in known
    if in_front and (first or not behind):
        return pixels.transpose(1, 2, 0)
    return pixels


def _ordered(pixels: np.ndarray, order: ChannelOrder, name: str) -> np.ndarray:
    """Red first."""
    if order == "rgb" or pixels.shape[2] == 1:
        return pixels
    if pixels.shape[2] not in (3, 4):
        raise UserError(
            f"{pixels.shape[2]} channels are not in the order BGR", where=name, fix="leave out channel_order"
        )
    return pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]


def _from_unit(pixels: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Values from 0 to 1 as 8 or 16 bits. Raises UserError for all others."""
    low, high = float(pixels.min()), float(pixels.max())  # NaN comes through both
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"floating-point values from {low:g} to {high:g}, where 0 is black and 1 is white",
            where=name,
            fix="divide them, give uint8, or say what is black and white: OpenOptions(value_range=(low, high))",
        )
    top, kind = (65535, np.uint16) if bits == 16 else (255, np.uint8)
    return np.round(pixels * top).astype(kind)
