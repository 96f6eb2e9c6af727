"""A part of a data set written anew, with fewer images, boxes or classes: in its own format where there is a writer of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.parts import Part
from flyspeck.data.readers.coco import entry_ids
from flyspeck.data.readers.values import as_id, load_json
from flyspeck.data.writers import WRITERS, relative_names, write_coco, write_yolo
from flyspeck.errors import UserError, counted
from flyspeck.files import write_text

JOINED = "joined"
"""Format of a part that was several."""
_FOLDERS = ("voc", "labelme")


@dataclass(frozen=True)
class Renumbered:
    """What became of a part's categories."""

    into: Mapping[Any, int] = field(default_factory=dict)
    """Of categories that were merged: the source's id, and the id that its boxes have now."""
    names: Mapping[Any, str] = field(default_factory=dict)
    """Of categories that were renamed: the source's id, and the name."""
    dropped: frozenset[Any] = frozenset()
    """Ids of categories that are left out, those that were merged too."""


def new_folder(path: Path) -> Path:
    """The folder, which is made. Raises UserError where it holds something: nothing is written over."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("is there already", where=path, fix="give a new folder: nothing is written in place")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror or error})", where=path, fix="give another folder") from None
    return path


def write_part(
    part: Part,
    table: Annotations,
    folder: Path,
    name: str,
    *,
    categories: Renumbered | None = None,
    link: bool = False,
    encoding: str | None = None,
) -> list[str]:
    """Write `table`, some images and boxes of `part`, into `folder` under `name`; returns notes, the first says what was written.

    A COCO file keeps whatever else its entries hold. YOLO sets copy their images (`link`: link them); elsewhere images stay
    where they are. A format that nothing here writes becomes COCO. `categories` says what became of the part's.
    """
    kind, count = part.format, f"{counted(len(table), 'image')}, {counted(table.num_boxes, 'box')}"
    if kind == "yolo":
        lost = write_yolo(table, folder, split=name, link=link)
        notes = [f"{name}: {count}, as YOLO in {folder}, images {'linked' if link else 'copied'}"]
        left_out = f"{name}: {counted(lost, 'ignore region')} left out: YOLO has no place for them"
        return notes + [left_out] * bool(lost)
    if kind == "coco":
        path = folder / f"{name}.json"
        content = load_json(Path(part.source), encoding)
        if isinstance(content, dict) and isinstance(content.get("images"), list):
            _write_like(content, table, path, categories or Renumbered())
            return [f"{name}: {count}, as COCO in {path}, with whatever else the entries had"]
    if kind in WRITERS and kind != "coco":
        path = folder / name if kind in _FOLDERS else folder / f"{name}.{'xml' if kind == 'cvat' else 'json'}"
        WRITERS[kind](table, path)
        notes = [f"{name}: {count}, as {kind} in {path}; images stay where they are: give --images to read it"]
    else:
        path = folder / f"{name}.json"
        write_coco(table, path)
        why = {"coco": "", JOINED: ", for parts that are joined"}.get(kind, f", for nothing here writes {kind}")
        notes = [f"{name}: {count}, as COCO in {path}{why}"]
    return notes + ([f"{name}: not kept: {', '.join(table.unkept)}"] if table.unkept else [])


def _write_like(content: dict[str, Any], table: Annotations, path: Path, categories: Renumbered) -> None:
    """The COCO object that a table came from, with the table's images and boxes only."""
    row_of_image = {as_id(key): row for row, key in enumerate(table.image_ids.tolist())}
    names = relative_names(table, path.parent)
    images = []
    for image in content["images"]:
        row = row_of_image.pop(as_id(image.get("id")), None) if isinstance(image, dict) else None
        if row is not None:
            images.append({**image, "file_name": names[row]})
    row_of_box = {as_id(key): row for row, key in enumerate(table.box_ids.tolist())}
    usable = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    given = (
        entry_ids([entry.get("id") for entry in usable])
        if any("id" in e for e in usable)
        else range(1, len(usable) + 1)
    )
    owner = table.image_ids[table.image_index].tolist()
    entries = []
    for key, entry in zip(given, usable, strict=True):
        row = row_of_box.pop(as_id(key), None)
        if row is not None:
            number = as_id(entry.get("category_id"))
            entries.append({**entry, "image_id": owner[row], "category_id": categories.into.get(number, number)})
    kept = []
    for category in content["categories"]:
        number = as_id(category.get("id"))
        if number not in categories.dropped:
            kept.append({**category, "name": categories.names[number]} if number in categories.names else category)
    written = {**content, "images": images, "annotations": entries, "categories": kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(written, separators=(",", ":"), ensure_ascii=False))
