"""Writers of the annotation table: COCO json, a YOLO data set, and the tools' (`tool_writers`); `WRITERS` has them by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations
from flyspeck.data.image_files import output_names
from flyspeck.data.readers.places import image_files, some
from flyspeck.data.tool_writers import (
    IGNORE_NAME,
    write_cvat,
    write_fiftyone,
    write_label_studio,
    write_labelme,
    write_voc,
)
from flyspeck.errors import UserError
from flyspeck.files import local_output, replace_file, write_text
from flyspeck.plain_yaml import read_yaml
from flyspeck.plugins import UnknownPart, has_part, with_installed

_WRITTEN = ("category", "iscrowd", "ignore_flag", "xywh", "polygon")
_EXPLAINED = ("uncertain", "difficult", "invalid")
_DIGITS = 6


def write_coco(
    annotations: Annotations, path: Path, *, file_names: list[str] | None = None, old_images: list[dict] | None = None
) -> None:
    """Write a table as COCO json, by way of a temporary name; ids, flags and other columns are kept.

    Ignore regions of no class get a category of their own, `ignore region`, with iscrowd and ignore set, so that COCO's own tools
    ignore them too. Coordinates are rounded to 1e-6 px.

    Args:
        annotations: The table.
        path: The json; its folder is made if need be.
        file_names: (I) Names in place of the table's, which are otherwise written relative to the folder of `path`.
        old_images: The whole images of a table of tiles, in COCO's form.
    """
    path = local_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = relative_names(annotations, path.parent) if file_names is None else file_names
    categories = [
        {"id": int(number), "name": name}
        for number, name in zip(annotations.category_ids, annotations.classes, strict=True)
    ]
    nowhere = 1 + max(annotations.category_ids, default=0)
    category = annotations.own_labels
    if (category < 0).any():
        categories.append({"id": nowhere, "name": IGNORE_NAME})
    content: dict[str, Any] = {
        "images": _images(annotations, names),
        "annotations": _entries(annotations, category, np.array([*annotations.category_ids, nowhere])),
        "categories": categories,
    }
    if old_images is not None:
        content["old_images"] = old_images
    write_text(path, json.dumps(content, separators=(",", ":"), allow_nan=False))  # NaN here is a bug of ours


def relative_names(annotations: Annotations, folder: Path) -> list[str]:
    """The image files as paths relative to `folder`, with forward slashes."""
    base = os.path.relpath(annotations.root.absolute(), folder.absolute())
    return [Path(os.path.normpath(Path(base) / name)).as_posix() for name in annotations.file_names]


def _images(annotations: Annotations, names: list[str]) -> list[dict[str, Any]]:
    images = []
    columns = {name: column.tolist() for name, column in annotations.image_extra.items()}
    ids, sizes = annotations.image_ids.tolist(), annotations.sizes.tolist()
    for row, (key, name, (height, width)) in enumerate(zip(ids, names, sizes, strict=True)):
        image = {"id": key, "file_name": name}
        if height > 0:
            image |= {"width": width, "height": height}
        known = {column: values[row] for column, values in columns.items() if values[row] == values[row]}  # not a NaN
        images.append(image | known)
    return images


def _entries(annotations: Annotations, category: np.ndarray, numbers: np.ndarray) -> list[dict[str, Any]]:
    """COCO's annotation objects; `numbers` are the category ids by class, the last one for boxes of no class."""
    extra = annotations.extra
    explained = annotations.crowd.copy()
    for name in _EXPLAINED:
        if name in extra:
            explained |= extra[name]
    flagged = extra["ignore_flag"] if "ignore_flag" in extra else np.zeros(annotations.num_boxes, dtype=bool)
    # A box that a cut has turned into an ignore region has no flag that says so.
    ignore = np.where(annotations.ignore, flagged | ~explained | (category < 0), flagged)
    xywh = extra["xywh"] if "xywh" in extra else bx.to_xywh(annotations.boxes)
    columns: dict[str, list[Any]] = {
        "id": annotations.box_ids.tolist(),
        "image_id": annotations.image_ids[annotations.image_index].tolist(),
        "category_id": numbers[category].tolist(),
        "bbox": np.round(xywh, _DIGITS).tolist(),
        "area": np.round(annotations.area, _DIGITS).tolist(),
        "iscrowd": (annotations.crowd | (category < 0)).astype(int).tolist(),
        "ignore": ignore.astype(int).tolist(),
    }
    for name, column in extra.items():
        if name not in _WRITTEN:
            values = np.asarray(column)
            columns[name] = np.round(values, _DIGITS).tolist() if values.dtype.kind == "f" else values.tolist()
    keys = list(columns)
    return [
        {key: value for key, value in zip(keys, row, strict=True) if not _missing(value)}
        for row in zip(*columns.values(), strict=True)
    ]


