"""VisDrone-DET: one text file per image, `x,y,w,h,score,category,truncation,occlusion`.

Category 0 is an ignored region, and 11 ("others") is no class of the benchmark; a score of 0 marks a box that its evaluation
leaves out. All three become ignore regions (VisDrone2018-DET-toolkit, README).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.folders import files_of
from flyspeck.data.readers.places import add_images, note_scores
from flyspeck.data.readers.values import as_numbers, read_lines
from flyspeck.errors import UserError

CATEGORIES = (
    "ignored regions",
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
    "others",
)


def read_visdrone(folder: Path, options: ReadOptions) -> Annotations:
    """The table of a VisDrone-DET folder (with `annotations/` and `images/`), or of its `annotations` folder alone.

    The published training set has three boxes without width or height: such are left out with a note, unless the reading is
    `for_evaluation`.
    """
    labels = folder / "annotations" if (folder / "annotations").is_dir() else folder
    files = files_of(labels, ".txt")
    if not files:
        raise UserError(
            "no text files of annotations", where=labels, fix="give the folder with 'annotations' and 'images'"
        )
    draft = Draft(where=folder, root=folder, names=list(CATEGORIES), category_ids=list(range(12)), published_empty=True)
    add_images(draft, options.images or labels.parent / "images", [file.stem for file in files])
    columns = []
    for row, file in enumerate(files):
        for number, line in enumerate(read_lines(file, options.encoding), 1):
            fields = line.strip().rstrip(",").split(",")
            if fields == [""]:
                continue
            if len(fields) == 10:
                raise UserError(
                    "10 columns are a file of VisDrone's videos (VID, MOT), whose first two are frame and track",
                    where=f"{file}, line {number}",
                    fix="give --format visdrone-vid",
                )
            if len(fields) < 6:
                draft.problems.append(f"{file.name}, line {number}: {len(fields)} fields where VisDrone has 8")
                continue
            x, y, w, h, *rest = as_numbers(fields)
            category = int(rest[1]) if rest[1] in range(12) else -2
            draft.add_box(row, (x, y, x + w, y + h), category, f"{file.name}, line {number}")
            columns.append((rest[0], *rest[2:4], *[0.0] * (4 - len(rest))))
    table = np.array(columns, dtype=np.float64).reshape(-1, 3)
    draft.flags["ignore"] = table[:, 0] == 0
    note_scores(draft, table[:, 0].tolist())
    draft.extra["truncation"], draft.extra["occlusion"] = table[:, 1], table[:, 2]
    return assemble(draft, options, f"visdrone: {folder.name}")
