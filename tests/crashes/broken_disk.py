"""A disk that fails at a chosen operation, in a process of its own: the power goes, it is full, or it cannot be read any more.

Every operation on a folder is counted: files opened to be written, what is written into them, flushed, synced, renamed,
removed, folders made; and the files that libraries write by themselves (weights, states). The n-th can be made to fail for every
n, so that nothing is left to chance. A process is forked for each, which ends there and then: nothing is tidied up that a real
kill would leave.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import importlib
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import torch as tensors

from flyspeck.errors import UserError
from flyspeck.models import weights
from flyspeck.train import checkpoint

Mode = Literal["count", "kill", "torn", "full", "io", "files", "clock", "short", "workers", "none"]
"""`kill`: the process ends before the operation; `torn`: in the middle of it; `full`: it and all that follow fail as on a full
disk; `io`: it fails once as on a broken one; `files`: from it on no file can be opened to be written, as where a process has too
many open; `clock`: from it on the clock is a year slow; `short`: every write takes half of what it is given, and says so, as the
system may; `workers`: before it the processes that this one has started are killed; `none`: nothing fails."""
KILLED = 137
SECONDS = 120
YEAR = 365 * 86400.0
LINES = 6
"""Lines of the package that tell places in the code apart."""


@dataclass
class Disk:
    """Below `folder`, the operation number `at` (from 1) fails by `mode`."""

    folder: str
    mode: Mode
    at: int
    count: int = 0
    asleep: bool = False
    struck: int = 0
    """Processes that were killed."""
    struck_before: Collection[str] | None = None
    """Instead of a number: the first operation fails that comes from none of these places in the code."""
    place: str = ""
    """Where it failed so."""
    tell: Callable[[str], object] = lambda place: None
    """Called with that place before it does."""

    def ours(self, path: object) -> bool:
        """Whether an operation is counted."""
        if self.asleep or not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.abspath(os.fsdecode(path))
        return place == self.folder or place.startswith(self.folder + os.sep)

    def step(self, torn: Callable[[], object] | None = None, *, grows: bool = True, opens: bool = False) -> None:
        """One operation is due: it `grows` what is on the disk, `opens` a file. `torn` does half of it."""
        if self.mode == "short":  # counts its writes by itself
            return
        self.count += 1
        if self.struck_before is not None and not self.place:
            place = _place()
            if place in self.struck_before:
                return
            self.at, self.place = self.count, place
            self.tell(place)
        if self.mode == "full" and self.count >= self.at and grows:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.mode == "files" and self.count >= self.at and opens:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if self.count != self.at:
            return
        if self.mode == "workers":
            self.struck = kill_workers()
        if self.mode == "kill":
            os._exit(KILLED)
        if self.mode == "torn":
            if torn is not None:
                torn()
            os._exit(KILLED)
        if self.mode == "io":
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def _place() -> str:
    """The innermost lines of the package that led to an operation."""
    frame, lines = sys._getframe(), list[str]()
    while frame is not None and len(lines) < LINES:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] in ("flyspeck", "flyspeck_lab"):
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return " ".join(lines)


def kill_workers() -> int:
    """Kills the processes that this one has started by `multiprocessing`; how many."""
    started = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    for number in started:
        os.kill(number, signal.SIGKILL)
    for number in started:
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    return len(started)


class _File:
    """An open file whose writes are operations."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._disk.step(half)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._disk.step()
        self._file.flush()

    def truncate(self, *size: Any) -> Any:
        self._disk.step(grows=False)
        return self._file.truncate(*size)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *stop: Any) -> Any:
        return self._file.__exit__(*stop)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _ShortRaw(io.FileIO):
    """A file of the system's own writes, each of which takes half of what it is given (at least a byte)."""

    disk: Disk

    def write(self, data: Any, /) -> int:
        content = memoryview(data).cast("B")
        self.disk.count += 1
        return super().write(content[: max(1, len(content) // 2)])


def _short(file: Any, mode: str, disk: Disk, buffering: int, text: dict[str, Any]) -> Any:
    """As `open` gives a file, by way of `_ShortRaw`."""
    raw = _ShortRaw(file, mode.replace("t", "").replace("b", ""))
    raw.disk = disk
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffered
    wrapped = io.TextIOWrapper(buffered, **text, line_buffering=buffering == 1)
    wrapped.mode = mode  # type: ignore[misc]
    return wrapped


def _install(disk: Disk) -> None:
    """For the rest of this process."""
    plain_open, plain_sync = io.open, os.fsync

    def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if not (writes and disk.ours(file)):
            return plain_open(file, mode, *args, **more)
        if disk.mode == "short":
            asked = dict(zip(("buffering", "encoding", "errors", "newline"), args, strict=False)) | more
            return _short(file, mode, disk, asked.pop("buffering", -1), asked)
        return _File(plain_open(file, mode, *args, **more), disk)

    def synced(number: Any) -> None:
        disk.step()
        plain_sync(number)

    plain_write = os.write

    def written(number: int, data: Any, /) -> int:
        content = memoryview(data).cast("B")
        if not (disk.mode == "short" and disk.ours(_name_of(number))):
            return plain_write(number, data)
        disk.count += 1
        return plain_write(number, content[: max(1, len(content) // 2)])

    builtins.open = io.open = opened  # type: ignore[assignment]
    os.write = written  # type: ignore[assignment]
    os.fsync = synced
    if disk.mode == "clock":
        plain_time = time.time
        time.time = lambda: plain_time() - (YEAR if disk.count >= disk.at else 0.0)
    sys.addaudithook(lambda event, args: _audited(disk, event, args))
    _wrap_savers(disk)


def _name_of(number: int) -> object:
    """The file behind a number, where the system tells it."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    return None


def _audited(disk: Disk, event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        flags = args[2] if len(args) > 2 else 0
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and disk.ours(args[0]):
            disk.step(opens=True)
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink") and disk.ours(
        args[0]
    ):
        disk.step()


def _wrap_savers(disk: Disk) -> None:
    """Libraries that write files themselves: half of the file is what they leave when they fail."""

    def wrapped(plain: Callable[..., Any], place: int, failure: type[Exception]) -> Callable[..., Any]:
        def save(*args: Any, **more: Any) -> Any:
            path = args[place]
            if not disk.ours(path):
                return plain(*args, **more)

            def half() -> None:
                disk.asleep = True
                plain(*args, **more)
                os.truncate(path, os.path.getsize(path) // 2)

            try:
                disk.step(half)
            except OSError as error:
                half()
                disk.asleep = False
                raise failure(str(error)) from error
            return plain(*args, **more)

        return save

    torch.save = wrapped(torch.save, 1, RuntimeError)
    save_file = wrapped(tensors.save_file, 1, checkpoint.SafetensorError)
    checkpoint.save_file = weights.save_file = save_file


def run(work: Callable[[], object], folder: Path, *, mode: Mode = "none", at: int = 0) -> tuple[int, int, str]:
    """`work` in a process of its own, on a disk that fails: its exit code, the operations that it came to, and what it said.

    0 where it ended, 2 for a `UserError` or an `OSError`, 3 for another exception, `KILLED`; -1 where it did not end in time.
    What a `count` that ended says are the modules that it imported, for `import_before`; by `workers`, how many were killed.
    """
    return _run(work, Disk(os.path.abspath(folder), mode, at))


def _run(work: Callable[[], object], disk: Disk) -> tuple[int, int, str]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(work, disk, writing)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(SECONDS)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    code = os.waitstatus_to_exitcode(status)
    count, _, text = said.partition("\n")
    return (-1 if code == -signal.SIGKILL else code), int(count or 0), text


def run_to_a_new_place(
    work: Callable[[], object], folder: Path, *, mode: Mode, struck_before: Collection[str]
) -> tuple[int, str, str]:
    """As `run`, but what fails is the first operation that comes from another place in the code than those of `struck_before`.

    In the place of the operations is this place; empty where the work came to none.
    """
    with tempfile.TemporaryFile() as told:
        disk = Disk(os.path.abspath(folder), mode, sys.maxsize, struck_before=struck_before)
        disk.tell = lambda place: os.pwrite(told.fileno(), place.encode(), 0)
        code, _, said = _run(work, disk)
        told.seek(0)
        return code, told.read().decode(), said


def import_before(names: str) -> None:
    """Imports, once, what every process of a job would import anew."""
    for name in names.split():
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)


def _child(work: Callable[[], object], disk: Disk, pipe: int) -> None:
    code, text = 3, ""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        _install(disk)
        done = work()
        code = done if isinstance(done, int) and not isinstance(done, bool) else 0
        text = " ".join(sys.modules) if disk.mode == "count" and not code else ""
        text = f"{disk.struck} killed" if disk.mode == "workers" else text
    except (UserError, OSError) as error:  # the command line makes one line of either
        code, text = 2, str(error)
    except BaseException:
        text = traceback.format_exc()
    finally:
        disk.asleep, disk.mode = True, "none"
        told = text if not code else text[-3000:]
        with os.fdopen(pipe, "wb") as file:
            file.write(f"{disk.count}\n{told}".encode("utf-8", "replace"))
        os._exit(code)