def _missing(value: Any) -> bool:
    """NaN, alone or in a list: the source had no such number."""
    return value != value or (isinstance(value, list) and any(v != v for v in value))


def write_yolo(annotations: Annotations, folder: Path, *, split: str = "train", link: bool = False) -> int:
    """Write a YOLO data set: `images/<split>`, `labels/<split>`, `data.yaml`; returns the number of ignore regions left out.

    YOLO has no ignore regions, so training on what is written punishes detections there.
    Images are copied, or linked if `link`. Boxes are clipped to their image, and written as shares of its size with 9 digits.
    A `data.yaml` that is there already keeps its other splits, if its classes are the same. Raises UserError where the size of
    an image is not known, the image is missing, or the split holds other images already, which would be part of the set.
    """
    folder = local_output(folder)
    images, labels = folder / "images" / split, folder / "labels" / split
    _check_for_yolo(annotations)
    recipe = _recipe(folder, split, annotations.classes)
    names = output_names(annotations.file_names)
    _refuse_others(images, names)
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for index, here in enumerate(annotations):
        (images / names[index]).parent.mkdir(parents=True, exist_ok=True)
        (labels / names[index]).parent.mkdir(parents=True, exist_ok=True)
        _place_image(annotations.path(index), images / names[index], link)
        height, width = annotations.sizes[index]
        objects = ~annotations.ignore[here]
        box = bx.clip(annotations.boxes[here][objects], height, width) / (width, height, width, height)
        rows = zip(annotations.labels[here][objects], bx.center(box), box[:, 2:] - box[:, :2], strict=True)
        lines = [f"{label} {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n" for label, (x, y), (w, h) in rows]
        write_text((labels / names[index]).with_suffix(".txt"), "".join(lines))
    write_text(folder / "data.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return int(annotations.ignore.sum())


WRITERS: dict[str, Callable[[Annotations, Path], object]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "labelme": write_labelme,
    "fiftyone": write_fiftyone,
}
"""Formats by name, those of plugins too (`flyspeck.register_writer`)."""


def writer_named(name: str) -> Callable[[Annotations, Path], object]:
    """What writes a table in the format `name`. Raises UserError for a name that is not known."""

    def find() -> Callable[[Annotations, Path], object]:
        if name not in WRITERS:
            raise UnknownPart(f"cannot write '{name}'", where="--to", name=name, known=WRITERS)
        return WRITERS[name]

    try:
        return with_installed(find)
    except UnknownPart:
        if has_part("writer of detections", name):
            fix = f"choose from {', '.join(WRITERS)}; predict --to {name} writes detections so"
            raise UserError(f"'{name}' is a form of detections, not of annotations", where="--to", fix=fix) from None
        raise


def _check_for_yolo(annotations: Annotations) -> None:
    unknown = np.flatnonzero((annotations.sizes < 1).any(1))
    if len(unknown):
        name = annotations.file_names[int(unknown[0])]
        fix = "YOLO's boxes are shares of it; put the images in place"
        raise UserError("the size of the image is not known", where=name, fix=fix)
    missing = [row for row in range(len(annotations)) if not annotations.path(row).is_file()]
    if missing:
        what = f"no such image (of {len(annotations)}, {len(missing)} are missing)"
        raise UserError(what, where=annotations.path(missing[0]), fix="give the folder of the images with --images")


def _refuse_others(folder: Path, names: list[str]) -> None:
    """Raises UserError where the folder of a split holds images that are none of `names`: whoever reads it takes all of them."""
    own = {folder / name for name in names}
    others = [file.name for file in image_files(folder, recursive=True) if file not in own]
    if others:
        what = (
            f"holds {len(others)} {'image' if len(others) == 1 else 'images'} of another set already ({some(others)})"
        )
        raise UserError(what, where=folder, fix="write to another folder or --split, or take them away")


def _recipe(folder: Path, split: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """What to write into data.yaml."""
    path = folder / "data.yaml"
    recipe = read_yaml(path)[0] if path.is_file() else {}
    if not isinstance(recipe, dict):
        raise UserError("no keys", where=path, fix="write to another folder")
    names = dict(enumerate(classes))
    if recipe and recipe.get("names") != names:
        raise UserError("it is there already, with other classes", where=path, fix="write to another folder")
    recipe.pop("names", None)
    return {**recipe, "path": ".", split: f"images/{split}", "names": names}


def _place_image(source: Path, target: Path, link: bool) -> None:
    there = target.exists() or target.is_symlink()
    if there and target.resolve() == source.resolve():
        return
    if not link:
        replace_file(target, lambda temporary: shutil.copyfile(source, temporary))
        return
    if there:
        target.unlink()
    target.symlink_to(source.resolve())
