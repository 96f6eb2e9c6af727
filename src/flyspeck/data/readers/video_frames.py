"""Benchmarks of videos, one text file for a video, a box of a frame a line: VisDrone-VID and -MOT, and UAVDT.

VisDrone: `annotations/NAME.txt` with `frame,target,x,y,w,h,score,category,truncation,occlusion`, frames
`sequences/NAME/0000001.jpg` (VisDrone2018-VID-toolkit). UAVDT: `GT/NAME_gt_whole.txt` with `frame,target,x,y,w,h,out-of-
view,occlusion,category` (car, truck, bus), ignore regions in `NAME_gt_ignore.txt`, frames `NAME/img000001.jpg` (Du et al.,
ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.folders import files_of, is_there
from flyspeck.data.readers.places import image_files, note_alone
from flyspeck.data.readers.values import as_numbers, read_lines
from flyspeck.data.readers.visdrone import CATEGORIES
from flyspeck.errors import UserError

UAVDT_CLASSES = ("car", "truck", "bus")
UAVDT_WHOLE, UAVDT_IGNORE = "_gt_whole.txt", "_gt_ignore.txt"


def read_visdrone_video(folder: Path, options: ReadOptions) -> Annotations:
    """The table of a VisDrone-VID or -MOT folder (with `annotations/` and `sequences/`); ignore regions as of VisDrone-DET.

    Image ids and file names are `NAME/0000001.jpg`; `extra["track"]` is the target's number.
    """
    labels = folder / "annotations" if (folder / "annotations").is_dir() else folder
    files = files_of(labels, ".txt")
    if not files:
        raise UserError(
            "no text files of annotations", where=labels, fix="give the folder with 'annotations' and 'sequences'"
        )
    root = options.images or labels.parent / "sequences"
    draft = Draft(where=folder, root=root, names=list(CATEGORIES), category_ids=list(range(12)))
    columns: list[list[float]] = []
    for file in files:
        row_of = _frames(draft, root, file.stem, lambda frame: f"{frame:07d}.jpg")
        for count, line in _rows(file, options):
            if len(line) != 10:
                draft.problems.append(f"{file.name}, line {count}: {len(line)} fields where VisDrone's videos have 10")
                continue
            frame, track, x, y, w, h, score, kind, truncation, occlusion = as_numbers(line)
            category = int(kind) if kind in range(12) else -2
            draft.add_box(row_of(frame), (x, y, x + w, y + h), category, f"{file.name}, line {count}")
            columns.append([track, score, truncation, occlusion])
    table = np.array(columns, dtype=np.float64).reshape(-1, 4)
    draft.flags["ignore"] = table[:, 1] == 0
    draft.extra |= {"track": table[:, 0], "truncation": table[:, 2], "occlusion": table[:, 3]}
    _note_missing(draft)
    return assemble(draft, options, f"visdrone video: {folder.name}")


def read_uavdt(folder: Path, options: ReadOptions) -> Annotations:
    """The table of UAVDT's `GT` folder (or the folder above it): files `*_gt_whole.txt`, and `*_gt_ignore.txt` where there.

    Image ids and file names are `NAME/img000001.jpg`; `extra["track"]` is the target's number.
    """
    files = sorted(folder.rglob(f"*{UAVDT_WHOLE}"))
    if not files:
        raise UserError(f"no file *{UAVDT_WHOLE}", where=folder, fix="give the folder GT of UAVDT-M")
    names = [file.name.removesuffix(UAVDT_WHOLE) for file in files]
    places = [
        above / inside
        for above in (folder, *list(folder.absolute().parents)[:3])
        for inside in ("UAV-benchmark-M", ".")
    ]
    root = options.images or next((p for p in places if any((p / name).is_dir() for name in names)), folder)
    draft = Draft(where=folder, root=root, names=list(UAVDT_CLASSES), category_ids=[1, 2, 3])
    tracks: list[float] = []
    for file, name in zip(files, names, strict=True):
        row_of = _frames(draft, root, name, lambda frame: f"img{frame:06d}.jpg")
        for path, ignored in ((file, False), (file.with_name(name + UAVDT_IGNORE), True)):
            for count, line in _rows(path, options) if path.is_file() else ():
                if len(line) < 8:
                    draft.problems.append(f"{path.name}, line {count}: {len(line)} fields where UAVDT has 9")
                    continue
                frame, track, x, y, w, h, *_, kind = as_numbers(line)
                category = -1 if ignored else int(kind) - 1 if kind in (1, 2, 3) else -2
                draft.add_box(row_of(frame), (x, y, x + w, y + h), category, f"{path.name}, line {count}")
                tracks.append(track)
    draft.extra["track"] = np.array(tracks)
    _note_missing(draft)
    return assemble(draft, options, f"uavdt: {folder.name}")


def _rows(file: Path, options: ReadOptions) -> list[tuple[int, list[str]]]:
    """The lines that hold something, with their numbers, divided at commas."""
    lines = enumerate(read_lines(file, options.encoding), 1)
    return [(count, line.strip().rstrip(",").split(",")) for count, line in lines if line.strip()]


def _frames(draft: Draft, root: Path, name: str, file_name: Callable[[int], str]) -> Callable[[float], int]:
    """Lists the frames of a video that are there; the function gives the row of a frame, listing those that are not."""
    rows: dict[str, int] = {}

    def row_of(file: str) -> int:
        if file not in rows:
            rows[file] = draft.add_image(f"{name}/{file}", f"{name}/{file}")
        return rows[file]

    for file in image_files(root / name) if (root / name).is_dir() else ():
        row_of(file.name)
    return lambda frame: row_of(file_name(int(frame))) if 0 <= frame < 2**31 and frame.is_integer() else -1


def _note_missing(draft: Draft) -> None:
    missing = [name for name in draft.file_names if not is_there(draft.root / name)]
    note_alone(draft, missing, "frames with boxes have no image", draft.root)
