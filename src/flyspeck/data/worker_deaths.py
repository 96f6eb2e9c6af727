"""Where the death of a process that reads images is told: where its batch is waited for, in one line.

PyTorch raises it by a handler of SIGCHLD, wherever the main process happens to be then: in the middle of a step, of a file, or of
an exchange for which other processes wait. Here it waits until a batch is asked for, which a run can be stopped at.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from flyspeck.errors import UserError

Value = TypeVar("Value")
_SAID = "DataLoader worker"
"""Begins what PyTorch says of a worker that has died."""
_KILLED = re.compile(r"is killed by signal: (?P<signal>[^.]+)")
_REASONS = {
    "Killed": "as a system does that has no memory left",
    "Bus error": "as where shared memory, /dev/shm, is full",
}
_SETTER = "torch.utils.data._utils.signal_handling"


class _Held:
    """In the place of PyTorch's handler, once that has set one: it raises where a batch is waited for, and nowhere else."""

    theirs: Callable[[int, FrameType | None], Any] | None = None
    waiting = False
    noted = ""
    """What it said while no batch was waited for; it says it once."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Of a signal."""
        try:
            if self.theirs is not None:
                self.theirs(number, frame)
        except RuntimeError as error:
            if self.waiting or not str(error).startswith(_SAID):
                raise
            self.noted = str(error)

    def hold(self) -> None:
        """Takes the place."""
        now = signal.getsignal(signal.SIGCHLD)
        if getattr(now, "__module__", "") == _SETTER:
            self.theirs = now  # type: ignore[assignment]
            signal.signal(signal.SIGCHLD, self)


_held = _Held()


def told(work: Callable[[], Value]) -> Value:
    """What `work` gives, which asks workers for a batch or starts them; the death of one is a UserError here."""
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    try:
        _held.waiting = main
        if main and _held.noted:
            raise RuntimeError(_held.noted)  # at once: what it had begun to hand over would be waited for for ever
        found = work()
        if main:
            _held.hold()
        return found
    except RuntimeError as error:
        del work  # and PyTorch's error is not kept: what they hold keeps the other workers alive
        death = _death(f"{error}; {error.__cause__}")
        if death is None:
            raise
    finally:
        _held.waiting = False
    forget()
    raise death


def forget() -> None:
    """The workers that were waited for are not needed any more."""
    _held.noted = ""


def _death(said: str) -> UserError | None:
    """The line for what PyTorch said; None where it is not of a worker's death."""
    if not said.startswith(_SAID):
        return None
    found = _KILLED.search(said)
    kind = found["signal"].strip() if found else ""
    how = f"was ended by the system (signal: {kind})" if kind else "has died"
    reason = f", {_REASONS[kind]}" if kind in _REASONS else ""
    return UserError(
        f"a process that reads images {how}{reason}",
        where="workers",
        fix="free some memory or take fewer workers (train.workers, --workers; 0: none), then go on with --resume",
    )
