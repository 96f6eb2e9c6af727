"""What somebody could put into a file on purpose: names of other places, calls in pickles, bombs, files of another kind."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

PORT = 45997
"""Where `connections` listens: on this machine, so that a connection goes nowhere."""
PLACES = {
    "further up": ("../beside.png", "../../beside.png", "../../../beside.png", "..\\..\\beside.png"),
    "elsewhere": (
        *(f"http://127.0.0.1:{PORT}/a.png", f"/vsicurl/http://127.0.0.1:{PORT}/a.tif", "s3://bucket/a.png"),
        f"/vsicurl/http://127.0.0.1:{PORT}/b.tif",
    ),
    "odd": ("/dev/zero", "/etc/passwd", "file:///etc/passwd", "-rf", "|ls", "$(ls).png", "con.png", "a.png\0.jpg"),
}
"""What may stand where the name of a file is expected."""
MARKUP = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
NAMES = (*MARKUP, "\x1b[31mred\x07", '=cmd|"/c calc"!A1', "9" * 5000)
"""What may stand where a name is expected."""
_FILE = re.compile(rb"[\w./\\-]*\w\.(?:png|jpe?g|tiff?|vrt|xml|txt|json|safetensors|onnx|csv|npz)\b")


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


def sent_elsewhere(content: bytes, rng: np.random.Generator) -> bytes:
    """The name of one file in a text becomes another place; or any name something that pages and tables would obey."""
    found = list(_FILE.finditer(content))
    if not found:
        return content
    spot = found[int(rng.integers(len(found)))]
    kind = list(PLACES.values())[int(rng.integers(len(PLACES)))]
    place = kind[int(rng.integers(len(kind)))]
    if content[:1] in (b"{", b"["):
        place = place.replace("\\", "\\\\").replace("\0", "\\u0000")
    return content[: spot.start()] + place.encode() + content[spot.end() :]


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
    """A file of a kind that starts programs, fetches, draws or is obeyed elsewhere, whatever its name says."""
    kinds = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><script>alert(1)</script></svg>',
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{PORT}/${{z}}</ServerUrl></Service></GDAL_WMS>'.encode(),
        f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{PORT}/a.ts\n".encode(),
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
        b"#!/bin/sh\ntouch obeyed\n",
        pickled_call(),
        array_of_calls(),
        png_bomb(),
    )
    return kinds[int(rng.integers(len(kinds)))]


class Connections:
    """How many have come to `PORT` of this machine; also those that a library in C makes."""

    def __init__(self) -> None:
        self._count = 0
        self._own: set[tuple[str, int]] = set()
        self._seen = threading.Event()

    def serve(self, listening: socket.socket) -> None:
        """Counts, answers nothing, closes."""
        while True:
            try:
                one, sender = listening.accept()
            except OSError:
                return
            one.close()
            if sender in self._own:
                self._own.clear()
                self._seen.set()
            else:
                self._count += 1

    def count(self) -> int:
        """Of those until now: they are taken in their order, so that one of our own is the last."""
        self._seen.clear()
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            self._own.add(own.getsockname())
            own.connect(("127.0.0.1", PORT))
            self._seen.wait(10)
        return self._count


@contextlib.contextmanager
def connections() -> Iterator[Connections | None]:
    """Counts connections within it; None where somebody else listens there already."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", PORT))
        except OSError:
            yield None
            return
        listening.listen()
        found = Connections()
        threading.Thread(target=found.serve, args=(listening,), daemon=True).start()
        yield found
