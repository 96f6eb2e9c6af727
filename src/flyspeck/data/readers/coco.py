"""COCO json, and the data sets that are COCO json with more fields: TinyPerson and its tile files, CityPersons, HIT-UAV."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, find_root
from flyspeck.errors import UserError

FLAGS = ("iscrowd", "ignore", "uncertain", "logo", "in_dense_image", "difficult", "invalid", "truncated", "occluded")
NUMBERS = ("height", "vis_ratio", "vis", "size", "score", "truncation", "occlusion")


def load_json(path: Path) -> Any:
    """The content of a json file; a broken one is an error that names the line."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="check the path") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid json ({error.msg})",
            where=f"{path}, line {error.lineno}, column {error.colno}",
            fix="the file may be cut off; write it again",
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"not a json text ({type(error).__name__})", where=path, fix="check the file") from None


def read_coco(path: Path, options: ReadOptions, content: Any = None) -> Annotations:
    """The table of a COCO ground-truth file.

    `ignore`, `uncertain`, `logo`, `in_dense_image` (TinyPerson), `height`, `vis_ratio` (CityPersons), `size` and the like
    become columns of `extra`; `corner` of a tile file becomes `image_extra["corner"]`, (I, 4) x1, y1, x2, y2 of the tile in its
    whole image, and `image_extra["whole"]` the id of that image in `old_images` (its file name, where they are not listed).
    """
    content = load_json(path) if content is None else content
    _check_shape(content, path)
    draft = Draft(where=path, root=path.parent)
    rows = _read_images(draft, content, nameless=options.for_evaluation)
    draft.root = options.images or find_root(usual_places(path), draft.file_names)
    _read_categories(draft, content["categories"])
    _read_boxes(draft, content["annotations"], rows, exact=options.for_evaluation)
    return assemble(draft, options, f"{_dialect(draft)}: {path.name}")


def _check_shape(content: Any, path: Path) -> None:
    if isinstance(content, list):
        detections = bool(content) and isinstance(content[0], dict) and "score" in content[0]
        what = (
            "a list of detections, not annotations"
            if detections
            else "a list, not an object with images and annotations"
        )
        raise UserError(
            what, where=path, fix="give the ground-truth file with 'images', 'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"no list '{key}'", where=path, fix="a COCO file has 'images', 'annotations' and 'categories'"
            )


def usual_places(path: Path) -> list[Path]:
    """Where images lie beside a COCO json, likeliest first: beside it, or in a folder of the split's name further up."""
    words = [path.stem.removeprefix("instances_"), *(word for word in ("train", "val", "test") if word in path.stem)]
    names = ["", "images", *words, *(f"images/{word}" for word in words)]
    names += [f"erase_with_uncertain_dataset/{word}" for word in words]  # TinyPerson's training images
    return [path.parent, *(folder / name for folder in path.absolute().parents[:4] for name in names)]


def _dialect(draft: Draft) -> str:
    if "corner" in draft.image_extra:
        return "coco with tile corners"
    if "uncertain" in draft.flags:
        return "coco (TinyPerson fields)"
    return "coco (CityPersons fields)" if "vis_ratio" in draft.extra else "coco"


def _whole(value: Any) -> int | None:
    """A number of pixels as int; None where it is none."""
    return int(value) if isinstance(value, int | float) and np.isfinite(value) and value > 0 else None


def _read_images(draft: Draft, content: dict[str, Any], *, nameless: bool = False) -> dict[Any, int]:
    """Append the images; returns the row of each id. With `nameless` an image without file_name is named by its id."""
    rows: dict[Any, int] = {}
    kept = []
    for number, image in enumerate(content["images"], 1):
        entry = image if isinstance(image, dict) else {}
        name, key = entry.get("file_name"), entry.get("id")
        if nameless and name is None:
            name = str(key)
        fault = ""
        if isinstance(key, bool) or not isinstance(key, int | str):
            fault = f"has the id {key!r}, neither a whole number nor a text"
        elif key in rows:
            fault = f"has the id {key!r} of an earlier one"
        if fault or not isinstance(name, str) or not name:
            draft.problems.append(f"{draft.where.name}: image {number} {fault or 'has no file_name'}")
            continue
        height, width = _whole(image.get("height")), _whole(image.get("width"))
        size = (-1, -1) if height is None or width is None else (height, width)
        rows[key] = draft.add_image(key, name, size)
        kept.append(entry)
    if any("corner" in image for image in kept):
        _read_corners(draft, kept, content.get("old_images"))
    return rows


