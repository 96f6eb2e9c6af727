"""labelme (wkentaro): a json file for each image, with shapes of corners in pixels."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.folders import files_of, is_there
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import note_listed, settle_root
from flyspeck.data.readers.values import as_name, as_number, as_numbers, as_path, load_json
from flyspeck.errors import UserError, counted
from flyspeck.files import without_ending

_NO_AREA = ("point", "line", "linestrip", "points")


def read_labelme(source: Path, options: ReadOptions) -> Annotations:
    """The table of a folder of labelme files, or of one file.

    Rectangles, polygons, circles and masks become the box around them; points and lines have none and are counted in a note.
    Classes are the labels that occur, sorted. Image ids are the names of the json files.
    """
    files = [source] if source.is_file() else files_of(source, ".json", recursive=True)
    draft = Draft(where=source, root=source if source.is_dir() else source.parent)
    names: list[str] = []
    without: Counter[str] = Counter()
    for file in files:
        content = load_json(file, options.encoding)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            draft.problems.append(f"{file.name}: no list 'shapes'")
            continue
        _read_file(draft, file, content, names, without)
    if not draft.image_ids:
        raise UserError("no labelme files", where=source, fix="give the folder of the json files")
    settle_root(draft, [options.images] if options.images else [draft.root, draft.root / "images", draft.root.parent])
    known_sizes(draft, options)
    if source.is_dir():
        note_listed(draft, "annotation files have no image")
    for kind, count in sorted(without.items()):
        draft.notes.append(f"{counted(count, 'shape is', 'shapes are')} a {kind} without a box: left out")
    by_name(draft, names)
    return assemble(draft, options, f"labelme: {source.name}")


def _read_file(draft: Draft, file: Path, content: dict[str, Any], names: list[str], without: Counter[str]) -> None:
    height, width = as_number(content.get("imageHeight")), as_number(content.get("imageWidth"))
    size = (int(height), int(width)) if 0 < height < 2**31 and 0 < width < 2**31 else (-1, -1)
    # The path is as seen from the json file; files of sub-folders are named from the folder that is read.
    stated = as_path(str(content.get("imagePath") or f"{file.stem}.jpg"))
    beside = file.parent / stated
    found = Path(os.path.normpath(beside)) if is_there(beside) else None
    inside = found is not None and found.is_relative_to(draft.root)
    name = (
        Path(stated).name
        if found is None
        else found.relative_to(draft.root).as_posix()
        if inside
        else str(found.absolute())
    )
    key = without_ending(file.relative_to(draft.root)).as_posix() if file.is_relative_to(draft.root) else file.stem
    row = draft.add_image(key, name, size)
    for count, shape in enumerate(content["shapes"], 1):
        place = f"{file.name}, shape {count}"
        if not isinstance(shape, dict):
            draft.problems.append(f"{place}: no object")
            continue
        kind = str(shape.get("shape_type") or "polygon")
        if kind in _NO_AREA:
            without[kind] += 1
            continue
        draft.add_box(row, _box(kind, shape.get("points")), -2, place)
        names.append(as_name(shape.get("label")))
        draft.outlines += kind not in ("rectangle", "rotation")


def _box(kind: str, points: Any) -> list[float]:
    """xyxy around a shape's points; NaN where they are not what the kind needs."""
    rows = [as_numbers(p) for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
    if len(rows) < 2 or len(rows) != len(points) or not all(math.isfinite(side) for point in rows for side in point):
        return [math.nan] * 4
    if kind == "circle":
        (x, y), edge = rows[0], rows[1]
        radius = math.dist((x, y), edge)
        return [x - radius, y - radius, x + radius, y + radius]
    xs, ys = zip(*rows, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]
