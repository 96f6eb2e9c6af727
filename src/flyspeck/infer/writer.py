"""What every output of a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.infer.reading import Result


class Writer(ABC):
    """Takes results one by one."""

    @abstractmethod
    def add(self, result: Result) -> None:
        """Write one image's detections. Raises UserError when the disk does not take them."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes."""


def disk_full(path: Path, error: Exception) -> UserError:
    """The error for a file that could not be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return UserError(
        f"could not be written ({reason})",
        where=path,
        fix="make room and run again with --resume; what was written is whole",
    )
