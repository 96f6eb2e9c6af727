"""Labelled images in tar files, as WebDataset writes them: which member is what, without unpacking anything.

A sample is the members with one key, which is the name up to the first dot of its last part: `n01440764_10026.jpg` with
`n01440764_10026.cls`. Its label is a whole number, or the name of a class, in a `.cls` member, or the field `label` of a
`.json` one.

Shards are read here by the layout of POSIX.1-1988 (ustar), with long names of GNU and pax, and not by the library `webdataset`:
that one reads forward only, so it shuffles in a buffer and cannot go on in the middle of an epoch. With every member's
place known, any image is one read away, the order is a permutation, and a resumed run sees the same images. A library that
is not needed is one less; `tarfile` takes ten times as long for a header.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flyspeck.errors import UserError, brief

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})
_BLOCK = 512
_MOST_TEXT = 1 << 20
"""Bytes of a label, or of a long name, at most."""
_FILES = (b"0", b"\0", b"7")
_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_TOTAL = re.compile(r"(\d+)-of-(\d+)")
_CUT = "fetch the shard again"


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    offset: int
    """Of its first byte, in the tar file."""
    size: int
    """Bytes."""


class TarSample(NamedTuple):
    """An image in a tar file, with what stands beside it as its label."""

    image: Member
    label: int | str


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError("no such shard", where=path, fix="fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, fix=_CUT) from None


def members(path: Path) -> Iterator[Member]:
    """The files in a tar file, in its order, from their headers alone.

    Raises UserError for a file that is no tar file, is cut off, or holds a header whose checksum is wrong.
    """
    with _opened(path) as file:
        yield from _members(file, path)


def _members(file: BinaryIO, path: Path) -> Iterator[Member]:
    length = file.seek(0, os.SEEK_END)
    position, long_name, long_size = 0, "", -1
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise UserError(f"is cut off: no end of the archive at byte {position}", where=path, fix=_CUT)
        if not any(block):
            return
        size = _size(block, path, position)
        kind = block[156:157]
        start = position + _BLOCK
        if kind in (b"L", b"x"):
            text = _text(file, path, Member("a long name", start, size))
            if kind == b"L":
                long_name = text.rstrip("\0")
            else:
                found = _pax(text)
                long_name = found.get("path", long_name)
                long_size = int(found["size"]) if found.get("size", "").isdecimal() else long_size
        elif kind != b"g":
            size = long_size if long_size >= 0 else size
            name = long_name or _name(block)
            if start + size > length:
                raise UserError(f"is cut off in '{name}'", where=path, fix=_CUT)
            if kind in _FILES:
                yield Member(name, start, size)
            long_name, long_size = "", -1
        position = start + -(-size // _BLOCK) * _BLOCK


def _size(block: bytes, path: Path, position: int) -> int:
    """Bytes of the member whose header this is; its checksum is compared."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"-1", 8)
        field = block[124:136]
        # The high bit says that the number is binary: a member of 8 GB and more.
        size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        stated, size = -1, 0
    if stated != sum(block) - sum(block[148:156]) + 8 * 32:
        what = "is no tar file" if position == 0 else f"is damaged: no header at byte {position}"
        packed = block[:2] == b"\x1f\x8b" or block[:4] == b"\x28\xb5\x2f\xfd"
        fix = "unpack it first (gunzip, zstd -d): what is packed cannot be read from the middle" if packed else _CUT
        raise UserError(what, where=path, fix=fix)
    return size


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:262] == b"ustar" and block[263:265] == b"00" else b""
    return (prefix + b"/" * bool(prefix) + name).decode("utf-8", "surrogateescape")


def _pax(text: str) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE` and a line break."""
    pairs = (line.split(" ", 1)[-1].split("=", 1) for line in text.split("\n"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _text(file: BinaryIO, path: Path, member: Member) -> str:
    if member.size > _MOST_TEXT:
        raise UserError(f"'{member.name}' has {member.size} bytes", where=path, fix=_CUT)
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8", "replace")


def samples(path: Path) -> Iterator[TarSample]:
    """The images of a shard with their labels, in its order. Raises UserError, also for an image that has no label."""
    with _opened(path) as file:
        key, image, label = "", None, None
        for member in _members(file, path):
            found, ending = _key(member.name)
            if found != key:
                if image is not None:
                    yield _sample(path, key, image, label)
                key, image, label = found, None, None
            if ending in IMAGE_ENDINGS:
                if image is not None:
                    raise UserError(
                        f"two images with the key '{key}'", where=path, fix="give every sample a key of its own"
                    )
                image = member
            elif ending == "cls":
                label = _label(_text(file, path, member))
            elif ending == "json" and label is None:
                label = _field(_text(file, path, member))
        if image is not None:
            yield _sample(path, key, image, label)


def _key(name: str) -> tuple[str, str]:
    """A member's key and its ending, in small letters."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _sample(path: Path, key: str, image: Member, label: int | str | None) -> TarSample:
    if label is None:
        raise UserError(
            f"'{key}' has no label", where=path, fix="write it as a whole number into a .cls member beside the image"
        )
    return TarSample(image, label)


def _label(text: str) -> int | str:
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) else text


def _field(text: str) -> int | str | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = content.get("label") if isinstance(content, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def check_complete(shards: Sequence[Path]) -> None:
    """Raises UserError where the numbers in the shards' names leave one out: `train-000003.tar`, `val-00003-of-00064.tar`."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    totals: dict[tuple[str, str], int] = {}
    for path in shards:
        found = _TOTAL.search(path.name) or _NUMBER.search(path.name)
        if found is None:
            continue
        key = (path.name[: found.start(1)], path.name[found.end(1) :])
        groups.setdefault(key, {})[int(found[1])] = found[1]
        if found.re is _TOTAL:
            totals[key] = int(found[2])
    for key, numbers in groups.items():
        # With a total in the name, one more than the last number is known too; numbers begin with 0 or 1.
        last = max(max(numbers), totals.get(key, 0) - (0 in numbers)) if key in totals else max(numbers)
        if last > 10 * len(numbers) + 1000:
            continue  # dates, or hashes: no count
        absent = [number for number in range(min(1, min(numbers)), last + 1) if number not in numbers]
        if absent == [0]:
            absent = []  # they count from 1
        if absent:
            width = len(next(iter(numbers.values())))
            names = [f"{key[0]}{number:0{width}d}{key[1]}" for number in absent[:3]]
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise UserError(
                f"{len(absent)} of {len(numbers) + len(absent)} shards are missing: {', '.join(names)}{more}",
                where=shards[0].parent,
                fix="fetch them, or number those that are meant without a gap",
            )


def shards_of(folder: Path, split: str) -> list[Path]:
    """The `train` or `val` shards of a folder, by name: `train/*.tar`, or `*train*.tar` beside `*val*.tar`; none where
    there are none.
    """
    words = ("train",) if split == "train" else ("val", "validation", "test")
    for word in words:
        found = sorted((folder / word).glob("*.tar"))
        if not found:
            found = sorted(p for p in folder.glob("*.tar") if word in re.split(r"[^a-z]+", p.name.lower()))
        if found:
            return found
    return []


def class_names(folder: Path) -> tuple[str, ...]:
    """The lines of `classes.txt` in the folder of the shards; none where there is no such file. Raises UserError."""
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"is no UTF-8 text ({error})", where=path) from None
    names = [line for line in lines if line]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"names the class {brief(twice[0])} twice", where=path)
    return tuple(names)
