"""DOTA: `labelTxt/*.txt` with four corners, a class and a difficult flag a line; with or without the two header lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.folders import files_of
from flyspeck.data.readers.places import add_images
from flyspeck.data.readers.values import as_number, as_numbers, as_truth, read_lines
from flyspeck.errors import UserError

CLASSES = (
    *(
        "plane",
        "baseball-diamond",
        "bridge",
        "ground-track-field",
        "small-vehicle",
        "large-vehicle",
        "ship",
        "tennis-court",
    ),
    *("basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool", "helicopter"),
    "container-crane",  # since version 1.5
    *("airport", "helipad"),  # since version 2.0
)
HEADERS = ("imagesource", "gsd")


def read_dota(folder: Path, options: ReadOptions) -> Annotations:
    """The table of a DOTA folder (with `labelTxt/` and `images/`), or of its label folder alone.

    An oriented box becomes the horizontal box around its four corners; `extra["polygon"]` (M, 8) keeps the corners. Classes are
    DOTA's own, in the order of its paper, of the smallest version that has all that occur; other names: sorted.
    """
    labels = next((p for p in sorted(folder.glob("labelTxt*")) if p.is_dir()), folder)
    files = files_of(labels, ".txt")
    if not files:
        raise UserError("no label files", where=labels, fix="give the folder with 'labelTxt' and 'images'")
    draft = Draft(where=folder, root=folder)
    add_images(draft, options.images or labels.parent / "images", [file.stem for file in files])
    polygons, difficult, names = [], [], []
    ground = np.full(len(files), np.nan)
    for row, file in enumerate(files):
        for number, line in enumerate(read_lines(file, options.encoding), 1):
            fields = line.split()
            if not fields or fields[0].lower().startswith(HEADERS):
                if line.lower().startswith("gsd:"):
                    ground[row] = as_number(line.partition(":")[2])
                continue
            if len(fields) < 9:
                draft.problems.append(f"{file.name}, line {number}: {len(fields)} fields where DOTA has 10")
                continue
            corners = as_numbers(fields[:8])
            box = (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
            if not np.isfinite(corners).all():
                box = (float("nan"),) * 4
            draft.add_box(row, box, -2, f"{file.name}, line {number}")
            polygons.append(corners)
            names.append(fields[8])
            difficult.append(bool(as_truth(fields[9] if len(fields) > 9 else "0")))
    draft.names = _class_list(set(names))
    draft.category_ids = list(range(1, len(draft.names) + 1))
    draft.category = [draft.names.index(name) for name in names]
    draft.flags["difficult"] = difficult
    if np.isfinite(ground).any():
        draft.image_extra["metres_per_pixel"] = ground
    draft.extra["polygon"] = np.array(polygons, dtype=np.float64).reshape(-1, 8)
    return assemble(draft, options, f"dota: {folder.name} (horizontal boxes around the oriented ones)")


def _class_list(found: set[str]) -> list[str]:
    for count in (15, 16, 18):
        if found <= set(CLASSES[:count]):
            return list(CLASSES[:count])
    return sorted(found)
