"""Where an `auto` run stands: one JSON file, rewritten after every stage, so that it can go on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyspeck.errors import UserError
from flyspeck.files import is_left_over, write_json

FILE = "auto.json"
FORMAT = 1


@dataclass
class State:
    """Stages that are done, and the time that was used for them."""

    folder: Path
    asked: Mapping[str, Any]
    """What the run was asked for: it must be the same when it goes on."""
    done: dict[str, Any] = field(default_factory=dict)
    """Stage to what it gave, as plain values."""
    before: float = 0.0
    """Seconds used before this process."""
    clock: Callable[[], float] = time.monotonic
    begun: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @property
    def seconds(self) -> float:
        """Used so far, in all."""
        return self.before + self.clock() - self.begun

    def keep(self, stage: str, value: Any) -> Any:
        """Notes what a stage gave, and writes the file."""
        self.done[stage] = value
        self.save()
        return value

    def forget(self) -> None:
        """Takes away what the first stages wrote, and the folder where it is empty then."""
        self.done = {}
        written = [self.folder / FILE]
        for part in ("data", "recipes"):
            written += [*(self.folder / part).glob("*"), self.folder / part]
        for path in (*written, self.folder):
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                path.rmdir() if path.is_dir() else path.unlink()

    def save(self) -> None:
        """Writes the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "asked": dict(self.asked), "seconds": round(self.seconds, 2), "done": self.done}
        write_json(self.folder / FILE, content)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raises UserError where `folder` holds something and a run is to begin in it, or holds no run and one is to go on."""
    there = (folder / FILE).is_file()
    if resume and not there:
        raise UserError("nothing to resume", where=folder, fix="leave out --resume to start")
    if not resume and folder.exists() and (not folder.is_dir() or not all(map(is_left_over, folder.iterdir()))):
        fix = "go on with --resume, or name another --out" if there else "name another --out"
        raise UserError("is there already", where=folder, fix=fix)


def open_state(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> State:
    """The state of a new run, whose file is written, or of one that goes on. Raises UserError where the folder forbids it."""
    path = folder / FILE
    check_folder(folder, resume=resume)
    if not resume:
        state = State(folder, asked)
        state.save()  # before anything else is written: a run that is killed in its first stage goes on too
        return state
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, known, done = float(content["seconds"]), dict(content["asked"]), dict(content["done"])
        version = int(content["format"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"not the state of a run ({error})", where=path, fix="start anew in another --out") from None
    if version > FORMAT:
        raise UserError("written by a newer version", where=path, fix="update flyspeck")
    if "over" in done:
        raise UserError(
            f"this run is finished ({folder / 'report.html'}): nothing to resume",
            where=folder,
            fix="for another, name another --out",
        )
    other = [key for key, value in asked.items() if known.get(key) != value]
    if other:
        raise UserError(
            f"was begun with another {', '.join(other)}", where=folder, fix="give the same as then, or another --out"
        )
    return State(folder, asked, done, before)
