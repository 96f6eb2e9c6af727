"""Images that annotations name, and where they may lie.

A file of annotations from elsewhere may name any file of this machine, as `/home/me/.ssh/key` or `../../key`, and what reads the
set would show that file, or copy it into a new set. So what is named otherwise than below the folder of the images must lie
below the folder of the annotations, below the folder that was given for the images, or below the working folder (unless that is
the home folder or the root), there in no hidden folder or file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flyspeck.data.readers.places import some
from flyspeck.errors import UserError, counted


def refuse_outside(root: Path, names: Sequence[str], *, source: Path, images: Path | None = None) -> None:
    """Raises UserError where one of the image files `names`, relative to `root`, is there and lies where it may not.

    `source` is the file or folder of annotations, `images` the folder that was given for its images.
    """
    outside = list(_outside(root, names, source, images))
    if outside:
        raise UserError(
            f"it names {counted(len(outside), 'image')} outside of its folder ({some(outside)})",
            where=source,
            fix="--allow-references (allow_references=True) reads whatever it names, if you trust it",
        )


def _outside(root: Path, names: Sequence[str], source: Path, images: Path | None) -> Iterator[str]:
    suspects = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if not suspects:
        return
    folders = [
        (source if source.is_dir() else source.parent).resolve(),
        *([] if images is None else [images.resolve()]),
    ]
    here = Path.cwd()
    working = here not in (Path.home(), Path(here.anchor))
    for name in suspects:
        place = (root / name).resolve()
        if any(place.is_relative_to(folder) for folder in folders) or not place.exists():
            continue
        if working and place.is_relative_to(here):
            parts = place.relative_to(here).parts
            if not any(part.startswith(".") for part in parts):
                continue
        yield name
