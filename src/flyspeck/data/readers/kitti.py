"""KITTI's object benchmark: `label_2/*.txt` beside `image_2/`, a line an object: type, truncated, occluded, alpha, box, …

The box is the fifth to eighth field, edges in pixels from 0 (the development kit's readme). `DontCare` is an ignore region.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.folders import files_of
from flyspeck.data.readers.places import add_images, note_scores
from flyspeck.data.readers.values import as_number, as_numbers, read_lines
from flyspeck.errors import UserError

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")


def read_kitti(folder: Path, options: ReadOptions) -> Annotations:
    """The table of a KITTI folder (with `label_2/` and `image_2/`), or of its label folder alone.

    Classes are KITTI's own, or, where others occur, those that do, sorted. `extra` has `truncated` (a share) and `occlusion`.
    """
    labels = next((folder / name for name in ("label_2", "labels") if (folder / name).is_dir()), folder)
    files = files_of(labels, ".txt")
    if not files:
        raise UserError("no label files", where=labels, fix="give the folder with 'label_2' and 'image_2'")
    draft = Draft(where=folder, root=folder)
    places = [labels.parent / name for name in ("image_2", "images", "image_02")]
    images = options.images or next((place for place in places if place.is_dir()), labels)
    add_images(draft, images, [file.stem for file in files])
    names: list[str] = []
    columns: list[list[float]] = []
    for row, file in enumerate(files):
        for count, line in enumerate(read_lines(file, options.encoding), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) not in (15, 16):
                draft.problems.append(f"{file.name}, line {count}: {len(fields)} fields where KITTI has 15")
                continue
            truncated, occluded, _, *box = as_numbers(fields[1:8])
            draft.add_box(row, box, -2, f"{file.name}, line {count}")
            names.append(fields[0])
            columns.append([truncated, occluded, as_number(fields[15]) if len(fields) > 15 else np.nan])
    table = np.array(columns, dtype=np.float64).reshape(-1, 3)
    note_scores(draft, table[:, 2].tolist())
    draft.extra = {"truncation": table[:, 0], "occlusion": table[:, 1]}
    known = set(names) <= {*CLASSES, "DontCare"}
    by_name(draft, names, listed=[*CLASSES, *(["DontCare"] if "DontCare" in names else [])] if known else [])
    return assemble(draft, options, f"kitti: {folder.name}")
