"""What every output of a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from flyspeck.errors import UserError
from flyspeck.infer.reading import Result


class Writer(ABC):
    """Takes results one by one."""

    keeps_all: bool = False
    """Whether detections are written that are too weak to be reported: an evaluation wants them."""

    @abstractmethod
    def add(self, result: Result) -> None:
        """Write one image's detections. Raises UserError when the disk does not take them."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes."""


class Closes(Protocol):
    """What holds a file open."""

    def close(self) -> None:
        """Nothing more comes."""
        ...


@contextmanager
def closed_if_it_fails(opened: Closes) -> Iterator[None]:
    """Closes what an exception within it would leave open for good, since nobody gets to know of it."""
    with ExitStack() as stack:
        stack.callback(opened.close)
        yield
        stack.pop_all()


def close_all(opened: Sequence[Closes]) -> None:
    """Closes each in turn, the others too where one raises; that exception is raised at the end."""
    with ExitStack() as stack:
        for one in reversed(opened):
            stack.callback(one.close)


def reported(result: Result, score: float) -> Result:
    """The result without the detections below `score`."""
    found = result.detections
    return replace(result, detections=found[found.scores >= score])


def disk_full(path: Path, error: Exception) -> UserError:
    """The error for a file that could not be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return UserError(
        f"could not be written ({reason})",
        where=path,
        fix="make room and run again with --resume; what was written is whole",
    )
