"""Files that are boxes of others: what is inside is damaged and packed again, so that the damage is reached."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib

import numpy as np
from hostile import array_of_calls, disguised, pickled_call, png_bomb
from mutations import ODD_WORDS, mutated


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` after a mishap; of a container, most of the time within it."""
    chance = rng.random()
    if chance < 0.1:
        return disguised(rng)
    if chance < 0.3:
        return mutated(content, rng)
    for begins, damage in _KINDS:
        if content.startswith(begins):
            return damage(content, rng)
    if len(content) > 8 and content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        return _safetensors(content, rng)
    if b"flyspeck" in content[:200_000] and b'{"' in content:
        return _text_within(content, rng)
    return mutated(content, rng)


def _safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Its header, the description in it, or a tensor's numbers."""
    size = int.from_bytes(content[:8], "little")
    head, data = content[8 : 8 + size], content[8 + size :]
    match int(rng.integers(4)):
        case 0:
            head = mutated(head, rng)
        case 1:
            values = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
            odd = np.array([np.nan, np.inf, -np.inf, 1e38, 0, -1e-40], np.float32)
            if len(values):
                at = rng.integers(len(values), size=int(rng.integers(1, 50)))
                values[at] = odd[rng.integers(len(odd), size=len(at))]
            data = values.tobytes() + data[len(data) // 4 * 4 :]
        case _:
            table = json.loads(head)
            about = table.get("__metadata__", {})
            for key in about:
                about[key] = mutated(about[key].encode(), rng).decode("utf-8", "replace")
            head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + data


def _zip(content: bytes, rng: np.random.Generator) -> bytes:
    """One entry, or its name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        small = [name for name in names if old.getinfo(name).file_size < 20_000] or names
        chosen = small[int(rng.integers(len(small)))]
        renamed = rng.random() < 0.15
        for name in names:
            inside = old.read(name)
            if name != chosen:
                new.writestr(_entry(name), inside)
            elif renamed:
                word = ODD_WORDS[int(rng.integers(len(ODD_WORDS)))].encode("utf-8", "replace").decode()
                new.writestr(_entry(word.replace("\0", "")[:60] or "x"), inside)
            else:
                new.writestr(_entry(name), damaged(inside, rng))
    return stream.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """Without the time of now: what is made is a function of the seed."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _png(content: bytes, rng: np.random.Generator) -> bytes:
    """A chunk, with its check sum made good."""
    if rng.random() < 0.05:
        return png_bomb()
    at, chunks = 8, []
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    which = int(rng.integers(len(chunks)))
    kind, data = chunks[which]
    match int(rng.integers(4)):
        case 0:
            chunks.insert(which, [kind, data])
        case 1:
            del chunks[which]
        case 2 if kind == b"IDAT":
            try:
                chunks[which][1] = zlib.compress(mutated(zlib.decompress(data), rng))
            except zlib.error:
                chunks[which][1] = mutated(data, rng)
        case _:
            chunks[which][1] = mutated(data, rng)
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return content[:8] + b"".join(packed)


def _tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """A field of the first directory: its tag, its type, its count or its value."""
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 10 or content[2:4] not in (b"*\0", b"\0*"):
        return mutated(content, rng)
    (at,) = struct.unpack(order + "I", content[4:8])
    if at + 2 > len(content):
        return mutated(content, rng)
    (count,) = struct.unpack(order + "H", content[at : at + 2])
    made = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        entry = at + 2 + 12 * int(rng.integers(max(count, 1)))
        part, form = ((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "H"))[int(rng.integers(6))]
        odd = (0, 1, 2, 3, 7, 255, 65535, 2**31, 2**32 - 1, int(rng.integers(2**16)))[int(rng.integers(10))]
        if entry + 12 <= len(made):
            struct.pack_into(order + form, made, entry + part, odd % (65536 if form == "H" else 2**32))
    return bytes(made)


def _npy(content: bytes, rng: np.random.Generator) -> bytes:
    """Its head, which says type and shape."""
    if rng.random() < 0.15:
        return array_of_calls()
    end = content.index(b"\n") + 1
    head = mutated(content[10:end].rstrip(), rng)[:60_000]
    return content[:8] + struct.pack("<H", len(head) + 1) + head + b"\n" + content[end:]


def _text_within(content: bytes, rng: np.random.Generator) -> bytes:
    """The JSON text in a file of a program (ONNX): damaged at equal length, so that all around it stays in place."""
    first = content.index(b'{"')
    last = content.rindex(b"}", first) + 1
    text = mutated(content[first:last], rng)
    return content[:first] + text[: last - first].ljust(last - first) + content[last:]


def _pickle(content: bytes, rng: np.random.Generator) -> bytes:
    """Something that is called when it is read, in its place."""
    return mutated(content, rng) if rng.random() < 0.6 else pickled_call()


_KINDS = (
    (b"\x80\x02", _pickle),
    (b"\x80\x04", _pickle),
    (b"PK\x03\x04", _zip),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"II", _tiff),
    (b"MM\0", _tiff),
    (b"\x93NUMPY", _npy),
)
