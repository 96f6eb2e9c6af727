"""FiftyOne's own export (FiftyOneImageDetectionDataset): `labels.json` beside `data/`, boxes in shares of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, by_name
from flyspeck.data.readers.places import header_size, image_files, note_alone
from flyspeck.data.readers.values import as_id, as_numbers, as_path, load_json
from flyspeck.errors import UserError
from flyspeck.files import without_ending


def read_fiftyone(path: Path, options: ReadOptions) -> Annotations:
    """The table of a `labels.json`, or of the folder that holds it. Image ids are the keys: paths without their endings.

    Images are needed, as sizes are shares of them: they lie in `data/` beside the file, or in `options.images`.
    """
    path = path / "labels.json" if path.is_dir() else path
    content = load_json(path, options.encoding)
    labels = content.get("labels") if isinstance(content, Mapping) else None
    if not isinstance(labels, Mapping):
        raise UserError("no mapping 'labels'", where=path, fix="give labels.json of a FiftyOneImageDetectionDataset")
    classes = content.get("classes")
    classes = [str(name) for name in classes] if isinstance(classes, list) else []
    root = options.images or (path.parent / "data" if (path.parent / "data").is_dir() else path.parent)
    draft = Draft(where=path, root=root)
    found = {}
    for file in image_files(root, recursive=True) if root.is_dir() else ():
        found.setdefault(without_ending(file.relative_to(root)).as_posix(), file.relative_to(root).as_posix())
    tails = {Path(key).name: name for key, name in found.items()}
    names: list[str] = []
    missing = []
    for key, entries in labels.items():
        stem = as_path(str(key))
        file = found.get(stem) or tails.get(Path(stem).name)
        if file is None:
            missing.append(str(key))
            continue
        size = header_size(draft, root / file)
        row = draft.add_image(str(key), file, size)
        for count, entry in enumerate(entries if isinstance(entries, list) else [], 1):
            label, box = _entry(entry, classes, size)
            draft.add_box(row, box, -2, f"{path.name}, {key}, detection {count}")
            names.append(label)
    note_alone(draft, missing, "entries have no image, and their objects are lost", root)
    if not draft.image_ids:
        raise UserError("none of its images is there", where=root, fix="give the folder of the images with --images")
    by_name(draft, names, listed=classes)
    return assemble(draft, options, f"fiftyone: {path.name}")


def _entry(entry: Any, classes: list[str], size: tuple[int, int]) -> tuple[str, list[float]]:
    """The class and the xyxy of an entry; NaN where it has no box."""
    entry = entry if isinstance(entry, Mapping) else {}
    label, box = entry.get("label"), entry.get("bounding_box")
    number = as_id(label)
    name = classes[number] if isinstance(number, int) and 0 <= number < len(classes) else str(label)
    x, y, w, h = as_numbers(box) if isinstance(box, list) and len(box) == 4 else [math.nan] * 4
    height, width = size
    return name, [x * width, y * height, (x + w) * width, (y + h) * height]
