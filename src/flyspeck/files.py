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
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|/vsi\w+/")
"""`s3://…`, also as `Path` shortens it (`s3:/…`), or GDAL's `/vsis3/…`; `C:/…` is a drive."""


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


def replace_file(path: Path, write: Callable[[Path], object], *, errors: tuple[type[Exception], ...] = ()) -> None:
    """Calls `write` with a temporary path beside `path`, with the same ending, and renames what it wrote to `path`.

    Raises UserError where the disk is full or the folder may not be written to; `errors` are further exceptions of `write` that
    mean the same. The file that was there before is untouched then.
    """
    local_output(path, where=str(path))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
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
        temporary.unlink(missing_ok=True)


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
    return [renamed_keys(record) for record in read_jsonl(path)]


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
