"""Whether the images of a set are there and can be read: said in one line before anything is measured or trained."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.leaks import Links
from flyspeck.errors import UserError, counted
from flyspeck.train.checks import image_faults

SHOWN = 200
"""Letters of the first fault that are shown."""


def check_there(*sources: Path | None) -> None:
    """Raises UserError where there is no such file or folder; `data.yaml:val` is left to its reader."""
    for source in sources:
        if source is not None and ":" not in source.name and not source.exists():
            raise UserError("no such file or folder", where=source, fix="check the path")


def check_headers(data: Path, tables: Iterable[Annotations]) -> None:
    """Raises UserError where images are missing, are none, or are of another size than the annotations say."""
    for table in tables:
        faults, _ = image_faults(table)
        if faults:
            _refuse(data, table, len(faults), next(iter(faults.values())))


def check_pixels(data: Path, tables: Iterable[Annotations], links: Links) -> None:
    """Raises UserError where images cannot be decoded; says nothing where `links` were found without pixels."""
    if links.prints is None or not links.prints.problems:
        return
    for number, table in enumerate(tables):
        bad = np.flatnonzero(~links.prints.readable[links.files.rows[number]])
        if len(bad):
            path = str(table.path(int(bad[0])).absolute())
            _refuse(data, table, len(bad), next((p for p in links.prints.problems if path in p), path))


def _refuse(data: Path, table: Annotations, count: int, first: str) -> None:
    short = first if len(first) <= SHOWN else f"{first[: SHOWN - 1]}…"
    what = f"{count} of {counted(len(table), 'image')} cannot be used; the first: {short}"
    if count == len(table):
        raise UserError(what, where=table.source, fix="name the folder of the images with --images")
    again = f"flyspeck data inspect {shlex.quote(str(data))}"
    raise UserError(
        what,
        where=table.source,
        fix=f"put them in place (`{again}` lists them), or leave out what is missing or unreadable: {again} --fix FOLDER",
    )
