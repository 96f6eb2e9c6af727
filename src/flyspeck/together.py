"""Several processes that do one thing: where one fails, the others are told, which would wait for it otherwise.

No torch at import: a prediction on one process needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flyspeck.errors import UserError


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
