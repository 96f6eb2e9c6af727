"""MATLAB files (version 5), as benchmarks publish them: read by scipy, which a damaged file can crash, once they are checked."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from flyspeck.errors import UserError, missing_extra

_MATRIX, _COMPRESSED, _FLAGS, _WHOLE = 14, 15, 6, 5
_CELL, _STRUCT, _OBJECT, _CHAR = 1, 2, 3, 4
_NUMERIC = range(6, 16)
_DEEPEST = 16
_LARGEST = 1 << 30
"""Bytes that a file may be unpacked to; WIDER FACE's is some 4 MB."""


def load_mat(path: Path) -> dict[str, Any]:
    """The content of a MATLAB file (version 5); raises UserError where it is none, or scipy is not installed."""
    return _of_mat(path, "loadmat")


def mat_names(path: Path) -> set[str]:
    """The names of a MATLAB file's variables; raises as `load_mat` does."""
    return {name for name, *_ in _of_mat(path, "whosmat")}


def _of_mat(path: Path, function: Literal["loadmat", "whosmat"]) -> Any:
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        raise missing_extra("scipy", "matlab") from None
    if not path.is_file():
        raise UserError("no such file", where=path, fix="check the path")
    content = path.read_bytes()
    try:
        _check(content)
        return loadmat(io.BytesIO(content)) if function == "loadmat" else whosmat(io.BytesIO(content))
    except Exception as error:  # a damaged file raises anything in scipy
        what = f"not a MATLAB file that can be read ({str(error) or type(error).__name__})"
        raise UserError(what, where=path, fix="fetch the official file again") from None


@contextmanager
def mat_layout(path: Path, layout: str) -> Iterator[None]:
    """Turns what a file of another layout runs into, wherever it differs, into an error that names the one wanted."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not laid out as {layout}", where=path, fix="fetch the official file again") from error


def _check(content: bytes) -> None:
    """Raises ValueError where what a file's headers say is not what it holds: scipy makes room by them, and may crash.

    Layout: MathWorks, "MAT-File Format", version 5: a head of 128 bytes, then elements of type, length and content.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("no head of version 5")
    budget = _LARGEST
    for kind, data in _elements(content[128:], order):
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            inside = unpack.decompress(data, budget)
            if unpack.unconsumed_tail:
                raise ValueError("it unpacks to more than any annotation file")
            budget -= len(inside)
            for inner, matrix in _elements(inside, order):
                _check_matrix(inner, matrix, order, 0)
        else:
            _check_matrix(kind, data, order, 0)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and content of each element; a short one has its content in its head."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("it is cut off")
        kind, length = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
        else:
            start = at + 8
            # Compressed elements are not padded to 8 bytes.
            at = start + length + (0 if kind == _COMPRESSED else -length % 8)
        if start + length > len(content):
            raise ValueError("it is cut off")
        yield kind, content[start : start + length]


def _check_matrix(kind: int, content: bytes, order: str, depth: int) -> None:
    if kind != _MATRIX or depth > _DEEPEST:
        raise ValueError("an element is no array" if kind != _MATRIX else "nested too deeply")
    if not content:  # an empty cell
        return
    (flag_kind, flags), (size_kind, sizes), _, *parts = _elements(content, order)
    if flag_kind != _FLAGS or len(flags) != 8 or size_kind != _WHOLE or len(sizes) < 8 or len(sizes) % 4:
        raise ValueError("an array without its size")
    lengths = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    word = struct.unpack_from(f"{order}I", flags)[0]
    of, count = word & 0xFF, math.prod(lengths)
    if min(lengths) < 0:
        raise ValueError("an array of negative size")
    if of in (_CELL, _STRUCT, _OBJECT):
        names = 0 if of == _CELL else 2 if of == _STRUCT else 3
        fields = 1
        if names:
            length = struct.unpack(f"{order}i", parts[names - 2][1])[0]
            fields = len(parts[names - 1][1]) // length if length > 0 else 0
        if count * fields != len(parts) - names:
            raise ValueError("an array with fewer entries than its size says")
        for inner, data in parts[names:]:
            _check_matrix(inner, data, order, depth + 1)
    elif of == _CHAR or of in _NUMERIC:
        width = _WIDTHS.get(parts[0][0]) if parts else None
        if width is None or len(parts) != 1 + bool(word & 0x800) or count * width > len(parts[0][1]):
            raise ValueError("an array with fewer numbers than its size says")
    else:
        raise ValueError(f"an array of kind {of}, which no annotation file has")


_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
"""Bytes of a number, by the type of its element."""
