"""COCO json, and the data sets that are COCO json with more fields: TinyPerson and its tile files, CityPersons, HIT-UAV."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.foreign import FORMATS_OF_TOOLS, tool_of_json
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.masks import mask_box
from flyspeck.data.readers.places import note_scores, settle_root
from flyspeck.data.readers.values import as_id, as_number, as_numbers, as_path, as_truth, load_json
from flyspeck.errors import UserError, brief, counted

FLAGS = ("iscrowd", "ignore", "uncertain", "logo", "in_dense_image", "difficult", "invalid", "truncated", "occluded")
UNKEPT = ("segmentation", "keypoints", "attributes", "caption")
"""What annotations may have that the table does not hold."""
NUMBERS = ("height", "vis_ratio", "vis", "size", "score", "truncation", "occlusion")


def read_coco(path: Path, options: ReadOptions, content: Any = None) -> Annotations:
    """The table of a COCO ground-truth file.

    `ignore`, `uncertain`, `logo`, `in_dense_image` (TinyPerson), `height`, `vis_ratio` (CityPersons), `size` and the like
    become columns of `extra`; `corner` of a tile file becomes `image_extra["corner"]`, (I, 4) x1, y1, x2, y2 of the tile in its
    whole image, and `image_extra["whole"]` the id of that image in `old_images` (its file name, where they are not listed).
    """
    content = load_json(path, options.encoding) if content is None else content
    _check_shape(content, path)
    draft = Draft(where=path, root=path.parent)
    rows = _read_images(draft, content, nameless=options.for_evaluation)
    settle_root(draft, [options.images] if options.images else usual_places(path))
    if not options.for_evaluation:
        known_sizes(draft, options)
    draft.unkept = [key for key in ("licenses", "info") if content.get(key)]
    categories = _read_categories(draft, content["categories"])
    _read_boxes(draft, content["annotations"], rows, categories, options.for_evaluation)
    return assemble(draft, options, f"{_dialect(draft)}: {path.name}")


def read_listing(path: Path) -> Draft:
    """The images and categories of a COCO json, which need not have annotations: what is to be predicted."""
    content = load_json(path)
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            fix = "it needs images with id and file_name, and categories"
            raise UserError(f"not a COCO json: no list '{key}'", where=path, fix=fix)
    draft = Draft(where=path, root=path.parent)
    _read_images(draft, {**content, "old_images": None})
    settle_root(draft, usual_places(path))
    _read_categories(draft, content["categories"])
    return draft


def _check_shape(content: Any, path: Path) -> None:
    tool = tool_of_json(content)
    if isinstance(content, list) or tool not in ("COCO", None):
        what = {
            "COCO results": "a list of detections, not annotations",
            None: "a list, not an object with images and annotations",
        }.get(tool, f"a file of {tool}, not a COCO file")
        known = tool in (None, "COCO results", *FORMATS_OF_TOOLS)
        fix = "give the ground-truth file with 'images', 'annotations' and 'categories'"
        raise UserError(what, where=path, fix=fix if known else "export it as COCO, which is read")
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        # SODA-A has a file for each image, whose `images` is that one.
        if not isinstance(found, list) and not (key == "images" and isinstance(found, dict)):
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
    found = as_number(value)
    return int(found) if 0 < found < 2**31 else None


def _read_images(draft: Draft, content: dict[str, Any], *, nameless: bool = False) -> dict[Any, int]:
    """Append the images; returns the row of each id. With `nameless` an image without file_name is named by its id."""
    rows: dict[Any, int] = {}
    kept = []
    listed = content["images"]
    for count, image in enumerate(listed if isinstance(listed, list) else [listed], 1):
        entry = image if isinstance(image, dict) else {}
        name, given = entry.get("file_name"), entry.get("id")
        key = as_id(given)
        if name is None and isinstance(entry.get("coco_url"), str):  # LVIS: http://…/train2017/000000000009.jpg
            name = "/".join(unquote(urlparse(entry["coco_url"]).path).strip("/").split("/")[-2:])
        if nameless and name is None:
            name = str(given)
        fault = ""
        if key is None:
            fault = f"has the id {brief(given)}, neither a whole number nor a text"
        elif key in rows:
            fault = f"has the id {brief(given)} of an earlier one"
        if fault or not isinstance(name, str) or not name.strip():
            draft.problems.append(f"{draft.where.name}: image {count} {fault or 'has no file_name'}")
            continue
        height, width = _whole(entry.get("height")), _whole(entry.get("width"))
        size = (-1, -1) if height is None or width is None else (height, width)
        rows[key] = draft.add_image(given if isinstance(given, str) else key, as_path(name), size)
        kept.append(entry)
    if any("corner" in image for image in kept):
        _read_corners(draft, kept, content.get("old_images"))
    return rows


def _read_corners(draft: Draft, images: list[dict[str, Any]], old_images: Any) -> None:
    try:
        corners = np.array([image["corner"] for image in images], dtype=np.int64).reshape(len(images), 4)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            "a tile without a 'corner' of four numbers", where=draft.where, fix="cut the tiles again"
        ) from None
    draft.image_extra["corner"] = corners
    listed = [image for image in old_images if isinstance(image, dict)] if isinstance(old_images, list) else []
    old = {str(image.get("file_name")): image["id"] for image in listed if as_id(image.get("id")) is not None}
    whole = np.empty(len(images), dtype=object)
    whole[:] = [image.get("whole", old.get(str(image.get("file_name")), image.get("file_name"))) for image in images]
    draft.image_extra["whole"] = whole


def _read_categories(draft: Draft, categories: list[Any]) -> dict[Any, int]:
    """Append the categories, ascending by id; returns the row of each id."""
    listed: dict[int, str] = {}
    for count, category in enumerate(categories, 1):
        key = as_id(category.get("id")) if isinstance(category, dict) else None
        if not isinstance(key, int):
            what = f"category {count} has no whole number as id"
            raise UserError(what, where=draft.where, fix="give each an 'id' and a 'name'")
        if key in listed:
            raise UserError(f"category id {key} is listed twice", where=draft.where, fix="give each its own id")
        name = category.get("name")
        listed[key] = str(key if name is None else name).strip() or str(key)
    draft.category_ids = sorted(listed)
    draft.names = [listed[key] for key in draft.category_ids]
    return {key: row for row, key in enumerate(draft.category_ids)}


def _read_boxes(
    draft: Draft, entries: list[Any], rows: dict[Any, int], categories: dict[Any, int], exact: bool
) -> None:
    usable = [entry for entry in entries if isinstance(entry, dict)]
    for count, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            draft.problems.append(f"{draft.where.name}: entry {count} of 'annotations' is no object")
    draft.image_index = [_find(rows, entry.get("image_id"), -1) for entry in usable]
    draft.category = [_find(categories, entry.get("category_id"), -2) for entry in usable]
    draft.describe = lambda row: (
        f"image_id {brief(usable[row].get('image_id'))}, category_id {brief(usable[row].get('category_id'))}"
    )
    boxes = _float_rows([entry.get("bbox") for entry in usable], 4)
    _boxes_of_masks(draft, usable, boxes)
    _note_corners(draft, boxes)
    if exact:
        draft.extra["xywh"] = boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    draft.boxes = boxes
    keys = set().union(*usable)
    if "id" in keys:
        draft.box_ids = entry_ids([entry.get("id") for entry in usable])
    if "area" in keys:
        draft.area = _float_column([entry.get("area") for entry in usable])
    for name in FLAGS:
        if name in keys:
            draft.flags[name] = _flags(draft, name, usable)
    for name in NUMBERS:
        if name in keys:
            draft.extra[name] = _float_column([entry.get(name) for entry in usable])
    if "vis_bbox" in keys:
        draft.extra["vis_bbox"] = _float_rows([entry.get("vis_bbox") for entry in usable], 4)
    note_scores(draft, draft.extra.get("score", ()))
    for name in UNKEPT:
        count = sum(bool(entry.get(name)) for entry in usable) if name in keys else 0
        if count:
            draft.unkept.append(f"{name} of {counted(count, 'annotation')}")
    if usable and "iscrowd" in draft.flags and all(draft.flags["iscrowd"]):
        draft.notes.append(
            "every annotation has iscrowd 1: all are ignore regions, and there is nothing to learn or to find"
        )


def _note_corners(draft: Draft, boxes: np.ndarray) -> None:
    """A note where boxes look like corners: some reach out of their images as x, y, width, height, and none does as corners."""
    sizes = np.array(draft.sizes, dtype=np.float64).reshape(-1, 2)
    rows = np.asarray(draft.image_index, dtype=np.int64)
    known = np.isfinite(boxes).all(1) & (rows >= 0)
    if not known.any():
        return
    frame = sizes[rows[known]][:, ::-1]
    first, second = boxes[known, :2], boxes[known, 2:]
    out = ((first + second > frame + 1).any(1) & (frame > 0).all(1)).sum()
    if out and (second > first).all() and (second <= frame + 1).all():
        draft.notes.append(
            f"{out} of {len(frame)} boxes reach out of their images, and all would be sound as corners x1, y1, x2, y2: "
            "COCO's are x, y, width, height, and are read so"
        )


def _boxes_of_masks(draft: Draft, entries: list[dict[str, Any]], boxes: np.ndarray) -> None:
    """Fills in, in place, the xywh of entries that have a mask and no box."""
    filled = 0
    for row in np.flatnonzero(np.isnan(boxes).any(1)).tolist():
        mask = entries[row].get("segmentation") or entries[row].get("poly")  # `poly`: SODA-A's turned boxes
        if not entries[row].get("bbox") and mask:
            boxes[row] = mask_box(mask)
            filled += bool(np.isfinite(boxes[row]).all())
    if filled:
        draft.notes.append(
            f"{counted(filled, 'annotation has', 'annotations have')} a segmentation and no bbox: the box around the mask is"
            " taken"
        )


def _flags(draft: Draft, name: str, entries: list[dict[str, Any]]) -> list[bool]:
    values = [entry.get(name) for entry in entries]
    found = [bool(value) if type(value) is int else as_truth(value) for value in values]
    unclear = [value for value, flag in zip(values, found, strict=True) if flag is None]
    if unclear:
        draft.notes.append(
            f"{counted(len(unclear), 'annotation has', 'annotations have')} a '{name}' that says neither yes nor no"
            f" ({brief(unclear[0])}): no"
        )
    return [bool(flag) for flag in found]


def entry_ids(ids: list[Any]) -> list[Any]:
    """The ids; an entry without a number or text gets a number above all others."""
    known = [key if type(key) is int else as_id(key) for key in ids]
    unused = itertools.count(1 + max((key for key in known if isinstance(key, int)), default=0))
    return [next(unused) if key is None else key for key in known]


def _find(rows: dict[Any, int], key: Any, otherwise: int) -> int:
    return rows.get(key if type(key) is int else as_id(key), otherwise)


def _float_column(values: list[Any]) -> np.ndarray:
    """Numbers as float64 `(M,)`; NaN for anything else."""
    if all(type(value) is float or type(value) is int for value in values):
        with contextlib.suppress(OverflowError):
            return np.array(values, dtype=np.float64).reshape(len(values))
    return np.array([as_number(value) for value in values], dtype=np.float64)


def _float_rows(values: list[Any], length: int) -> np.ndarray:
    """Lists of `length` numbers as float64 `(M, length)`; a row of NaN for anything else."""
    try:
        table = np.array(values).reshape(len(values), length)
    except (TypeError, ValueError, OverflowError):
        table = None
    if table is not None and table.dtype.kind in "iuf":
        return table.astype(np.float64)
    rows = np.full((len(values), length), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, list) and len(value) == length:
            rows[row] = as_numbers(value)
    return rows
