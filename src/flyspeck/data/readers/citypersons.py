"""CityPersons in both of its own forms: Cityscapes' `gtBboxCityPersons/<split>/<city>/*_gtBboxCityPersons.json`, and the
authors' `anno_train.mat`, `anno_val.mat` (Zhang et al., CVPR 2017).

CityPersons as COCO json (`height`, `vis_ratio`) is read by the COCO reader.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.matlab import load_mat, mat_layout
from flyspeck.data.readers.places import find_root
from flyspeck.data.readers.values import as_number, as_numbers, load_json
from flyspeck.errors import UserError

# In the order of the .mat files' class_label 0 to 5.
LABELS = ("ignore", "pedestrian", "rider", "sitting person", "person (other)", "person group")
ENDING = "_gtBboxCityPersons.json"
_VARIABLE = re.compile(r"anno_(train|val|test)(_aligned)?")


def read_citypersons(source: Path, options: ReadOptions) -> Annotations:
    """The table of a CityPersons folder, of one split of it, of one of its files, or of an `anno_<split>.mat`.

    The class is `pedestrian`; all else is an ignore region, as in its evaluation, unless `classes` asks for it.
    `extra` gets `height` (M,), `vis_bbox` (M, 4) xywh and `vis_ratio` (M,), the visible box's area over the whole's.
    """
    asked = set(options.classes or ("pedestrian",))
    options = replace(
        options, ignore_classes=(*options.ignore_classes, *(name for name in LABELS if name not in asked))
    )
    draft = Draft(where=source, root=source, names=list(LABELS), category_ids=list(range(len(LABELS))))
    if source.suffix.lower() == ".mat":
        with mat_layout(source, "CityPersons' anno_val.mat"):
            visible = _read_mat(draft, source, options)
    else:
        visible = _read_files(draft, source, options)
    boxes = np.array(draft.boxes, dtype=np.float64).reshape(-1, 4)
    shown = np.array(visible, dtype=np.float64).reshape(-1, 4)
    full = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    draft.extra["height"] = boxes[:, 3] - boxes[:, 1]
    draft.extra["vis_bbox"] = shown
    draft.extra["vis_ratio"] = np.divide(shown[:, 2] * shown[:, 3], full, out=np.zeros(len(full)), where=full > 0)
    return assemble(draft, options, f"citypersons: {source.name}")


def _read_files(draft: Draft, source: Path, options: ReadOptions) -> list[list[float]]:
    """Fills the draft from json files; returns the visible boxes, xywh."""
    files = [source] if source.is_file() else sorted(source.rglob(f"*{ENDING}"))
    if not files:
        raise UserError(f"no file *{ENDING}", where=source, fix="give the folder gtBboxCityPersons, or one split of it")
    visible: list[list[float]] = []
    for file in files:
        _read_file(draft, file, visible)
    draft.root = options.images or find_root(_usual_places(files[0]), draft.file_names)
    return visible


def _read_mat(draft: Draft, path: Path, options: ReadOptions) -> list[list[float]]:
    """Fills the draft from `anno_<split>_aligned`; returns the visible boxes, xywh.

    It is a row of cells, an image each, with `im_name` and `bbs`, whose rows are [class_label, x, y, w, h, instance_id, x, y,
    w, h of the visible box]. The image's city is the name up to the first `_`.
    """
    content = load_mat(path)
    variable = next((match for match in map(_VARIABLE.fullmatch, content) if match), None)
    if variable is None or content[variable[0]].dtype != object:
        raise UserError(
            "no cells anno_train_aligned or anno_val_aligned", where=path, fix="give CityPersons' anno_val.mat"
        )
    visible: list[list[float]] = []
    for number, cell in enumerate(content[variable[0]].ravel(), 1):
        fields = cell.dtype.names or ()
        if not {"im_name", "bbs"} <= set(fields) or cell.size != 1 or cell["im_name"].item().size != 1:
            draft.problems.append(f"{path.name}, cell {number}: no im_name and bbs")
            continue
        name = str(cell["im_name"].item().item())
        row = draft.add_image(name.removesuffix("_leftImg8bit.png"), f"{name.partition('_')[0]}/{name}")
        _read_rows(draft, row, f"{path.name}, {name}", np.asarray(cell["bbs"].item(), np.float64), visible)
    above = path.parent
    places = [folder / "leftImg8bit" / variable[1] for folder in (above, above.parent, above.parent.parent)]
    draft.root = options.images or find_root([*places, above], draft.file_names)
    known_sizes(draft, options)
    return visible


def _read_rows(draft: Draft, row: int, place: str, rows: np.ndarray, visible: list[list[float]]) -> None:
    """One image's `bbs (n, 10)`; an image without persons has an empty one of any shape."""
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 10):
        draft.problems.append(f"{place}: boxes of shape {rows.shape}, not of 10 columns")
        return
    for number, values in enumerate(rows.reshape(-1, 10).tolist(), 1):
        label, (x, y, w, h) = values[0], values[1:5]
        known = label in range(len(LABELS))
        draft.add_box(row, (x, y, x + w, y + h), int(label) if known else -2, f"{place}, row {number}")
        visible.append(values[6:])


def _usual_places(file: Path) -> list[Path]:
    """`leftImg8bit/<split>` beside the folder of the annotations."""
    split = file.parent.parent
    return [above / "leftImg8bit" / split.name for above in (split.parent.parent, split.parent)] + [file.parent]


def _read_file(draft: Draft, file: Path, visible: list[list[float]]) -> None:
    content = load_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        draft.problems.append(f"{file.name}: no list 'objects'")
        return
    stem = file.name.removesuffix(ENDING)
    name = f"{file.parent.name}/{stem}_leftImg8bit.png"
    row = draft.add_image(stem, name, (_side(content.get("imgHeight")), _side(content.get("imgWidth"))))
    for number, item in enumerate(content["objects"], 1):
        label = item.get("label") if isinstance(item, dict) else None
        box, shown = (_four(item.get(key)) if isinstance(item, dict) else _four(None) for key in ("bbox", "bboxVis"))
        category = LABELS.index(label) if label in LABELS else -2
        draft.add_box(
            row, (box[0], box[1], box[0] + box[2], box[1] + box[3]), category, f"{file.name}, object {number}"
        )
        visible.append(shown)


def _four(value: Any) -> list[float]:
    return as_numbers(value) if isinstance(value, list) and len(value) == 4 else [float("nan")] * 4


def _side(value: Any) -> int:
    """Pixels of an image's side; -1 where there is no such number."""
    return int(as_number(value)) if 0 < as_number(value) < 2**31 else -1
