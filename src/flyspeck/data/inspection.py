"""`inspect`: what is in a data set, what is broken, and what it asks of a detector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.inspect import inspect as inspect_set
from flyspeck.data.inspect_text import lines


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set; `print` shows it as `flyspeck data inspect` does."""

    annotations: Annotations
    """The table that was read."""
    facts: dict[str, Any]
    """Plain values, as in `flyspeck data inspect --json`: `objects` (count, sizes in px), `sizes` (boxes by bin of the size),
    `classes`, `image_sizes`, `ignore_regions`, `broken_entries`, `missing_files`, `implies` (finest stride, anchors, tiles),
    `fusion`, `warnings`."""

    def text(self) -> str:
        """The facts for people: sizes first, then classes, files, what follows from them and what to look at."""
        return "\n".join(lines(self.facts))

    def __str__(self) -> str:
        return self.text()


def inspect(
    source: str | os.PathLike[str],
    *,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    check_files: bool = True,
) -> Inspection:
    """Look at a data set before training on it.

    Args:
        source: Annotations: a file or folder in any of the formats read. A folder with several COCO files is taken whole, each
            image once.
        format: Name of the format, instead of having it found out.
        images: Folder of the images, where it is not the usual one.
        classes: Names of the classes to read; None reads all.
        check_files: Look for each image and compare its size with what the annotations say.

    Returns:
        The table and the facts on it. Sizes are sqrt(width * height) in pixels of the files' images.

    Raises:
        UserError: For a source that is not there or in no known format. Single broken entries are counted, not raised.
    """
    table, facts = inspect_set(
        Path(source),
        check_files=check_files,
        format=format,
        images=None if images is None else Path(images),
        classes=classes,
    )
    return Inspection(table, facts)
