"""Supervisely: a project of data sets, each with `ann/NAME.json` beside `img/NAME`, and `meta.json` with the classes."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.folders import files_of
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import note_listed
from flyspeck.data.readers.values import as_number, as_numbers, load_json
from flyspeck.errors import UserError, counted

_NO_AREA = ("point", "polyline", "graph", "cuboid")


def read_supervisely(source: Path, options: ReadOptions) -> Annotations:
    """The table of a Supervisely project, of one of its data sets, or of one file of it.

    Rectangles name their first and last pixel from 0 (Supervisely's `Rectangle.width` is `right - left + 1`), which
    `options.pixels` can overrule; polygons and bitmaps become the box around them. Classes are those of `meta.json` in its
    order, else those that occur, sorted. Image ids are `DATASET/NAME`.
    """
    files = (
        [source]
        if source.is_file()
        else [p for p in files_of(source, ".json", recursive=True) if p.parent.name == "ann"]
    )
    if not files:
        raise UserError("no folder 'ann' with json files", where=source, fix="give the project's folder")
    top = source if source.is_dir() else source.parent.parent
    draft = Draft(where=source, root=options.images or top, pixels=options.pixels or "from-0")
    if options.pixels is None:
        draft.notes.append(
            "rectangles are read as pixels counted from 0, the last included, as Supervisely writes them; "
            "--pixels half-open or from-1 says otherwise"
        )
    names: list[str] = []
    without: Counter[str] = Counter()
    for file in files:
        content = load_json(file, options.encoding)
        if not isinstance(content, Mapping) or not isinstance(content.get("objects"), list):
            draft.problems.append(f"{file.name}: no list 'objects'")
            continue
        folder = file.parent.parent
        name = file.name.removesuffix(".json")
        inside = folder.relative_to(top).as_posix() if folder.is_relative_to(top) else "."
        key = name if inside == "." else f"{inside}/{name}"
        place = name if options.images else (Path(inside) / "img" / name).as_posix()
        row = draft.add_image(key, place, _size(content.get("size")))
        for count, item in enumerate(content["objects"], 1):
            _add(draft, row, item, f"{key}, object {count}", names, without)
    known_sizes(draft, options)
    if source.is_dir():
        note_listed(draft, "annotation files have no image")
    for kind, count in sorted(without.items()):
        draft.notes.append(f"{counted(count, 'object')} of the kind {kind} without a box: left out")
    by_name(draft, names, listed=_classes(files[0], options))
    return assemble(draft, options, f"supervisely: {source.name}")


def _classes(file: Path, options: ReadOptions) -> list[str]:
    """The classes of the project's `meta.json`, up to three folders above a file; empty without one."""
    for folder in list(file.parents)[:4]:
        meta = folder / "meta.json"
        content = load_json(meta, options.encoding) if meta.is_file() else None
        classes = content.get("classes") if isinstance(content, Mapping) else None
        if isinstance(classes, list):
            return [str(c["title"]).strip() for c in classes if isinstance(c, Mapping) and c.get("title")]
    return []


def _size(size: Any) -> tuple[int, int]:
    sides = [as_number(size.get(name)) for name in ("height", "width")] if isinstance(size, Mapping) else [math.nan]
    return (int(sides[0]), int(sides[1])) if all(0 < side < 2**31 for side in sides) else (-1, -1)


def _add(draft: Draft, row: int, item: Any, place: str, names: list[str], without: Counter[str]) -> None:
    kind = str(item.get("geometryType", "rectangle")) if isinstance(item, Mapping) else "?"
    if kind in _NO_AREA:
        without[kind] += 1
        return
    if not isinstance(item, Mapping) or not item.get("classTitle"):
        draft.problems.append(f"{place}: no object with a classTitle")
        return
    draft.add_box(row, _box(item, kind, draft.pixels or "from-0"), -2, place)
    names.append(str(item["classTitle"]).strip())
    draft.outlines += kind != "rectangle"


def _box(item: Mapping[str, Any], kind: str, pixels: str) -> list[float]:
    """xyxy of an object; NaN where it is broken."""
    if kind == "bitmap":
        return _of_bitmap(item.get("bitmap"))
    points = item.get("points")
    corners = points.get("exterior") if isinstance(points, Mapping) else None
    rows = [as_numbers(p) for p in corners if isinstance(p, list) and len(p) == 2] if isinstance(corners, list) else []
    if len(rows) < 2 or not all(math.isfinite(side) for point in rows for side in point):
        return [math.nan] * 4
    xs, ys = zip(*rows, strict=True)
    first, last = {"half-open": (0, 0), "from-0": (0, 1), "from-1": (1, 1)}[pixels]
    shift = (first, last) if kind == "rectangle" else (0, 0)
    return [min(xs) - shift[0], min(ys) - shift[0], max(xs) - shift[0] + shift[1], max(ys) - shift[0] + shift[1]]


_LARGEST_MASK = 1 << 26  # pixels


def _of_bitmap(bitmap: Any) -> list[float]:
    """Around the pixels of a zlib-packed PNG in base64, whose upper left corner lies at `origin`."""
    try:
        x, y = as_numbers(bitmap["origin"])
        packed = zlib.decompressobj().decompress(
            base64.b64decode(bitmap["data"]), 1 << 26
        )  # a bound: it may be hostile
        with Image.open(io.BytesIO(packed), formats=("PNG",)) as image:
            if image.width * image.height > _LARGEST_MASK:
                return [math.nan] * 4
            mask = (
                np.asarray(image.convert("RGBA"))[..., 3] > 0
                if image.mode in ("P", "RGBA", "LA")
                else np.asarray(image) > 0
            )
    except Exception:  # a decoder raises anything
        return [math.nan] * 4
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [math.nan] * 4
    return [x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1]
