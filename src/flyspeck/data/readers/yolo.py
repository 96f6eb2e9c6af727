"""YOLO: `class cx cy w h` in shares of the image, a text file beside (or in `labels/` for `images/`) each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, header_size, image_files, numbers, read_lines
from flyspeck.errors import UserError, nearest

SPLITS = ("train", "val", "test")


def read_yolo(source: Path, options: ReadOptions) -> Annotations:
    """The table of a `data.yaml` (with `options.split` train, val or test; None: the first that it has), or of a folder.

    A folder has `images/` and `labels/`, or is a folder of images with the texts beside them or in the twin folder under
    `labels`. An image without text has no objects. Segments and oriented boxes become the horizontal box around
    them. Names come from the yaml, or `classes.txt`; else `class 0`, `class 1`, …
    """
    draft = Draft(where=source, root=source)
    inside = next((p for p in (source / "data.yaml", source / "dataset.yaml") if p.is_file()), None)
    recipe = inside or source
    seen = ""
    if recipe.is_file():
        content = _load_yaml(recipe)
        names = _names(content.get("names"), recipe)
        draft.root, files, seen = _listed(content, recipe, options.split)
    else:
        if options.images is None and (source / "images").is_dir():
            draft.root = source / "images"
        elif options.images is not None:
            draft.root = options.images
        files = image_files(draft.root, recursive=True)
        names = next(
            (read_lines(p) for p in (source / "classes.txt", source / "labels" / "classes.txt") if p.is_file()), []
        )
    for file in files:
        _read_image(draft, file)
    numbers_seen = [int(c) for c in draft.category if c >= 0]
    draft.names = names or [f"class {number}" for number in range(max(numbers_seen, default=-1) + 1)]
    draft.category_ids = list(range(len(draft.names)))
    draft.category = [c if 0 <= c < len(draft.names) else -2 for c in draft.category]
    if not files:
        raise UserError(
            "no images", where=draft.root, fix="YOLO's sizes are shares of the image, so the images are needed"
        )
    return assemble(draft, options, f"yolo: {recipe.name}{seen}")


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not valid yaml ({str(error).splitlines()[0]})", where=path, fix="correct the file") from None
    if not isinstance(content, dict):
        raise UserError("no keys", where=path, fix="a YOLO data.yaml has 'train', 'val' and 'names'")
    return content


def _names(names: Any, where: Path) -> list[str]:
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        return [str(names[number]) for number in range(len(names))]
    if isinstance(names, list):
        return [str(name) for name in names]
    raise UserError("'names' is no list of classes", where=where, fix="write names: [person, car]")


def _listed(content: dict[str, Any], recipe: Path, split: str | None) -> tuple[Path, list[Path], str]:
    """The root, the images of a split of a data.yaml, and words on what was taken."""
    here = [name for name in SPLITS if content.get(name)]
    if split is None:
        split = here[0] if here else "train"
    if split not in here:
        raise UserError(
            f"no split '{split}'", where=recipe, fix=nearest(split, here) if here else "add 'train' and 'val'"
        )
    base = Path(content.get("path") or ".")
    candidates = [recipe.parent / base, base, recipe.parent]
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    files: list[Path] = []
    root = recipe.parent
    for entry in map(str, entries):
        # Some tools write the entry as if it were a level deeper: `../train/images` beside `train/`.
        options = [folder / e for folder in candidates for e in (entry, entry.removeprefix("../"))]
        place = next((p for p in options if p.exists()), None)
        if place is None:
            raise UserError(f"'{entry}' of '{split}' does not exist", where=recipe, fix="correct 'path' or the entry")
        root = next(folder for folder in candidates if place.is_relative_to(folder))
        if place.is_file():
            files += [place.parent / line.strip() for line in read_lines(place) if line.strip()]
        else:
            files += image_files(place, recursive=True)
    return root, files, f", split {split}"


def label_file(image: Path) -> Path:
    """The text of an image: the last folder `images` of its path replaced by `labels`, or beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        twin = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        if twin.is_file() or twin.parent.is_dir():
            return twin
    return image.with_suffix(".txt")


def _read_image(draft: Draft, image: Path) -> None:
    inside = image.is_relative_to(draft.root)
    name = image.relative_to(draft.root).as_posix() if inside else str(image.absolute())
    if not image.is_file():
        draft.problems.append(f"{name}: listed, but there is no such image")
        return
    height, width = header_size(draft, image)
    if height < 1:
        return
    row = draft.add_image(str(Path(name).with_suffix("").as_posix()), name, (height, width))
    text = label_file(image)
    for number, line in enumerate(read_lines(text) if text.is_file() else [], 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 5:
            draft.problems.append(f"{text.name}, line {number}: {len(fields)} fields where YOLO has 5")
            continue
        key, *shares = numbers(fields)
        box = np.array(_box(shares)) * (width, height, width, height)
        draft.add_box(row, box.tolist(), int(key) if key.is_integer() else -2, f"{text.name}, line {number}")


def _box(shares: list[float]) -> tuple[float, float, float, float]:
    """xyxy of centre and size (4 numbers, or 5 with a score), or of a polygon (6 or more, in pairs)."""
    if len(shares) >= 6 and len(shares) % 2 == 0:
        x, y = shares[::2], shares[1::2]
        broken = 0.0 if np.isfinite(shares).all() else float("nan")  # min and max may pass over a NaN
        return min(x) + broken, min(y), max(x), max(y)
    x, y, w, h = shares[:4]
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
