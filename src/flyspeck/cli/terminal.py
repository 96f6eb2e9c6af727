"""What several verbs write on the terminal: how far they have come, and a list of what was wrong that does not flood it."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

import typer

from flyspeck.cli.plain_output import shown, steered
from flyspeck.progress import Advance

PATIENCE = 2.0
"""Seconds that a step may take before it is shown on a terminal."""
LINES = 10.0
"""Seconds until the first line, and between two, where there is no terminal; they become rarer as a step goes on."""
_BAR = 20


def list_problems(problems: Sequence[str], words: str, most: int = 5) -> None:
    """Writes how many `problems` (`words` says of what kind) there are, and the first `most`, to stderr; nothing for none."""
    if problems:
        print(f"note: {len(problems)} {words}:", file=sys.stderr)
        for problem in problems[:most]:
            print(f"  {problem}", file=sys.stderr)
        if len(problems) > most:
            print(f"  and {len(problems) - most} more", file=sys.stderr)


class Steps:
    """Shows the step that a verb is at, once it takes longer than `PATIENCE` or, where there is no terminal, `LINES`, on stderr.

    On a terminal that is one line, drawn anew in place and gone at the end; elsewhere a line now and then, so that a log of hours
    stays short. Whatever else is written meanwhile goes through `say` and `warn`, which put the line aside first.
    """

    def __init__(
        self, first: str = "", *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream: TextIO = steered(sys.stderr) if stream is None else stream
        self._terminal, self._clock = self._stream.isatty(), clock
        self._lock, self._over = threading.RLock(), threading.Event()
        self._now = Advance(first)
        self._begun = self._due = 0.0
        self._drawn = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Steps:
        self._begin(self._now)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *stop: object) -> None:
        self._over.set()
        with self._lock:
            self._aside()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def __call__(self, advance: Advance) -> None:
        """The verb is there now."""
        with self._lock:
            if advance.step != self._now.step:
                self._aside()
                self._begin(advance)
            self._now = advance

    def say(self, line: str) -> None:
        """Writes a line to stdout."""
        with self._lock:
            self._aside()
            typer.echo(_fitted(line, sys.stdout))
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        """Writes a line to stderr."""
        with self._lock:
            self._aside()
            typer.echo(_fitted(line, sys.stderr), err=True)

    def follow(self, line: str) -> None:
        """Writes a line to stdout that says what is done next, and takes its words for the step."""
        self.say(line)
        self(Advance(line.partition("\n")[0][:60]))

    def tick(self) -> None:
        """Draws or writes what is due."""
        with self._lock:
            now = self._clock()
            if not self._now.step or self._over.is_set():
                return
            if self._terminal and now - self._begun < PATIENCE:
                return
            if self._terminal:
                self._write("\r" + shown(self._line(now)) + "\x1b[K")
                self._drawn = True
            elif now >= self._due:
                self._write(shown(self._text(now)) + "\n")
                self._due = now + max(LINES, (now - self._begun) / 5)

    def _begin(self, advance: Advance) -> None:
        self._now, self._begun = advance, self._clock()
        self._due = self._begun + LINES

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self.tick()

    def _aside(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone; the work goes on
            self._over.set()

    def _text(self, now: float) -> str:
        """`detecting: 3 of 20 images, 0:01:20 left`, or how long it has been."""
        at, passed = self._now, now - self._begun
        left = f"{self._left(now)} left" if at.share else f"{_minutes(passed)} so far"
        return f"{at.step}: {', '.join(part for part in (at.words, left) if part)}"

    def _line(self, now: float) -> str:
        """A bar, and what matters most first, cut to the terminal's width: a line that wraps cannot be drawn over."""
        at, text = self._now, self._text(now)
        if at.share is not None:
            filled = int(_BAR * at.share)
            what = f"{at.step}{f': {at.words}' if at.words else ''}"
            left = f", {self._left(now)} left" if at.share else ""
            text = f"[{'#' * filled}{'.' * (_BAR - filled)}] {int(100 * at.share):3d} %{left}, {what}"
        return text[: _width(self._stream) - 1]

    def _left(self, now: float) -> str:
        """The time left, if the rest goes as the step went so far."""
        share = self._now.share or 1.0
        return _minutes((now - self._begun) / share * (1 - share))


def _fitted(text: str, stream: TextIO) -> str:
    """Long lines are broken between words where a terminal would break them anywhere; files and pipes get them whole."""
    if not stream.isatty():
        return text
    room = {
        "break_long_words": False,
        "break_on_hyphens": False,
        "subsequent_indent": "  ",
        "replace_whitespace": False,
    }
    width = _width(stream)
    return "\n".join(
        textwrap.fill(line, width - 1, **room) if len(line) >= width else line  # type: ignore[arg-type]
        for line in text.split("\n")
    )


def _width(stream: TextIO) -> int:
    """Columns of the terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class ProgressBar:
    """`Steps` of a verb that counts one thing: files, images or pairs."""

    def __init__(self, words: str) -> None:
        self._step, self._steps = words, Steps(words)

    def __enter__(self) -> ProgressBar:
        self._steps.__enter__()
        return self

    def __exit__(self, *stop: Any) -> None:
        self._steps.__exit__(*stop)

    def update(self, done: int, total: int) -> None:
        """So many of so many are done."""
        share = done / total if total else None
        self._steps(Advance(self._step, share, f"{done} of {total}"))


def loading(verb: str) -> AbstractContextManager[None]:
    """Within it, what is slow to load is loaded: a line at once, and another now and then; of several processes by the first."""
    from flyspeck.plan.voice import Voice

    if int(os.environ.get("RANK", "0")):
        return nullcontext()
    return Voice(typer.echo).doing(f"flyspeck {verb}: loading")
