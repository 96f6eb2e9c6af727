"""WIDER FACE: `WIDER_train/`, `WIDER_val/` and `wider_face_split/` as the archives unpack, and the benchmark's `ground_truth/`.

Real in it: faces without width or height (the training set has dozens, the validation set one of width -2 in the .mat files),
faces marked invalid, a crowd of hundreds, an image without faces (a count of 0 and one line of zeros), events in the .mat
files in another order than in the text, names with more than one dot, and settings that leave most faces out (easy is part of
medium, medium of hard).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fakes.drawing import write_image, write_text

Face = tuple[int, int, int, int, int]
"""x, y, width, height, invalid."""
TRAIN: dict[str, tuple[tuple[int, int], list[Face]]] = {
    "0--Parade/0_Parade_marchingband_1_849": ((128, 96), [(40, 20, 20, 26, 0), (90, 60, 8, 10, 0)]),
    "0--Parade/0_Parade_Parade_0_452": ((96, 128), [(30, 40, 12, 16, 0), (50, 50, 0, 0, 1), (10, 100, 5, 0, 0)]),
    "0--Parade/0_Parade_Parade_0_630": ((128, 96), []),
    "1--Handshaking/1_Handshaking_Handshaking_1_411": ((128, 128), [(60, 30, 40, 50, 0), (20, 100, 6, 7, 1)]),
    "2--Demonstration/2_Demonstration_Political_Rally_2_10": (
        (136, 128),
        [(2 + 8 * column, 2 + 8 * row, 5, 6, 0) for row in range(15) for column in range(16)],
    ),
    "54--Rescue/54_Rescue_rescuepeople_54_29.2": ((96, 96), [(30, 30, 16, 20, 0)]),
}
VAL: dict[str, tuple[tuple[int, int], list[Face]]] = {
    "0--Parade/0_Parade_marchingband_1_465": ((128, 96), [(40, 20, 20, 26, 0), (90, 60, 8, 10, 0), (100, 20, 6, 6, 0)]),
    "0--Parade/0_Parade_Parade_0_194": ((96, 128), [(30, 40, 12, 16, 0), (60, 90, -2, 1, 0)]),
    "12--Group/12_Group_Group_12_10": ((128, 128), [(60, 30, 40, 50, 0), (20, 100, 9, 9, 0)]),
}
SMALLEST = {"easy": 18, "medium": 11, "hard": 7}
"""Height from which a face counts in a setting, in this fake; the benchmark lists them one by one."""


def write(root: Path) -> None:
    """Writes the download below `root`."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        lines = []
        for name, (size, faces) in images.items():
            write_image(root / f"WIDER_{split}/images/{name}.jpg", *size, [f[:4] for f in faces])
            rows = [f"{x} {y} {w} {h} 0 0 0 {invalid} 0 0 " for x, y, w, h, invalid in faces]
            lines += [f"{name}.jpg", str(len(faces)), *(rows or ["0 0 0 0 0 0 0 0 0 0 "])]
        write_text(root / f"wider_face_split/wider_face_{split}_bbx_gt.txt", "\n".join(lines) + "\n")
    _write_mat(root / "ground_truth")


def _write_mat(folder: Path) -> None:
    """`wider_face_val.mat` with all faces, and a file a setting that says which of them count, from 1."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    events = sorted({name.split("/")[0] for name in VAL}, reverse=True)
    names = [[name for name in VAL if name.startswith(f"{event}/")] for event in events]
    head = {
        "event_list": _cells(events),
        "file_list": _cells([_cells([name.split("/")[1] for name in mine]) for mine in names]),
    }
    boxes = [_cells([np.array([f[:4] for f in VAL[name][1]], float) for name in mine]) for mine in names]
    savemat(folder / "wider_face_val.mat", {**head, "face_bbx_list": _cells(boxes)})
    for setting, smallest in SMALLEST.items():
        counted = [
            _cells([np.array([[n] for n, face in enumerate(VAL[name][1], 1) if face[3] >= smallest]) for name in mine])
            for mine in names
        ]
        savemat(folder / f"wider_{setting}_val.mat", {**head, "gt_list": _cells(counted)})


def _cells(items: list[Any]) -> np.ndarray:
    """A column of MATLAB cells."""
    column = np.empty((len(items), 1), dtype=object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column
