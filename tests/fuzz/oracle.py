"""What may happen with a damaged file: an answer, or one line that says what is wrong. Everything else is a finding."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flyspeck.errors import UserError
from watched_effects import effects

SECONDS = 10
"""Of the processor that anything with a small file may take; six times as many by the clock."""
MEGABYTES = 1000
"""Of memory that it may take beyond what was there."""
ANSWER, LINE = "answer", "one line"
KINDS = (ANSWER, LINE, "traceback", "several lines", "hang", "memory", "effect")


class Hang(BaseException):
    """No Exception, so that no handler on the way takes it for a broken file."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    kind: str
    """One of `KINDS`; all but the first two are findings."""
    what: str = ""
    """A finding's place: equal ones are one cluster."""
    detail: str = ""

    @property
    def found(self) -> bool:
        """Whether it is a finding."""
        return self.kind not in (ANSWER, LINE)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"after {seconds} s of the processor, or {6 * seconds} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 6 * seconds)}
    before = {number: signal.signal(number, stop) for number in timers}
    for which, most in timers.values():
        signal.setitimer(which, most)
    try:
        yield
    finally:
        for number, (which, _) in timers.items():
            signal.setitimer(which, 0)
            # One that is on its way to another thread already would end the process by the default.
            signal.signal(number, signal.SIG_IGN if before[number] == signal.SIG_DFL else before[number])


def _peak() -> int:
    """Megabytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)


def judged(use: Callable[[], object], *, writes: Path) -> Outcome:
    """The outcome of `use`, which may write below `writes` alone; a command's exit code is what it returns."""
    out, scratch = io.StringIO(), writes / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    before, kept = _peak(), tempfile.tempdir
    tempfile.tempdir = str(scratch)
    try:
        with (
            effects(writes) as seen,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            warnings.catch_warnings(),
            _within(SECONDS),
        ):
            warnings.simplefilter("ignore")  # libraries warn of damaged files; the suite's own tests see to ours
            code = use()
    except UserError as error:
        outcome = _line(str(error))
    except Hang as error:
        outcome = Outcome("hang", _place(error), str(error))
    except BaseException as error:
        outcome = Outcome("traceback", f"{type(error).__name__} {_place(error)}", _short(error))
    else:
        outcome = _of_code(code, out.getvalue(), scratch)
    finally:
        tempfile.tempdir = kept
    if not outcome.found and seen.found:
        return Outcome("effect", re.sub(r"\d+", "N", os.path.basename(seen.found[0])), seen.found[0])
    if not outcome.found and _peak() - before > MEGABYTES:
        return Outcome("memory", f"{_peak() - before} MB", outcome.detail)
    return outcome


def _line(text: str) -> Outcome:
    whole = text.isprintable() and len(text) < 4000
    return Outcome(LINE, detail=text) if whole else Outcome("several lines", text[:60], text[:500])


def _of_code(code: object, said: str, scratch: Path) -> Outcome:
    """Of a command: 0 is an answer, 2 a line, 1 a fault whose traceback lies in a file."""
    if "\x1b" in said:  # it is no terminal that this goes to, so it comes from the input
        return Outcome("effect", "an escape sequence for the terminal", said[-500:])
    if not isinstance(code, int) or isinstance(code, bool) or code == 0:
        return Outcome(ANSWER)
    if code == 1:
        kept = sorted(scratch.glob("flyspeck-*.txt"), key=lambda path: path.stat().st_mtime)
        text = kept[-1].read_text(encoding="utf-8", errors="replace") if kept else said
        for path in kept:
            path.unlink()
        if not kept and "not enough memory" in said:
            return Outcome("memory", "MemoryError", said)
        places = re.findall(r'File "([^"]*)", line (\d+)', text)
        ours = [place for place in places if "flyspeck" in place[0]] or places or [("?", "0")]
        name = (text.strip().splitlines() or ["?"])[-1].partition(":")[0]
        return Outcome("traceback", f"{name} {_inside(ours[-1][0])}:{ours[-1][1]}", text[-2500:])
    lines = [line for line in said.splitlines() if line.startswith("error")]
    if len(lines) != 1:
        return Outcome("several lines", f"exit {code}, {len(lines)} lines", said[-500:])
    return _line(lines[0])


def _inside(file: str) -> str:
    return file.rpartition("/src/")[2] if "/src/" in file else "/".join(file.split("/")[-2:])


def _place(error: BaseException) -> str:
    """File and line of ours nearest to where an exception came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/flyspeck/" in frame.filename] or list(frames)
    return f"{_inside(ours[-1].filename)}:{ours[-1].lineno}" if ours else "?"


def _short(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-2500:]


def as_json(outcome: Outcome) -> str:
    """A finding for a file of findings."""
    return json.dumps({"kind": outcome.kind, "what": outcome.what, "detail": outcome.detail})
