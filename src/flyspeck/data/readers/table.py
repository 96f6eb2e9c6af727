"""A csv table with a header, a box a line: `image_path,xmin,ymin,xmax,ymax,label` (as DeepForest writes it)."""

from __future__ import annotations

import csv
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, find_root, header_size, numbers, read_lines
from flyspeck.errors import UserError

COLUMNS = {
    "image": ("image_path", "image", "filename", "file_name", "image_name"),
    "label": ("label", "class", "category", "name"),
    "xmin": ("xmin", "x1", "x_min"),
    "ymin": ("ymin", "y1", "y_min"),
    "xmax": ("xmax", "x2", "x_max"),
    "ymax": ("ymax", "y2", "y_max"),
}


def read_table(path: Path, options: ReadOptions) -> Annotations:
    """The table of a csv file; boxes are taken as half-open xyxy pixels. Classes are the names that occur, sorted.

    A line without any coordinate lists an image without objects.
    """
    lines = list(csv.reader(read_lines(path)))
    header = [field.strip().lower() for field in lines[0]] if lines else []
    column = {}
    for role, known in COLUMNS.items():
        column[role] = next((header.index(name) for name in known if name in header), -1)
        if column[role] < 0:
            raise UserError(
                f"no column '{known[0]}'",
                where=f"{path}, line 1",
                fix="the header is image_path,xmin,ymin,xmax,ymax,label",
            )
    draft = Draft(where=path, root=path.parent)
    rows: dict[str, int] = {}
    names: list[str] = []
    sides = [column[side] for side in ("xmin", "ymin", "xmax", "ymax")]
    for number, fields in enumerate(lines[1:], 2):
        if not fields:
            continue
        if len(fields) <= max(column.values()):
            draft.problems.append(
                f"{path.name}, line {number}: {len(fields)} fields where the header has {len(header)}"
            )
            continue
        name = fields[column["image"]].strip()
        row = rows[name] if name in rows else rows.setdefault(name, draft.add_image(name, name))
        if any(fields[side].strip() for side in sides):
            draft.add_box(row, numbers([fields[side] for side in sides]), -2, f"{path.name}, line {number}")
            names.append(fields[column["label"]].strip())
    draft.root = options.images or find_root([path.parent, path.parent / "images"], draft.file_names)
    for row, name in enumerate(draft.file_names):
        if (draft.root / name).is_file():
            draft.sizes[row] = header_size(draft, draft.root / name)
    draft.names = sorted(set(names))
    draft.category_ids = list(range(1, len(draft.names) + 1))
    row_of = {name: row for row, name in enumerate(draft.names)}
    draft.category = [row_of[name] for name in names]
    return assemble(draft, options, f"csv: {path.name}")
