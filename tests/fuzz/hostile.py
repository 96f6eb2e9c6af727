"""What somebody could put into a file on purpose: calls in pickles, bombs, files of another kind; names of other places are in
`elsewhere`."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from elsewhere import referring

MARKUP = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
NAMES = (*MARKUP, "\x1b[31mred\x07", '=cmd|"/c calc"!A1', "9" * 5000)
"""What may stand where a name is expected."""


class _Obeyed:
    """Pickled, it is a call by name, which does no harm and is seen (`pickle.find_class`)."""

    def __reduce__(self) -> Any:
        return os.getcwd, ()


def pickled_call() -> bytes:
    """A pickle that calls a function."""
    return pickle.dumps({"data": _Obeyed(), b"data": _Obeyed(), "description": _Obeyed()}, protocol=2)


def array_of_calls() -> bytes:
    """The same as an array of objects in a `.npy` file."""
    held = np.empty(1, object)
    held[0] = _Obeyed()
    stream = io.BytesIO()
    np.save(stream, held, allow_pickle=True)
    return stream.getvalue()


def bomb(content: bytes, rng: np.random.Generator) -> bytes:
    """Entities of XML or aliases of YAML that multiply, used once; other texts stay as they are."""
    depth = int(rng.choice([4, 40]))
    if content.lstrip()[:1] == b"<":
        grown = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, min(depth, 12)))
        head = f'<!DOCTYPE x [<!ENTITY e0 "ha">{grown}]>'.encode()
        declared = re.match(rb"\s*<\?xml[^>]*\?>", content)
        at = declared.end() if declared else 0
        return content[:at] + head + content[at:].replace(b">", f">&e{min(depth, 12) - 1};".encode(), 2)
    keys = list(re.finditer(rb"(?m)^( *[\w-]+: *)(\S[^\n]*)$", content))
    if content[:1] in (b"{", b"[") or not keys:
        return content
    grown = "".join(f"z{n}: &z{n} [*z{n - 1}, *z{n - 1}]\n" for n in range(1, depth))
    spot = keys[int(rng.integers(len(keys)))]
    used = content[: spot.start(2)] + f"*z{depth - 1}".encode() + content[spot.end(2) :]
    return b"z0: &z0 [x, x]\n" + grown.encode() + used


@cache
def png_bomb(side: int = 24_000) -> bytes:
    """A sound PNG of a bit a pixel, all of them 0: some kilobytes that take a byte or three a pixel."""
    packed, row = zlib.compressobj(1), bytes(1 + side // 8)
    pixels = b"".join([*(packed.compress(row * 100) for _ in range(side // 100)), packed.flush()])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    packs = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packs)


def disguised(rng: np.random.Generator) -> bytes:
    """A file of a kind that starts programs, fetches, draws or is obeyed elsewhere, whatever its name says; half of them refer to
    other places."""
    if rng.random() < 0.5:
        return referring(rng)
    kinds = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><script>alert(1)</script></svg>',
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
        b"#!/bin/sh\ntouch obeyed\n",
        pickled_call(),
        array_of_calls(),
        png_bomb(),
    )
    return kinds[int(rng.integers(len(kinds)))]