def _read_corners(draft: Draft, images: list[dict[str, Any]], old_images: Any) -> None:
    try:
        corners = np.array([image["corner"] for image in images], dtype=np.int64).reshape(len(images), 4)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "a tile without a 'corner' of four numbers", where=draft.where, fix="cut the tiles again"
        ) from None
    draft.image_extra["corner"] = corners
    old = {image["file_name"]: image["id"] for image in old_images} if isinstance(old_images, list) else {}
    whole = np.empty(len(images), dtype=object)
    whole[:] = [image.get("whole", old.get(image["file_name"], image["file_name"])) for image in images]
    draft.image_extra["whole"] = whole


def _read_categories(draft: Draft, categories: list[Any]) -> None:
    listed: dict[Any, str] = {}
    for number, category in enumerate(categories, 1):
        if not isinstance(category, dict) or not isinstance(category.get("id"), int):
            what = f"category {number} has no whole number as id"
            raise UserError(what, where=draft.where, fix="give each an 'id' and a 'name'")
        if category["id"] in listed:
            raise UserError(
                f"category id {category['id']} is listed twice", where=draft.where, fix="give each its own id"
            )
        listed[category["id"]] = str(category.get("name", category["id"]))
    draft.category_ids = sorted(listed)
    draft.names = [listed[key] for key in draft.category_ids]


def _read_boxes(draft: Draft, entries: list[Any], rows: dict[Any, int], exact: bool) -> None:
    usable = [entry for entry in entries if isinstance(entry, dict)]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            draft.problems.append(f"{draft.where.name}: entry {number} of 'annotations' is no object")
    category_row = {key: row for row, key in enumerate(draft.category_ids)}
    draft.image_index = [_find(rows, entry.get("image_id"), -1) for entry in usable]
    draft.category = [_find(category_row, entry.get("category_id"), -2) for entry in usable]
    draft.describe = lambda row: (
        f"image_id {usable[row].get('image_id')!r}, category_id {usable[row].get('category_id')!r}"
    )
    boxes = _float_rows([entry.get("bbox") for entry in usable], 4)
    if exact:
        draft.extra["xywh"] = boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    draft.boxes = boxes
    if any("id" in entry for entry in usable):
        draft.box_ids = _box_ids([entry.get("id") for entry in usable])
    if any("area" in entry for entry in usable):
        draft.area = _float_column([entry.get("area") for entry in usable])
    for name in FLAGS:
        if any(name in entry for entry in usable):
            draft.flags[name] = [bool(entry.get(name)) for entry in usable]
    for name in NUMBERS:
        if any(name in entry for entry in usable):
            draft.extra[name] = _float_column([entry.get(name) for entry in usable])
    if any("vis_bbox" in entry for entry in usable):
        draft.extra["vis_bbox"] = _float_rows([entry.get("vis_bbox") for entry in usable], 4)


def _box_ids(ids: list[Any]) -> list[Any]:
    """The ids; an entry without a number or text gets a number above all others."""
    unused = itertools.count(1 + max((key for key in ids if isinstance(key, int)), default=0))
    return [key if isinstance(key, int | str) else next(unused) for key in ids]


def _find(rows: dict[Any, int], key: Any, otherwise: int) -> int:
    return rows.get(key, otherwise) if isinstance(key, int | str) and not isinstance(key, bool) else otherwise


def _float_column(values: list[Any]) -> np.ndarray:
    """Numbers as float64 `(M,)`; NaN for anything else."""
    try:
        return np.array(values, dtype=np.float64).reshape(len(values))
    except (TypeError, ValueError, OverflowError):
        return np.array([float(v) if isinstance(v, int | float) else np.nan for v in values])


def _float_rows(values: list[Any], length: int) -> np.ndarray:
    """Lists of `length` numbers as float64 `(M, length)`; a row of NaN for anything else."""
    try:
        return np.array(values, dtype=np.float64).reshape(len(values), length)
    except (TypeError, ValueError, OverflowError):
        table = np.full((len(values), length), np.nan)
        for row, value in enumerate(values):
            if isinstance(value, list) and len(value) == length and all(isinstance(v, int | float) for v in value):
                table[row] = value
        return table
