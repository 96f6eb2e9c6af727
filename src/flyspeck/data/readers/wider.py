"""WIDER FACE: `wider_face_*_bbx_gt.txt` (name, count, one face a line), or the .mat files of the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.matlab import load_mat, mat_layout
from flyspeck.data.readers.places import find_root
from flyspeck.data.readers.values import as_id, as_numbers, as_path, read_lines
from flyspeck.errors import UserError

SETTINGS = ("easy", "medium", "hard")
ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")


def read_wider(path: Path, options: ReadOptions) -> Annotations:
    """The table of a WIDER FACE text file, or of a `wider_face_val.mat`. Faces marked invalid are ignore regions.

    The .mat of the benchmark's `eval_tools/ground_truth` has three others beside it, which faces count as easy, medium and
    hard: where they are found, `extra` has `kept_easy`, `kept_medium` and `kept_hard`, which `widerface_val` scores.
    Image ids and file names are `event/name.jpg`. Both splits have faces without a width and height above 0, as published (11 in
    the validation set): they are left out with a note, unless the reading is `for_evaluation`.
    """
    draft = Draft(where=path, root=path.parent, names=["face"], category_ids=[1], published_empty=True)
    if path.suffix.lower() == ".mat":
        with mat_layout(path, "WIDER FACE's wider_face_val.mat"):
            _read_mat(draft, path)
    else:
        _read_list(draft, path, options.encoding)
    split = next((word for word in ("train", "val", "test") if word in path.stem), "val")
    above = path.parent.parent
    places = [
        above / f"WIDER_{split}" / "images",
        path.parent / f"WIDER_{split}" / "images",
        path.parent / "images",
        path.parent,
    ]
    draft.root = options.images or find_root(places, draft.file_names)
    known_sizes(draft, options)
    return assemble(draft, options, f"wider face: {path.name}")


def _read_list(draft: Draft, path: Path, encoding: str | None) -> None:
    lines = read_lines(path, encoding)
    attributes: list[list[float]] = []
    at = 0
    while at < len(lines):
        name = as_path(lines[at])
        at += 1
        if not name:
            continue
        count = as_id(lines[at]) if at < len(lines) else None
        if not isinstance(count, int) or count < 0:
            fix = "the layout is: name, number of faces, one face a line"
            raise UserError(f"no number of faces after '{name}'", where=f"{path}, line {at + 1}", fix=fix)
        row = draft.add_image(name, name)
        at += 1
        # An image without faces still has one line, of zeros.
        faces = count or (1 if at < len(lines) and _is_zero(lines[at]) else 0)
        for number in range(at, at + faces):
            if number >= len(lines) or len(lines[number].split()) < 4:
                what = f"'{name}' has fewer faces than its {count}"
                raise UserError(what, where=f"{path}, line {number + 1}", fix="the file may be cut off")
            if count == 0:
                continue
            x, y, w, h, *rest = as_numbers(lines[number].split())
            draft.add_box(row, (x, y, x + w, y + h), 0, f"{path.name}, line {number + 1}")
            attributes.append([*rest, *[0.0] * 6][:6])
        at += faces
    table = np.array(attributes, dtype=np.float64).reshape(-1, 6)
    for column, name in enumerate(ATTRIBUTES):
        if name == "invalid":
            draft.flags[name] = table[:, column] == 1
        else:
            draft.extra[name] = table[:, column]


def _is_zero(line: str) -> bool:
    fields = line.split()
    return len(fields) >= 4 and set(fields) == {"0"}


def _read_mat(draft: Draft, path: Path) -> None:
    content = load_mat(path)
    if not {"event_list", "file_list", "face_bbx_list"} <= content.keys():
        raise UserError(
            "no event_list, file_list and face_bbx_list", where=path, fix="give WIDER FACE's wider_face_val.mat"
        )
    counted = _counted_faces(path, sum(len(files) for (files,) in content["file_list"]))
    kept: dict[str, list[bool]] = {name: [] for name in counted}
    events = zip(content["event_list"], content["file_list"], content["face_bbx_list"], strict=True)
    for (event,), (files,), (faces,) in events:
        for (name,), (boxes,) in zip(files, faces, strict=True):
            title = f"{event.item()}/{name.item()}.jpg"
            row = draft.add_image(title, title)
            for setting, images in counted.items():
                kept[setting] += [number in images[row] for number in range(1, len(boxes) + 1)]
            for number, (x, y, w, h) in enumerate(np.asarray(boxes, dtype=np.float64), 1):
                draft.add_box(row, (x, y, x + w, y + h), 0, f"{path.name}, {title}, face {number}")
    draft.extra |= {f"kept_{name}": np.array(flags, bool) for name, flags in kept.items()}


def _counted_faces(path: Path, images: int) -> dict[str, list[set[int]]]:
    """By setting, the faces of each image that count, from 1; empty where the benchmark's other files are not."""
    places = {name: path.with_name(f"wider_{name}_val.mat") for name in SETTINGS}
    if path.name != "wider_face_val.mat" or not all(place.is_file() for place in places.values()):
        return {}
    counted = {}
    for name, place in places.items():
        parts = load_mat(place).get("gt_list", [])
        counted[name] = [set(np.asarray(one).reshape(-1).tolist()) for (part,) in parts for (one,) in part]
        if len(counted[name]) != images:
            what = f"lists {len(counted[name])} images, {path.name} has {images}"
            raise UserError(what, where=place, fix="fetch the official file again")
    return counted
