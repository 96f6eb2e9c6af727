"""Which files a folder holds: endings in any case, folders behind links too, without what systems leave behind."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

_LEFT_BEHIND = {"__MACOSX", ".ipynb_checkpoints", "@eaDir", ".git", ".Trash"}
"""Folders of copies and thumbnails, which nobody put there."""


def files_of(folder: Path, endings: str | Collection[str], *, recursive: bool = False) -> list[Path]:
    """The files of a folder with one of the `endings` (lower case, with the dot; `.TXT` is `.txt`), sorted by name.

    `._a.jpg`, which macOS puts beside `a.jpg`, is none. A folder that is not there has no files.
    """
    wanted = (endings,) if isinstance(endings, str) else tuple(endings)
    return sorted(file for file in all_files(folder, recursive=recursive) if file.name.lower().endswith(wanted))


def all_files(folder: Path, *, recursive: bool = False) -> Iterator[Path]:
    """Every file, links to files among them."""
    for place, folders, names in walk(folder):
        if not recursive:
            folders.clear()
        yield from (Path(place, name) for name in names if is_there(os.path.join(place, name)))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` by name, through links too; a folder that several links lead to is looked into once.

    Without what systems leave behind; whoever takes a name out of the folders spares itself that folder.
    """
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refused):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if name not in _LEFT_BEHIND)
        yield place, folders, sorted(name for name in names if not name.startswith("._"))


def _refused(error: OSError) -> None:
    # A name that is too long for any folder is one that is not there.
    if not isinstance(error, FileNotFoundError | NotADirectoryError) and error.errno != errno.ENAMETOOLONG:
        raise error


def is_there(path: Path | str) -> bool:
    """Whether a file that an annotation names exists; a name that no file can have (too long, with a NUL) does not."""
    return os.path.isfile(path)


def on_disk(folder: Path, name: str) -> str:
    """`name`, or its other Unicode form where the file of `folder` has that: macOS parts the accents from the letters."""
    if name.isascii() or is_there(folder / name):
        return name
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((form for form in forms if is_there(folder / form)), name)
