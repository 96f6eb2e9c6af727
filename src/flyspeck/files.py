"""Writing files whole or not at all, and reading logs that a kill may have cut off.

A file is written under a temporary name beside its own, flushed to disk and renamed, so that a full disk or a kill never costs
the one before, and nobody ever reads half a file. Logs are JSON lines (one object a line, appended): only their last line can
be cut off.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import signal
import struct
import threading
import tokenize
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar
from zipfile import BadZipFile

from flyspeck.errors import UserError

SomePath = TypeVar("SomePath", bound=PurePath)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/|$)|/vsi\w+/")
"""`s3://…`, also as `Path` shortens it (`s3:/…`, `s3:`), or GDAL's `/vsis3/…`; `C:/…` is a drive."""


UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, BadZipFile),
)
"""What a loader of weights, states or arrays raises for a file that is cut off, changed or none of its own: no more than that is
meant by any of it."""


def local_output(place: str | os.PathLike[str], *, where: str = "out") -> Path:
    """The path to write to: the one door for whatever a user names as an output, before any work is done.

    Results are written to local disks. What stands for another place would silently become a folder of that name, so it is
    refused. Raises UserError.
    """
    text = os.fspath(place)
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    if found[1] and found[1].lower() == "file":
        raise UserError("a file:// address", where=where, fix="give the path alone")
    raise UserError(
        f"results are written to local folders, not to {found[1] + '://' if found[1] else found[0]}",
        where=where,
        fix="give a local path, and copy what was written",
    )


def make_folder(folder: Path) -> None:
    """Makes a folder that a user named for what is written, and those above it. Raises UserError where that cannot be."""
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make this folder ({error.strerror or error})", where=folder) from error


def check_writable(folder: Path) -> None:
    """Raises UserError where `folder`, or the deepest of those above it that is there, is none that may be written to."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError("is a file, where a folder is to be", where=there, fix="name another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError("this folder may not be written to", where=there, fix="name another --out")


def replace_file(path: Path, write: Callable[[Path], object], *, errors: tuple[type[Exception], ...] = ()) -> None:
    """Calls `write` with a temporary path beside `path`, with the same ending, and renames what it wrote to `path`.

    Raises UserError where the disk is full or the folder may not be written to; `errors` are further exceptions of `write` that
    mean the same. The file that was there before is untouched then.
    """
    local_output(path, where=str(path))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # as `is_left_over` knows it
    try:
        temporary.unlink(missing_ok=True)  # a link that somebody laid there would be followed
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"could not be written ({reason})", where=path, fix="the file before it is untouched"
        ) from error
    except errors as error:
        raise UserError(f"could not be written ({error})", where=path, fix="the file before it is untouched") from error
    finally:
        with contextlib.suppress(OSError):  # what went wrong is told; what is left is no result
            temporary.unlink(missing_ok=True)


def is_left_over(path: Path) -> bool:
    """Whether a file is what `replace_file` had begun when its process was killed: nobody's result."""
    return re.fullmatch(r"\..+\.\d+\.part(\..+)?", path.name) is not None and path.is_file()


def own_place(path: Path) -> Path:
    """`path`, to be written where it lies: a link there is removed first, since through it a file elsewhere would be overwritten.

    For what is not replaced whole (`replace_file`, which follows no link): logs that grow, arrays that are mapped.
    """
    if path.is_symlink():
        path.unlink()
    return path


def without_ending(path: SomePath) -> SomePath:
    """The path less its last ending. `...png`, whose rest would be another place, keeps it, as `.png` does, and `a.` has none.

    So under every Python: `with_suffix("")` refuses the first from 3.13 on, and gives the third an ending from 3.14 on.
    """
    stem, _, ending = path.name.rpartition(".")
    return path.with_name(stem) if ending and stem.strip(".") else path


def folded(name: str) -> str:
    """What a disk that knows neither case nor unicode forms takes a name for: names that are equal by it are one file there."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML 1.0 file may hold (section 2.2, Char), escaped or not."""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it a further Ctrl-C is passed over, in the main thread: what is being closed after the first ends whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def storable(text: str, *, xml: bool = False) -> str:
    """A name as text that every file takes: what is no character there stands as its escape, `\\udce4` or `\\x1b`.

    File names are bytes: those that are no UTF-8 come as lone surrogates, which UTF-8 cannot hold. XML forbids control
    characters too.
    """
    if xml:
        return _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode("utf-8", "backslashreplace").decode()


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> str:
    """One value as a field of a csv file. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.7g}"
    text = "" if value is None else storable(str(value))
    text = f"'{text}" if isinstance(value, str) and is_formula(text) else text
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def text_of(field: str) -> str:
    """The text that `cell` wrote as `field`, its quotes undone already."""
    return field[1:] if field.startswith("'") and is_formula(field[1:]) else field


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a text instead of showing it: it begins as a formula does, and is no number.

    One that is guarded already counts too, so that a text is always read back as it was (OWASP, CSV Injection).
    """
    if not text.lstrip("'").startswith(_FORMULA):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all; line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """A file, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Plain values as JSON, whole or not at all; what is not a number (NaN) or infinite is null. `indent` None: on one line."""
    separators = None if indent is not None else (",", ":")
    write_text(path, json.dumps(finite(content), indent=indent, separators=separators, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """`content`, plain values, with every float that JSON cannot hold turned into None; tuples become lists."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path, *, fix: str = "restore the file") -> dict[str, Any]:
    """The object in a JSON file that flyspeck wrote. Raises UserError for what is no JSON, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise UserError(f"not a whole JSON file ({error})", where=path, fix=fix) from None
    if not isinstance(content, dict):
        raise UserError("holds no JSON object", where=path, fix=fix)
    return content


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Every line that is not blank: its number, from 1, and its object; None where it is no JSON object.

    Reads line by line: files of many gigabytes need no memory.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield number, record if isinstance(record, dict) else None


def renamed_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run stored, under today's names: version 0.1 called its metrics figures."""
    return {"metrics" if key == "figures" else key: value for key, value in record.items()}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, under today's names."""
    records = [renamed_keys(record) for record in read_jsonl(path)]
    for number, record in enumerate(records, 1):
        if not _is_record(record):
            raise UserError(
                "is no record of a run", where=f"{path}, record {number}", fix="restore the file, or delete the line"
            )
    return records


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether a step's or an epoch's record holds numbers where numbers belong; an empty value is one that was not finite."""
    counts = ("epoch",) if record.get("kind") == "epoch" else ("epoch", "step")
    if record.get("kind") not in ("epoch", "step") or not all(_is_number(record.get(name)) for name in counts):
        return False
    losses = record.get("losses", {} if record["kind"] == "epoch" else None)
    tables = (losses, record.get("metrics", {}), record.get("observed", {}))
    if not all(isinstance(table, dict) and all(map(_is_number, table.values())) for table in tables):
        return False
    return all(_is_number(record[name]) for name in ("step", "seconds", "lr", "images_per_second") if name in record)


def _is_number(value: Any) -> bool:
    """A number that a float holds."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a log, none where there is no such file; a last line that a kill cut off is left out.

    Raises UserError for any other line that is no JSON object: something else than a kill has been at the file.
    """
    records: list[dict[str, Any]] = []
    broken: int | None = None
    if not path.is_file():
        return records
    for number, record in json_lines(path):
        if broken is not None:
            raise UserError(
                "is no JSON object", where=f"{path}, line {broken}", fix="restore the file, or delete the line"
            )
        if record is None:
            broken = number
        else:
            records.append(record)
    return records
