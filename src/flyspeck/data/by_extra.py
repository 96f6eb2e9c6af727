"""HEIF and JPEG XL, which Pillow alone does not open (extras `heif` and `jxl`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

_HEIF = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1")
_STREAM, _CONTAINER = b"\xff\x0a", b"\x00\x00\x00\x0cJXL "
BYTES_EACH = 10
"""Of memory for a pixel, on the way to an array."""
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by number from 1 (ISO/IEC 18181-1, SizeHeader)."""


class NeedsPackage(Exception):
    """A `package` that reads the file is not installed; the `extra` brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package)
        self.package, self.extra = package, extra


def open_by_extra(prefix: bytes, file: BinaryIO, check: Callable[[tuple[int, int]], object]) -> Image.Image | None:
    """The image in `file`, which begins with `prefix`; None for all other kinds.

    `check` is called with its (width, height) before anything is decoded. Raises NeedsPackage, and ValueError for values that
    are not read.
    """
    if prefix[4:12] in _HEIF:
        file.seek(0)
        found = _heif().open_heif(file, convert_hdr_to_8bit=True)
        check(found.size)
        return found.to_pillow()
    if prefix.startswith((_STREAM, _CONTAINER)):
        try:
            from imagecodecs import jpegxl_decode
        except ImportError:
            raise NeedsPackage("imagecodecs", "jxl") from None
        file.seek(0)
        content = file.read()
        check(jpeg_xl_size(content))
        pixels = jpegxl_decode(content)
        if pixels.dtype not in (np.uint8, np.uint16) or (pixels.dtype == np.uint16 and pixels.ndim > 2):
            raise ValueError(f"its pixels are {pixels.dtype} of shape {pixels.shape}: convert it to 8 bits first")
        return Image.fromarray(pixels)
    return None


def _heif() -> Any:
    try:
        import pi_heif
    except ImportError:
        raise NeedsPackage("pi-heif", "heif") from None
    return pi_heif


def size_by_extra(path: Path) -> tuple[int, int] | None:
    """(width, height) of the upright image in a HEIF or JPEG XL file, by its header; None for all other kinds."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
        if start[4:12] in _HEIF:
            file.seek(0)
            return _heif().open_heif(file).size
    return jpeg_xl_size(start) if start.startswith((_STREAM, _CONTAINER)) else None


def jpeg_xl_size(content: bytes) -> tuple[int, int]:
    """(width, height) of the upright image by the header of a JPEG XL file. Raises ValueError where it has none."""
    stream = content if content.startswith(_STREAM) else _codestream(content)
    if not stream.startswith(_STREAM):
        raise ValueError("no JPEG XL stream in it")
    bits = _Bits(stream[2:42])
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio == 0:
        width = _side(bits, small)
    else:
        wide, high = _RATIOS[ratio - 1]
        width = height * wide // high
    usual = bits.take(1) or not bits.take(1)  # of the metadata that follow: all as usual, or without further fields
    turned = not usual and bits.take(3) >= 4  # the orientation, less one
    return (height, width) if turned else (width, height)


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])


class _Bits:
    """Of bytes, the least significant first."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def take(self, count: int) -> int:
        """The next `count` bits as a number. Raises ValueError at the end."""
        if count > self._left:
            raise ValueError("its JPEG XL header is cut off")
        taken = self._value & ((1 << count) - 1)
        self._value, self._left = self._value >> count, self._left - count
        return taken


def _codestream(content: bytes) -> bytes:
    """The beginning of the code stream in a container of boxes (ISO/IEC 18181-2)."""
    at = 0
    while at + 8 <= len(content):
        length, kind, head = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + 4 * (kind == b"jxlp")  # a part begins with its number
            return content[start : start + 64]
        if length < head:  # 0: to the end of the file
            break
        at += length
    return b""
