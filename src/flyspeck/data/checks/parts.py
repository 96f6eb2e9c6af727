"""The parts of a data set, its splits or its annotation files, and the image files that they list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.join import join_annotations
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.data.readers.detect import coco_files, json_files
from flyspeck.data.readers.yolo import CONTENTS, SPLITS, listed_splits
from flyspeck.errors import UserError


@dataclass(frozen=True)
class Part:
    """A split or an annotation file of a data set."""

    name: str
    source: str
    """As `read_annotations` takes it: a path, or `data.yaml:val`."""
    table: Annotations
    format: str


def read_parts(source: Path, also: Sequence[Path] = (), **options: Any) -> list[Part]:
    """The parts of a data set: the COCO files of a folder, the splits of a YOLO data.yaml, else the whole as one; and `also`.

    `options` go to `read_annotations`. Raises UserError for what cannot be read; a split of a yaml whose folder is not there is
    left out with a note, if another is there.
    """
    named = [(name, place) for one in (source, *also) for name, place in _places(one, options.get("format"))]
    if len({str(Path(place).absolute()) for _, place in named}) < len(named):
        raise UserError("the same annotations are given twice", where=named[-1][1], fix="give each part once")
    names = [name for name, _ in named]
    apart = told_apart([place for _, place in named])
    parts: list[Part] = []
    absent: list[str] = []
    for (name, place), own in zip(named, apart, strict=True):
        try:
            table = read_annotations(place, **options)
        except UserError as error:
            split = place.rpartition(":")[2] in SPLITS
            if not split or "does not exist" not in error.what:
                raise
            absent.append(f"the split '{name}' is left out: {error.what}")
            continue
        kind = format_of(place, options.get("format"))
        parts.append(Part(name if names.count(name) == 1 else own, place, table, kind))
    if not parts:
        raise UserError(absent[0].partition(": ")[2], where=source, fix="correct 'path' or the entries")
    if absent:
        first = parts[0]
        parts[0] = replace(first, table=replace(first.table, notes=(*first.table.notes, *absent)))
    return parts


def told_apart(sources: Sequence[str]) -> list[str]:
    """Names for sources of one name: from the folder on that they have in common, which says nothing of what they are for."""
    paths = [Path(source).absolute() for source in sources]
    base = common_folder(paths)
    return [path.relative_to(base).as_posix() for path in paths]


def _places(source: Path, format: str | None) -> list[tuple[str, str]]:
    """Names and sources of the parts in one place."""
    inside = next((p for p in (source / name for name in CONTENTS) if p.is_file()), source)
    if inside.suffix.lower() in (".yaml", ".yml") and format in (None, "yolo") and inside.is_file():
        splits = listed_splits(inside)
        if len(splits) > 1:
            return [(split, f"{inside}:{split}") for split in splits]
    known = {None: coco_files, "coco": json_files}.get(format)
    files = known(source) if known and inside == source and source.is_dir() else []
    if len(files) > 1:
        roboflow = all(file.name == "_annotations.coco.json" for file in files)  # told apart by their folders
        return [(file.parent.name if roboflow else file.name, str(file)) for file in files]
    return [(source.name, str(source))]


def whole_of(source: Path, parts: Sequence[Part]) -> Annotations:
    """All parts as one table, each image once."""
    if len(parts) == 1:
        return parts[0].table
    kinds = " and ".join(dict.fromkeys(part.format for part in parts))
    words = f"{kinds}: {len(parts)} parts of {source.name}, each image counted once"
    joined = join_annotations([part.table for part in parts])
    base = common_folder([Path(name) for name in joined.file_names])
    names = tuple(Path(name).relative_to(base).as_posix() for name in joined.file_names)
    return replace(joined, source=words, root=base, file_names=names)


@dataclass(frozen=True)
class ImageFiles:
    """The F image files that P parts list."""

    paths: tuple[Path, ...]
    """Absolute."""
    member: np.ndarray
    """(F, P) bool: which parts list a file."""
    rows: tuple[np.ndarray, ...]
    """Of each part, (I,) int64: the file of each of its images."""
    corners: tuple[tuple[int, ...] | None, ...]
    """(F,) where a file is a tile, its place in the whole image."""

    def short(self, row: int) -> str:
        """The path from the folder that all files have in common on."""
        return self.paths[row].relative_to(self.base).as_posix()

    @cached_property
    def base(self) -> Path:
        """The deepest folder that holds all files."""
        return common_folder(self.paths)


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of `paths`, which are absolute."""
    folders = [path.parent.parts for path in paths]
    low, high = min(folders, default=()), max(folders, default=())
    length = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return Path(*low[:length])


def image_files_of(parts: Sequence[Part]) -> ImageFiles:
    """The image files of `parts`, each once, in the order in which they are listed."""
    known: dict[Path, int] = {}
    corners: list[tuple[int, ...] | None] = []
    rows = []
    for part in parts:
        places = part.table.image_extra.get("corner")
        own = []
        for image in range(len(part.table)):
            path = part.table.path(image).absolute()
            if path not in known:
                known[path] = len(known)
                corners.append(None if places is None else tuple(int(v) for v in places[image]))
            own.append(known[path])
        rows.append(np.array(own, dtype=np.int64))
    member = np.zeros((len(known), len(parts)), dtype=bool)
    for column, own in enumerate(rows):
        member[own, column] = True
    return ImageFiles(tuple(known), member, tuple(rows), tuple(corners))
