"""Ctrl-C and a polite kill: the step is finished and saved before the run stops."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

log = logging.getLogger("flyspeck")


class Interrupt:
    """Within it, the first SIGINT or SIGTERM that comes while `armed` is only noted, in `asked`; all others act at once.

    Of several processes each is told apart, and one that stops a step before the others makes them wait for ever: there, and in
    other threads than the main one, where no signal arrives, nothing changes.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """`alone` says that this is the run's only process."""
        self.armed = False
        self.asked = 0
        """The signal; 0 as long as there was none."""
        self._works = alone and threading.current_thread() is threading.main_thread()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for kind in (signal.SIGINT, signal.SIGTERM) if self._works else ():
            self._before[kind] = signal.signal(kind, self._noted) or signal.SIG_DFL  # None: not by Python
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.asked:
            raise self.error(number)
        self.asked = number
        log.warning("stopping after this step%s", " (Ctrl-C again: at once)" if number == signal.SIGINT else "")

    @staticmethod
    def error(number: int) -> BaseException:
        """What a program that was sent the signal ends with."""
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def said_how_to_go_on(folder: Path, *, finish: bool = False) -> Iterator[None]:
    """Where the training in `folder` is interrupted, a line says where it stood and how it goes on: with --resume, and with
    --finish too where the command has that. Commands that go on in another way say so themselves.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not stop.args:  # it had not begun to train
            raise
        how = "before its first checkpoint: --resume begins anew"
        if (folder / "state.pt").exists():
            how = "--resume goes on from its last checkpoint"
            how += ", with --finish it only brings its learning rate down and ends" if finish else ""
        log.warning("interrupted %s; %s (%s)", stop, how, folder)
        raise
