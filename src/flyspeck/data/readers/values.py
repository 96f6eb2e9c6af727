"""What a value in an annotation file means: a truth, an id, a number, a path, a text. Every reader asks here.

Tools write the same thing in many ways (`1`, `1.0`, `"1"`; `0`, `false`, `Unspecified`; `images\\a.jpg`), and what one reader
takes another must not refuse.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flyspeck.errors import UserError

_TRUE = {"1", "true", "yes", "y", "t", "on"}
_FALSE = {"", "0", "false", "no", "n", "f", "off", "none", "null", "nan", "unspecified", "unknown"}
_DECLARED = re.compile(r"""^<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._\-]+)["']""")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def as_truth(value: Any) -> bool | None:
    """Whether a flag is set: `1`, `1.0`, `"1"`, `true`, `yes` are; `0`, `""`, `null`, `no`, `Unspecified` are not.

    None: it says neither.
    """
    if isinstance(value, bool) or value is None:
        return bool(value)
    if isinstance(value, int | float):
        return value == value and value != 0
    if value == "0" or value == "1":
        return value == "1"
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    parsed = as_number(word)
    return parsed != 0 if math.isfinite(parsed) else None


def as_id(value: Any) -> int | str | None:
    """What an id is compared by: `1`, `1.0` and `"1"` are one id; any other text is itself (`"007"`). None: no id at all.

    Whole numbers of any length are kept; `true`, lists, NaN and broken numbers are none.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if re.fullmatch(r"-?(0|[1-9]\d{0,30})", text) else text
    return None


def as_number(value: Any) -> float:
    """A finite number as float, of a number or a text; NaN for anything else (`inf`, `true`, `1e999`, an empty text)."""
    if isinstance(value, bool):
        return math.nan
    try:
        found = float(value.strip() if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def as_numbers(values: Sequence[Any]) -> list[float]:
    """`as_number` of each: NaN makes the entry a broken one."""
    try:
        found = list(map(float, values))
    except (TypeError, ValueError, OverflowError):
        return [as_number(value) for value in values]
    if math.isfinite(sum(found)) and bool not in map(type, values):
        return found  # as nearly all are
    return [as_number(value) for value in values]


def as_name(value: Any) -> str:
    """A class name without blanks around it, of a text or a number; an empty one for anything else (`null`, lists, `true`)."""
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def as_path(name: str) -> str:
    """An image's path with forward slashes, without blanks around it and without a leading `./`.

    Windows tools write back-slashes; no camera or tool of the field puts one into a name.
    """
    path = name.strip().replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    return path


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file: by `encoding` if one is given, by its byte order mark, or as UTF-8.

    Raises UserError where it is none of these; which encoding a file without a mark has cannot be known, so nothing is guessed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="check the path") from None
    except IsADirectoryError:
        raise UserError("a folder where a file was expected", where=path, fix="name a file") from None
    return decoded(content, path, encoding)


def decoded(content: bytes, where: object, encoding: str | None = None) -> str:
    """`read_text` of the bytes of a file."""
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    wanted = encoding or marked or "utf-8"
    try:
        text = content.decode(wanted)
    except LookupError:
        raise UserError(
            f"no encoding '{wanted}'", where="encoding", fix="write utf-8, cp1252, gbk or the like"
        ) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"not {wanted.upper()} (byte 0x{content[error.start]:02X})",
            where=f"{where}, line {line}",
            fix="save it as UTF-8, or say what it is: --encoding cp1252, gbk or the like",
        ) from None
    if "\0" in text[:1000]:
        raise UserError("not a text file", where=where, fix="check the file, or say --encoding utf-16-le or the like")
    return text


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """The lines of a text file, whatever ends them; errors as for `read_text`."""
    return read_text(path, encoding).splitlines()


def load_json(path: Path, encoding: str | None = None) -> Any:
    """The content of a json file; a broken one is an error that names the line."""
    text = read_text(path, encoding)
    try:
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnicodeEncodeError:
        what = "half of a character stands in it (\\ud800 to \\udfff without its partner)"
        raise UserError(what, where=path, fix="write it again with a tool that writes whole characters") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid json ({error.msg})",
            where=f"{path}, line {error.lineno}, column {error.colno}",
            fix="the file may be cut off; write it again",
        ) from None
    except RecursionError:
        raise UserError("nested too deeply for an annotation file", where=path, fix="check the file") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"not valid json ({error})", where=path, fix="check the file") from None


def parse_xml(path: Path, encoding: str | None = None) -> ElementTree.Element:
    """The root of an xml file, in whatever encoding it declares; raises UserError for one that is broken.

    Python's parser knows few encodings, so that GBK or Shift_JIS, which Windows tools declare, are decoded here.
    """
    content = path.read_bytes()
    found = _DECLARED.match(content[:200].decode("latin-1"))
    declared = None if encoding is not None or found is None else found[1]
    try:
        text = decoded(
            content, path, encoding or (declared if not content.startswith((b"\xff\xfe", b"\xfe\xff")) else None)
        )
    except UserError as error:
        if declared is None:
            fix = 'declare it in the first line (<?xml version="1.0" encoding="ISO-8859-1"?>), or say --encoding'
            raise UserError(error.what, where=error.where, fix=fix) from None
        raise UserError(f"{error.what}, though it is declared", where=error.where or path, fix=error.fix) from None
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"), count=1))
        if root.tag.startswith("{"):  # a namespace stands before every name: {http://…}annotation
            for element in root.iter():
                element.tag = str(element.tag).rpartition("}")[2]
        return root
    except ElementTree.ParseError as error:
        raise UserError(f"not valid xml ({error.msg})", where=f"{path}, line {error.position[0]}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"not valid xml ({error})", where=path, fix="check the file") from None
