"""What goes wrong with files: cut off, bytes turned, fields swapped, lost or doubled, odd values, deep nesting, encodings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from elsewhere import sent_elsewhere
from hostile import NAMES, bomb

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        " ",
        0,
        -1,
        -0.0,
        0.5,
        1.0,
        "1",
        "1.0",
        "01",
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**30,
        10**400,
    ),
    *(
        1e308,
        -1e308,
        1e-320,
        5e-324,
        float("nan"),
        float("inf"),
        -float("inf"),
        "NaN",
        "inf",
        "1e999",
        "1_0",
        "\u0661",
        "0x10",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        ["1", "2", "3", "4"],
        {"x": {"y": []}},
        [[1, 2], [3]],
    ),
    *("yes", "Unspecified", "\ud800", "a\0b", "a\nb", "a\r\u2028b", "..", "../../../etc/passwd", "/", "/dev/zero", "."),
    *(
        "C:\\x\\a.png",
        "a" * 5000,
        "é ü 船",
        "%s{0}$(x)`",
        "<b>&amp;",
        "1,5",
        "-0",
        "+1",
        "1;2",
        "ignore",
        "\ufeff",
        "\u202e",
    ),
    *NAMES,
)
"""Values that a field may be found to have."""
ODD_WORDS = tuple(word for word in ODD if isinstance(word, str)) + tuple(
    str(word) for word in ODD if isinstance(word, int | float) and len(repr(word)) < 4000
)


NUMBERS: tuple[Any, ...] = (
    *(0, -1, 0.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf")),
)
"""What a number may be found to be."""
NUMBER_WORDS = (*(str(number) for number in NUMBERS if abs(number) != 10**400), "9" * 400, "9" * 5000, "1e999")


def _odd(old: Any, rng: np.random.Generator) -> Any:
    """Something in the place of a value; of a number, half the time another number."""
    kinds = NUMBERS if isinstance(old, int | float) and rng.random() < 0.5 else ODD
    return kinds[int(rng.integers(len(kinds)))]


def _odd_word(old: bytes, rng: np.random.Generator) -> bytes:
    """The same in a text."""
    kinds = NUMBER_WORDS if _NUMBER.fullmatch(old) and rng.random() < 0.5 else ODD_WORDS
    return kinds[int(rng.integers(len(kinds)))].encode("utf-8", "surrogatepass")


_NUMBER = re.compile(rb"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` after one to three mishaps; half the time such as leave its syntax whole, since they reach further."""
    kinds = (
        (_json, _json, _json, _json, sent_elsewhere)
        if content[:1] in (b"{", b"[")
        else (_field, _field, _swapped, _lines, sent_elsewhere, bomb)
    )
    if rng.random() < 0.5:
        kinds = MISHAPS
    for _ in range(int(rng.integers(1, 4))):
        content = kinds[int(rng.integers(len(kinds)))](content, rng)
    return content


def _spot(content: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(len(content) + 1))


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _spot(content, rng)]


def _hole(content: bytes, rng: np.random.Generator) -> bytes:
    first, last = sorted((_spot(content, rng), _spot(content, rng)))
    return content[:first] + content[min(last, first + 40) :]


def _turned(content: bytes, rng: np.random.Generator) -> bytes:
    values = bytearray(content)
    for _ in range(int(rng.integers(1, 6)) if values else 0):
        values[int(rng.integers(len(values)))] ^= 1 << int(rng.integers(8))
    return bytes(values)


def _zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    """A block of zeros, as a disk leaves it after a crash."""
    first = _spot(content, rng)
    return content[:first] + bytes(min(64, len(content) - first)) + content[first + 64 :]


def _inserted(content: bytes, rng: np.random.Generator) -> bytes:
    at, few = _spot(content, rng), rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8).tobytes()
    return content[:at] + few + content[at:]


def _lines(content: bytes, rng: np.random.Generator) -> bytes:
    """A line lost, doubled, or two of them swapped, or an empty one between them."""
    lines = content.split(b"\n")
    a, b = int(rng.integers(len(lines))), int(rng.integers(len(lines)))
    match int(rng.integers(4)):
        case 0:
            del lines[a]
        case 3:
            lines.insert(a, b"")
        case 1:
            lines.insert(a, lines[b])
        case _:
            lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


_FIELD = re.compile(rb"[^\s,;<>\"'=:\[\]{}]+")


def _field(content: bytes, rng: np.random.Generator) -> bytes:
    """One field of a text becomes an odd one."""
    found = list(_FIELD.finditer(content))
    if not found:
        return content
    spot = found[int(rng.integers(len(found)))]
    return content[: spot.start()] + _odd_word(spot[0], rng) + content[spot.end() :]


def _swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """Two fields change places."""
    found = list(_FIELD.finditer(content))
    if len(found) < 2:
        return content
    a, b = sorted(rng.choice(len(found), 2, replace=False).tolist())
    a, b = found[a], found[b]
    parts = (content[: a.start()], b[0], content[a.end() : b.start()], a[0], content[b.end() :])
    return b"".join(parts)


def _encoded(content: bytes, rng: np.random.Generator) -> bytes:
    """The same text in another encoding, with another mark or other ends of lines."""
    ways: list[Callable[[bytes], bytes]] = [
        lambda c: b"\xef\xbb\xbf" + c,
        lambda c: c.decode("utf-8", "replace").encode("utf-16"),
        lambda c: c.decode("utf-8", "replace").encode("utf-16-le"),
        lambda c: c.decode("utf-8", "replace").encode("utf-32"),
        lambda c: c.decode("utf-8", "replace").encode("cp1252", "replace"),
        lambda c: b"\xff\xfe" + c,
        lambda c: c.replace(b"\n", b"\r\n"),
        lambda c: c.replace(b"\n", b"\r"),
        lambda c: c.replace(b",", b";"),
    ]
    return ways[int(rng.integers(len(ways)))](content)


def _nested(content: bytes, rng: np.random.Generator) -> bytes:
    """Something nested too deeply stands in the middle."""
    depth = int(rng.choice([50, 1100, 20_000]))
    ways = (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"<a>" * depth + b"</a>" * depth)
    at = _spot(content, rng)
    return content[:at] + ways[int(rng.integers(len(ways)))] + content[at:]


def _json(content: bytes, rng: np.random.Generator) -> bytes:
    """A json file with one value odd, lost, doubled or swapped with another; other files get an odd field."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _field(content, rng)
    spots = list(_spots(tree))
    if not spots:
        return json.dumps(ODD[int(rng.integers(len(ODD)))]).encode()
    holder, key = spots[int(rng.integers(len(spots)))]
    match int(rng.integers(5)):
        case 0:
            del holder[key]
        case 1:
            other, there = spots[int(rng.integers(len(spots)))]
            try:
                text = json.dumps(other[there])  # a copy: it may hold the place that it goes to
            except RecursionError:
                return content
            holder[key] = json.loads(text)
        case 2 if isinstance(holder, dict):
            holder[ODD_WORDS[int(rng.integers(len(ODD_WORDS)))]] = holder.pop(key)
        case _:
            holder[key] = _odd(holder[key], rng)
    try:
        return json.dumps(tree).encode()
    except (ValueError, RecursionError):
        return content


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a json tree, as its holder and key."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


MISHAPS = (
    *(_cut, _hole, _turned, _zeroed, _inserted, _lines, _field, _swapped, _encoded, _nested, _json),
    *(sent_elsewhere, bomb),
)
