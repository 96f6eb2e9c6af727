"""A csv file that grows line by line and is whole at any moment, a full disk included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flyspeck.infer.writer import closed_if_it_fails, disk_full


class GrowingCsv:
    """`path` begun anew with the line `head`. Raises UserError when the disk does not take it."""

    def __init__(self, path: Path, head: str) -> None:
        self.path = path
        try:
            self._file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise disk_full(path, error) from error
        self._whole = 0  # bytes up to the end of the last lines
        with closed_if_it_fails(self):
            self.add([head])

    def add(self, lines: Sequence[str]) -> None:
        """Append lines, all or none of them."""
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                os.truncate(self.path, self._whole)
                self._file = self.path.open("a", encoding="utf-8", newline="")
            raise disk_full(self.path, error) from error
        self._whole += len(text.encode())

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def seconds_cell(seconds: float) -> str:
    """A time as a field: to the microsecond, without zeros at the end."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
