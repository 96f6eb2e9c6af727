"""`.odgt`, a json object a line, an image each: CrowdHuman (Shao et al., arXiv:1805.00123) and data sets written like it.

    {"ID": "273271,1a0d", "gtboxes": [{"tag": "person", "fbox": [x, y, w, h], "vbox": …, "hbox": …, "extra": {"ignore": 0}}]}

`fbox` is the whole body, also where it is hidden or reaches out of the image, `vbox` its visible part, `hbox` the head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.folders import is_there
from flyspeck.data.readers.image_sizes import named_size
from flyspeck.data.readers.places import image_files
from flyspeck.data.readers.values import as_number, as_numbers, as_path, as_truth, read_lines
from flyspeck.errors import UserError

HEAD = "head"
_NOWHERE = [float("nan")] * 4


def read_odgt(path: Path, options: ReadOptions) -> Annotations:
    """The table of an .odgt file. Classes are the tags that occur; boxes are the whole bodies (`fbox`, or a plain `box`).

    `mask` (reflections, statues, crowds) and what says `ignore` are ignore regions of every class. `classes` that name `head`
    get the heads, too. `extra` gets `height` (M,), `vis_bbox` (M, 4) xywh and `vis_ratio` (M,), the visible box's area over
    the whole's, where the file has visible boxes. An image's file is its `fpath`, or `<ID>` with the ending found on disk.
    """
    if not path.is_file():
        raise UserError("no .odgt file", where=path, fix="check the path")
    draft = Draft(where=path, root=path.parent, flags={"ignore": []})
    visible: list[list[float]] = []
    records = [(n, record) for n, line in enumerate(read_lines(path, options.encoding), 1) if line.strip()
               for record in [_record(draft, path, n, line)] if record is not None]  # fmt: skip
    if not records:
        raise UserError("no line is a json object with ID and gtboxes", where=path, fix="check the file")
    _add_images(draft, path, [record for _, record in records], options)
    heads = HEAD in (options.classes or ())
    rows: dict[str, int] = {}
    for row, (number, record) in enumerate(records):
        for index, item in enumerate(record["gtboxes"], 1):
            place = f"{path.name}, line {number}, box {index}"
            _add(draft, rows, row, item if isinstance(item, dict) else {}, place, heads=heads, visible=visible)
    draft.names, draft.category_ids = list(rows), list(range(1, len(rows) + 1))
    boxes, shown = (np.array(v, np.float64).reshape(-1, 4) for v in (draft.boxes, visible))
    if np.isfinite(shown).any():
        whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ratio = np.divide(shown[:, 2] * shown[:, 3], whole, out=np.zeros(len(whole)), where=whole > 0)
        draft.extra |= {"height": boxes[:, 3] - boxes[:, 1], "vis_bbox": shown, "vis_ratio": ratio}
    return assemble(draft, options, f"odgt: {path.name}")


def _record(draft: Draft, path: Path, number: int, line: str) -> dict[str, Any] | None:
    """A line's object, or None and a problem."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and isinstance(record.get("gtboxes"), list) and ("ID" in record or "fpath" in record):
        return record
    draft.problems.append(f"{path.name}, line {number}: not a json object with ID and gtboxes")
    return None


def _add_images(draft: Draft, path: Path, records: list[dict[str, Any]], options: ReadOptions) -> None:
    """The images, and the folder that they are in: `Images` beside the file or above it, or what `images` says."""
    names = [as_path(str(r.get("fpath") or r["ID"])).lstrip("/") for r in records]
    above = [path.parent, path.parent.parent]
    places = [folder / name for folder in above for name in ("Images", "images", "JPEGImages", "")]
    folders = [options.images] if options.images else [p for p in places if p.is_dir()]
    endless = any(not Path(name).suffix for name in names)
    found: dict[str, str] = {}
    draft.root = folders[0]
    for folder in folders:
        found = {file.stem: file.name for file in image_files(folder)} if endless else {}
        if any(name in found or is_there(folder / name) for name in names[:20]):
            draft.root = folder
            break
    for record, name in zip(records, names, strict=True):
        file = found.get(name) or (name if Path(name).suffix else f"{name}.jpg")
        size = (record.get("height"), record.get("width"))
        if not all(0 < as_number(side) < 2**31 for side in size):
            known = is_there(draft.root / file)
            size = named_size(draft, file, options) if known else (-1, -1)
        draft.add_image(record.get("ID", name), file, size)  # type: ignore[arg-type]


def _add(
    draft: Draft,
    rows: dict[str, int],
    image: int,
    item: dict[str, Any],
    place: str,
    *,
    heads: bool,
    visible: list[list[float]],
) -> None:
    """The entry's body, and its head if `heads`."""
    tag, marks = item.get("tag", "person"), item.get("extra")
    ignored = tag == "mask" or _flag(marks, "ignore") or _flag(item, "ignore")
    category = -1 if tag == "mask" else rows.setdefault(tag, len(rows)) if isinstance(tag, str) else -2
    entries = [(_four(item.get("fbox", item.get("box"))), category, ignored, _four(item.get("vbox")))]
    if heads and "hbox" in item and tag != "mask":
        hidden = ignored or _flag(item.get("head_attr"), "ignore")
        entries.append((_four(item["hbox"]), rows.setdefault(HEAD, len(rows)), hidden, _four(item["hbox"])))
    for (x, y, w, h), row, flag, shown in entries:
        draft.add_box(image, (x, y, x + w, y + h), row, place)
        draft.flags["ignore"].append(flag)
        visible.append(shown)


def _flag(marks: Any, name: str) -> bool:
    return isinstance(marks, dict) and bool(as_truth(marks.get(name)))


def _four(value: Any) -> list[float]:
    return as_numbers(value) if isinstance(value, list) and len(value) == 4 else list(_NOWHERE)
