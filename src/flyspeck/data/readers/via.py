"""VGG Image Annotator (VIA 1 and 2): a json project, or the json that it exports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import note_listed, settle_root
from flyspeck.data.readers.values import as_name, as_number, as_numbers, as_path, as_truth, load_json
from flyspeck.errors import UserError, counted

_CLASS_KEYS = ("class", "label", "category", "name", "type", "object")
UNNAMED = "object"
"""The class of all regions where none has attributes."""


def read_via(path: Path, options: ReadOptions) -> Annotations:
    """The table of a VIA project or export. Rectangles, polygons, circles and ellipses become the box around them.

    The class is the region's only attribute, or the one called class, label, category, name, type or object; which one was
    taken is a note where there are several; a region without it is broken. Image ids are the file names.
    """
    content = load_json(path, options.encoding)
    entries = content.get("_via_img_metadata", content) if isinstance(content, Mapping) else None
    if not isinstance(entries, Mapping):
        raise UserError("no VIA project", where=path, fix="export annotations as json")
    draft = Draft(where=path, root=path.parent)
    names: list[str] = []
    without: Counter[str] = Counter()
    entries = [entry for entry in entries.values() if isinstance(entry, Mapping) and "regions" in entry]
    key = _class_key(draft, entries)
    for entry in entries:
        name = as_path(str(entry.get("filename", "")))
        row = draft.add_image(name, name)
        for count, region in enumerate(_regions(entry), 1):
            shape, attributes = region.get("shape_attributes"), region.get("region_attributes")
            shape = shape if isinstance(shape, Mapping) else {}
            kind = str(shape.get("name"))
            if kind in ("point", "polyline"):
                without[kind] += 1
                continue
            draft.add_box(row, _box(kind, shape), -2, f"{path.name}, {name}, region {count}")
            draft.outlines += kind != "rect"
            names.append(_class(attributes if isinstance(attributes, Mapping) else {}, key))
    settle_root(draft, [options.images] if options.images else [path.parent, path.parent / "images"])
    known_sizes(draft, options)
    note_listed(
        draft, "images of the file are not there", "images beside them are not in the file, and are no part of the set"
    )
    for kind, count in sorted(without.items()):
        draft.notes.append(f"{counted(count, 'region')} of the kind {kind} without a box: left out")
    by_name(draft, names)
    return assemble(draft, options, f"via: {path.name}")


def _regions(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A list in VIA 2, a mapping by number in VIA 1."""
    regions = entry["regions"]
    listed = regions.values() if isinstance(regions, Mapping) else regions if isinstance(regions, list) else []
    return [region for region in listed if isinstance(region, Mapping)]


def _class_key(draft: Draft, entries: list[Mapping[str, Any]]) -> str | None:
    counts: Counter[str] = Counter()
    for entry in entries:
        for region in _regions(entry):
            attributes = region.get("region_attributes")
            counts.update(list(attributes) if isinstance(attributes, Mapping) else ())
    if not counts:
        draft.notes.append(f"regions have no attributes: all are of the class '{UNNAMED}'")
        return None
    known = [name for name in counts if name.strip().lower() in _CLASS_KEYS]
    known.sort(key=lambda name: _CLASS_KEYS.index(name.strip().lower()))
    chosen = known[0] if known else counts.most_common(1)[0][0]
    if len(counts) > 1:
        others = ", ".join(sorted(set(counts) - {chosen}))
        draft.notes.append(f"the region attribute '{chosen}' is taken as the class; there are also {others}")
    return chosen


def _class(attributes: Mapping[str, Any], key: str | None) -> str:
    value = attributes.get(key) if key is not None else UNNAMED
    if isinstance(value, Mapping):  # boxes to tick: {"car": true}
        value = next((name for name, ticked in value.items() if as_truth(ticked)), None)
    return as_name(value)


def _box(kind: str, shape: Mapping[str, Any]) -> list[float]:
    if kind == "rect":
        x, y, w, h = (as_number(shape.get(name)) for name in ("x", "y", "width", "height"))
        return [x, y, x + w, y + h]
    if kind in ("circle", "ellipse"):
        x, y = as_number(shape.get("cx")), as_number(shape.get("cy"))
        names = ("r", "r") if kind == "circle" else ("rx", "ry")
        a, b = (as_number(shape.get(name)) for name in names)
        turn = as_number(shape.get("theta", 0)) if kind == "ellipse" else 0.0
        half = (math.hypot(a * math.cos(turn), b * math.sin(turn)), math.hypot(a * math.sin(turn), b * math.cos(turn)))
        return [x - half[0], y - half[1], x + half[0], y + half[1]]
    xs, ys = (shape.get(name) for name in ("all_points_x", "all_points_y"))
    if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) > 1:
        xs, ys = as_numbers(xs), as_numbers(ys)
        if all(map(math.isfinite, (*xs, *ys))):
            return [min(xs), min(ys), max(xs), max(ys)]
    return [math.nan] * 4
