"""Several processes that do one thing: where one fails, the others are told, which would wait for it otherwise.

No torch at import: a prediction on one process needs none.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flyspeck.errors import UserError

_PATIENCE = (
    10.0  # seconds that a program which ends waits for an exchange that is still under way: of a failed step only
)
_REST = 0.1  # seconds in which a thread that waits for the interpreter's lock gets it


@contextmanager
def joining() -> Iterator[None]:
    """The process group that is made in it is left when the program ends; one that was there before is its maker's to leave.

    PyTorch's threads let go of the tensors of an exchange some time after it is over, and take the interpreter's lock for it
    (gloo, Python before 3.14). One that is late finds an interpreter that has ended, and by that the process dies of SIGABRT
    after all was done.
    """
    from torch import distributed

    before = distributed.is_available() and distributed.is_initialized()
    yield
    if not before and distributed.is_available() and distributed.is_initialized():
        atexit.register(_Leaving())


class _Leaving:
    """Leaves the process group, without the others: they may have gone, or hang."""

    def __init__(self) -> None:
        self._process, self._asked = os.getpid(), threading.Event()
        # A thread, since an exchange under way cannot be broken off; begun now, since Python 3.12 begins none at its end.
        self._thread = threading.Thread(target=self._leave, name="flyspeck-leaving", daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        if os.getpid() != self._process:  # a fork's copy: the group is not its own
            return
        gc.collect()  # what holds the group in a circle, as a DistributedDataParallel does
        self._asked.set()
        self._thread.join(_PATIENCE)
        # Who still holds the group keeps its threads alive; each that waits for the lock has it now.
        time.sleep(_REST)

    def _leave(self) -> None:
        from torch import distributed

        self._asked.wait()
        with suppress(Exception):  # broken by another process's end, or left already
            distributed.destroy_process_group()


def share_failure(error: Exception | None, *, rank: int, world: int, device: Any = "cpu") -> None:
    """Called by every process at the same point, with what has gone wrong there; returns when all have come and none has failed.

    Args:
        error: What this process ran into; None: nothing.
        rank: Its number, from 0.
        world: How many there are; one alone waits for nobody.
        device: Where tensors that the processes exchange have to be.

    Raises:
        Exception: `error` itself, where it is this process's own; else a UserError that says which process failed, and why.
    """
    if world > 1:
        told = _told(None if error is None else _line(error), device)
        if error is None and told:
            number, text = told[0]
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise UserError(f"process {number + 1} of {world} failed{more}: {text}", fix="what it says is to be mended")
    if error is not None:
        raise error


@contextmanager
def together(*, rank: int, world: int, device: Any = "cpu") -> Iterator[None]:
    """What stands in it succeeds on all processes, or is an error on all; see `share_failure`."""
    error: Exception | None = None
    try:
        yield
    except Exception as failed:
        error = failed
    share_failure(error, rank=rank, world=world, device=device)


def _told(line: str | None, device: Any) -> list[tuple[int, str]]:
    """Which processes have failed, with their lines. One number goes around where none has, as nearly always."""
    import torch
    from accelerate.utils import gather_object

    failed = torch.tensor([0.0 if line is None else 1.0], device=device)
    torch.distributed.all_reduce(failed)
    if not failed.item():
        return []
    lines: list[str | None] = gather_object([line])
    return [(number, text) for number, text in enumerate(lines) if text is not None]


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
