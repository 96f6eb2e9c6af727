"""A csv table with a header, a box a line: `image_path,xmin,ymin,xmax,ymax,label` (as DeepForest writes it)."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import note_scores, settle_root
from flyspeck.data.readers.values import as_number, as_numbers, as_path, read_text
from flyspeck.errors import UserError
from flyspeck.files import text_of

COLUMNS = {
    "image": ("image_path", "image", "filename", "file_name", "image_name"),
    "label": ("label", "class", "category", "name"),
    "xmin": ("xmin", "x1", "x_min"),
    "ymin": ("ymin", "y1", "y_min"),
    "xmax": ("xmax", "x2", "x_max"),
    "ymax": ("ymax", "y2", "y_max"),
}


_DELIMITERS = (",", ";", "\t", "|")


def read_table(path: Path, options: ReadOptions) -> Annotations:
    """The table of a csv file; boxes are taken as half-open xyxy pixels. Classes are the names that occur, sorted.

    Columns are divided by commas, semicolons (then `5,5` is five and a half), tabs or bars, whichever the header has. Corners
    that all lie between 0 and 1 are shares of the image. A line without any coordinate lists an image without objects.
    """
    text = read_text(path, options.encoding)
    top = int(text[:4].lower() == "sep=")  # Excel's word on what divides the columns
    text = text.partition("\n")[2] if top else text
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    lines = _divided(text, delimiter, path)
    header = [field.strip().lower() for field in lines[0]] if lines else []
    column = _columns(header, path)
    draft = Draft(where=path, root=path.parent)
    rows: dict[str, int] = {}
    spelt: dict[str, str] = {}
    names: list[str] = []
    title, image, label, last = path.name, column["image"], column["label"], max(column.values())
    sides = [column[side] for side in ("xmin", "ymin", "xmax", "ymax")]
    scores: list[float] = []
    score = next((header.index(name) for name in ("score", "confidence", "conf") if name in header), -1)
    size = [header.index(name) if name in header else -1 for name in ("height", "width")]
    for count, fields in enumerate(lines[1:], 2 + top):
        if not "".join(fields).strip():
            continue
        if len(fields) <= last:
            draft.problems.append(f"{title}, line {count}: {len(fields)} fields where the header has {len(header)}")
            continue
        given = text_of(fields[image])
        if given not in spelt:
            spelt[given] = name = as_path(given)
            if name not in rows:
                rows[name] = draft.add_image(name, name, _size(fields, size))
        corners = [fields[side] for side in sides]
        if "".join(corners).strip():
            if delimiter != ",":
                corners = [corner.replace(",", ".") for corner in corners]
            draft.add_box(rows[spelt[given]], as_numbers(corners), -2, f"{title}, line {count}")
            names.append(text_of(fields[label]).strip())
            if 0 <= score < len(fields):
                scores.append(as_number(fields[score]))
    settle_root(draft, [options.images] if options.images else [path.parent, path.parent / "images"])
    known_sizes(draft, options)
    _undo_shares(draft)
    note_scores(draft, scores)
    by_name(draft, names)
    return assemble(draft, options, f"csv: {path.name}")


def _divided(text: str, delimiter: str, path: Path) -> list[list[str]]:
    reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        return list(reader)
    except csv.Error as error:  # a field of more than 131,072 letters
        raise UserError(
            f"not a table ({error})", where=f"{path}, line {reader.line_num}", fix="check the file"
        ) from None


def _columns(header: list[str], path: Path) -> dict[str, int]:
    """The place of each column that is needed; raises UserError where one is not there."""
    column = {}
    for role, known in COLUMNS.items():
        column[role] = next((header.index(name) for name in known if name in header), -1)
        if column[role] >= 0:
            continue
        what, fix = f"no column '{known[0]}'", "the header is image_path,xmin,ymin,xmax,ymax,label"
        if "region_shape_attributes" in header:
            what, fix = "a csv of VIA", "export VIA's json, which is read"
        elif sum(math.isfinite(as_number(field)) for field in header) >= 4:
            what, fix = "the first line is a box, not a header", f"put a first line before it: {fix.rpartition(' ')[2]}"
        raise UserError(what, where=f"{path}, line 1", fix=fix)
    return column


def _size(fields: list[str], at: list[int]) -> tuple[int, int]:
    """(height, width) where the table states them; (-1, -1) otherwise."""
    height, width = (as_number(fields[place]) if 0 <= place < len(fields) else math.nan for place in at)
    return (int(height), int(width)) if 0 < height < 2**31 and 0 < width < 2**31 else (-1, -1)


def _undo_shares(draft: Draft) -> None:
    """Shares of the image become pixels, with a note; boxes of pixels stay."""
    boxes = np.array(draft.boxes, dtype=np.float64).reshape(-1, 4)
    known = boxes[np.isfinite(boxes).all(1)]
    if not len(known) or known.min() < 0 or known.max() > 1:
        return
    sizes = np.array(draft.sizes, dtype=np.float64)[draft.image_index]
    if (sizes < 1).any():
        what = "all corners lie between 0 and 1, as shares of the image, and an image whose size is needed is missing"
        raise UserError(what, where=draft.where, fix="give the folder of the images with --images")
    draft.boxes = (boxes * np.tile(sizes[:, ::-1], 2)).tolist()
    draft.notes.append("all corners lie between 0 and 1: they are read as shares of the image")
