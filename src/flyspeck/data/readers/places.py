"""Where a format's images lie, and what has no partner: label files without image, images without label file."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from flyspeck.data.images import EXTENSIONS, UNREAD, read_size
from flyspeck.data.readers.assemble import Draft
from flyspeck.data.readers.folders import all_files, files_of, is_there, on_disk
from flyspeck.errors import UserError, counted, install


def find_root(candidates: Sequence[Path], names: Sequence[str]) -> Path:
    """The first folder that holds one of the first images named; the first candidate where none does."""
    for folder in candidates:
        if any(is_there(folder / name) for name in names[:20]):
            return folder
    return candidates[0]


_DEEPEST = 32
"""Folders below which no image is looked for by the tail of its name."""


def settle_root(draft: Draft, candidates: Sequence[Path]) -> None:
    """Sets the folder of the images, and shortens names that hold a path of the machine that the tool ran on.

    Where none of the first images named lies in a candidate, the longest tail of its path that does is taken for all.
    """
    draft.root = find_root(candidates, draft.file_names)
    draft.file_names = [on_disk(draft.root, name) for name in draft.file_names]
    names = draft.file_names[:20]
    listings: dict[Path, dict[str, str | None]] = {}
    if not any(is_there(draft.root / name) for name in names) and not _drop_lead(draft, candidates):
        pairs = ((folder, name) for folder in candidates for name in names)
        draft.root = next((folder for folder, name in pairs if _spelt(folder, name, listings)), draft.root)
    changed = []
    for row, name in enumerate(draft.file_names):
        here = None if is_there(draft.root / name) else _spelt(draft.root, name, listings)
        if here is not None:
            draft.file_names[row] = here
            changed.append(f"{here} for {name}")
    note_alone(draft, changed, "images are on the disk with other letters (case, %20), and are taken")


def _spelt(folder: Path, name: str, listings: dict[Path, dict[str, str | None]]) -> str | None:
    """The file that differs from `name` in capitals, Unicode form or the `%20` of an address alone; None for none or several.

    `listings` keeps what was found in each folder.
    """
    lead, slash, last = name.rpartition("/")
    place = folder / lead
    if place not in listings:
        listing: dict[str, str | None] = {}
        for file in image_files(place):
            key = _fold(file.name)
            listing[key] = None if key in listing else file.name
        listings[place] = listing
    here = listings[place].get(_fold(last))
    return None if here is None else f"{lead}{slash}{here}"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _drop_lead(draft: Draft, candidates: Sequence[Path]) -> bool:
    """Takes from all names what stands before the longest tail that lies in a candidate; False where none does."""
    names = draft.file_names[:20]
    for folder in candidates:
        for name in names:
            parts = name.split("/")
            for cut in range(max(1, len(parts) - _DEEPEST), len(parts)):
                if is_there(folder / "/".join(parts[cut:])):
                    lead = "/".join(parts[:cut]) + "/"
                    draft.root = folder
                    draft.file_names = [name.removeprefix(lead) for name in draft.file_names]
                    draft.notes.append(
                        f"images are looked for in {folder} without '{lead}' of their names; --images says otherwise"
                    )
                    return True
    return False


def add_images(draft: Draft, folder: Path, stems: Sequence[str]) -> None:
    """Append the image of each stem found in `folder` (ids are the stems), with its size read from the header.

    An image that is not there is listed as `<stem>.jpg` without a size; loading it later says that it is missing.
    """
    files = image_files(folder) if folder.is_dir() else []
    found = _by_stem(draft, files)
    draft.root = folder
    for stem in stems:
        name = found.get(stem)
        size = (-1, -1) if name is None else header_size(draft, folder / name)
        draft.add_image(stem, name or f"{stem}.jpg", size)
    note_alone(draft, [stem for stem in stems if stem not in found], "annotation files have no image", folder)
    alone = [name for stem, name in found.items() if stem not in set(stems)]
    note_alone(draft, alone, "images have no annotation file, and are no part of the set")
    note_unread(draft, folder)


def _by_stem(draft: Draft, files: Sequence[Path]) -> dict[str, str]:
    """File names by stem, the first of those that share one."""
    found: dict[str, str] = {}
    twins = []
    for file in files:
        if file.stem in found:
            twins.append(f"{found[file.stem]} and {file.name}")
        found.setdefault(file.stem, file.name)
    note_alone(draft, twins, "pairs of images share one annotation file, which is taken for the first of each")
    return found


_OF_ONE = {"have": "has", "are": "is", "name": "names", "belong": "belongs"}
_OF_SEVERAL = re.compile(rf"^((?:label |annotation )?(?:file|image))s ({'|'.join(_OF_ONE)})\b")


def note_alone(draft: Draft, names: Sequence[str], what: str, folder: Path | None = None) -> None:
    """A note that counts and names (the first few of) `names`; nothing where there are none. `what` speaks of several."""
    if names:
        if len(names) == 1:
            what = _OF_SEVERAL.sub(lambda found: f"{found[1]} {_OF_ONE[found[2]]}", what).replace(
                ", and are ", ", and is "
            )
        place = "" if folder is None else f" in {folder}"
        draft.notes.append(f"{len(names)} {what}{place} ({some(names)})")


def note_listed(
    draft: Draft, missing: str, alone: str = "images have no annotation file, and are no part of the set"
) -> None:
    """Notes on listed images that are not there, on others in their folders that are not listed, and on unread kinds.

    `missing` and `alone` are what the first two are said to be.
    """
    listed = {draft.root / name: name for name in draft.file_names}
    note_alone(draft, [name for path, name in listed.items() if not is_there(path)], missing, draft.root)
    for folder in sorted({path.parent for path in listed}):
        note_alone(draft, [file.name for file in image_files(folder) if file not in listed], alone)
        note_unread(draft, folder)


def note_scores(draft: Draft, scores: Iterable[float]) -> None:
    """A note on entries with a score, as detections have: `scores` has their numbers, NaN and 0 or 1 where there is none."""
    count = sum(math.isfinite(score) and score not in (0, 1) for score in scores)
    if count:
        draft.notes.append(
            f"{counted(count, 'box has', 'boxes have')} a score, as detections do: read as annotations all the same"
        )


def note_unread(draft: Draft, folder: Path, *, recursive: bool = False) -> None:
    """A note on images of a kind that nothing here reads, or only an extra does."""
    draft.notes += unread(folder, recursive=recursive)


def unread(folder: Path, *, recursive: bool = False) -> list[str]:
    """A line for each kind of image in a folder that nothing here reads, or only an extra does: how many, and the first few."""
    files = list(all_files(folder, recursive=recursive))
    lines = []
    for ending, extra in UNREAD.items():
        names = sorted(file.name for file in files if file.suffix.lower() == ending)
        fix = f"{install(extra)} to read them" if extra else "convert them"
        if names:
            one, more = f"image is a {ending} file, which is", f"images are {ending} files, which are"
            lines.append(f"{counted(len(names), one, more)} not read here ({fix}) ({some(names)})")
    return lines


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of `names`, with commas between."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """The images in a folder, sorted by name."""
    return files_of(folder, EXTENSIONS, recursive=recursive)


def header_size(draft: Draft, path: Path) -> tuple[int, int]:
    """(height, width) from the header of an image that a folder has; (-1, -1) and a problem where the file cannot be read."""
    try:
        return read_size(path)
    except UserError as error:
        draft.problems.append(f"{path.name}: {error.what}")
        return -1, -1
