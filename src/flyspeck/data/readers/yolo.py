"""YOLO: `class cx cy w h` in shares of the image, a text file beside (or in `labels/` for `images/`) each image."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble
from flyspeck.data.readers.folders import files_of, is_there, on_disk
from flyspeck.data.readers.image_sizes import hold_inside, named_size
from flyspeck.data.readers.places import image_files, note_alone, note_unread
from flyspeck.data.readers.values import as_id, as_numbers, as_path, read_lines, read_text
from flyspeck.errors import UserError, brief, counted, nearest
from flyspeck.files import without_ending
from flyspeck.plain_yaml import nested_too_deeply

SPLITS = ("train", "val", "test")
_UNNAMED = 10_000
"""A class number from which on a file without names is taken to be broken, rather than to have so many classes."""
CONTENTS = ("data.yaml", "dataset.yaml", "data.yml", "obj.data")
"""Files that say what a data set holds."""
NOT_LABELS = (
    "classes.txt",
    "train.txt",
    "val.txt",
    "valid.txt",
    "test.txt",
    "README.roboflow.txt",
    "README.dataset.txt",
)
"""Text files of these names beside the labels are no labels."""


def read_yolo(source: Path, options: ReadOptions) -> Annotations:
    """The table of a `data.yaml` (`options.split` says which part; None: the first), a darknet `obj.data`, a list or a folder.

    A list is a text file of images, a line each. A folder has `images/` and `labels/`, or is a folder of images with the
    texts beside them or in the twin folder under `labels`. An image without text has no objects. Segments and oriented
    boxes become the horizontal box around them; with `kpt_shape` in the yaml, what follows the box are key points. Names
    come from the yaml, `obj.names`, `_darknet.labels` or `classes.txt`; else `class 0`, `class 1`, …
    """
    draft = Draft(where=source, root=source)
    inside = next((p for p in (source / name for name in CONTENTS) if p.is_file()), None)
    recipe = inside or source
    seen, points = "", 0
    if recipe.suffix.lower() == ".txt":
        draft.root, files = recipe.parent, listed_images(recipe, options.encoding)
        names = _class_names(sorted({recipe.parent, *(file.parent for file in files)}), options)
    elif recipe.is_file():
        content, names = _contents(recipe, options)
        count = as_id(content.get("nc", len(names)))
        if count != len(names):
            draft.notes.append(f"'nc' is {brief(content['nc'])}, and 'names' has {len(names)} classes, which are taken")
        points = _key_points(content, recipe)
        draft.root, files, seen = _listed(content, recipe, options)
    else:
        draft.root = options.images or (source / "images" if (source / "images").is_dir() else source)
        files = image_files(draft.root, recursive=True)
        names = _class_names([*_beside(source), *([options.images] if options.images else [])], options)
    files = _once_each(draft, files)
    texts: dict[Path, Path] = {}
    without = []
    layouts: Counter[str] = Counter()
    hold_inside(draft, [_name(draft, file) for file in files], options)
    for file in files:
        text = label_file(file)
        if not is_there(text):
            without.append(file.name)
        texts[file] = text
        _read_image(draft, file, text, points, options, layouts)
    _keep_ids_apart(draft)
    _note_layouts(draft, layouts)
    _note_partners(draft, texts, without)
    if not names:
        draft.notes.append("classes have no names: a classes.txt with a name a line, or a data.yaml, gives them")
    highest = max((int(c) for c in draft.category if 0 <= c < _UNNAMED), default=-1)
    draft.names = names or [f"class {row}" for row in range(highest + 1)]
    draft.category_ids = list(range(len(draft.names)))
    draft.category = [c if 0 <= c < len(draft.names) else -2 for c in draft.category]
    if not files:
        raise UserError(
            "no images", where=draft.root, fix="YOLO's sizes are shares of the image, so the images are needed"
        )
    return assemble(draft, options, f"yolo: {recipe.name}{seen}")


def _once_each(draft: Draft, files: list[Path]) -> list[Path]:
    """The files without those that stand there twice, as where a list repeats a line, or names a folder and one inside it."""
    found = {os.path.abspath(file): file for file in reversed(files)}
    if len(found) < len(files):
        twice = counted(len(files) - len(found), "image is listed twice", "images are listed twice")
        draft.notes.append(f"{twice}, and taken once")
    return list(found.values())[::-1]


def _keep_ids_apart(draft: Draft) -> None:
    """`a.jpg` and `a.png` would both be `a`: images of one stem get their whole name as id."""
    counts = Counter(draft.image_ids)
    pairs = zip(draft.image_ids, draft.file_names, strict=True)
    draft.image_ids = [name if counts[key] > 1 else key for key, name in pairs]


def _note_partners(draft: Draft, text_of: dict[Path, Path], without: list[str]) -> None:
    """Notes on label files without image and images without label file, by the label file of each image."""
    files, read = list(text_of), set(text_of.values())
    folders = {text.parent for text in read if text.parent.is_dir()}
    texts = {text for folder in folders for text in files_of(folder, ".txt") if text.name not in NOT_LABELS}
    alone = sorted(text.name for text in texts - read if without_ending(text).name not in ("train", "val", "test"))
    note_alone(draft, alone, "label files have no image, and their objects are lost")
    if read and len(without) < len(files):
        note_alone(draft, without, f"of {len(files)} images have no label file: read as images without objects")
    elif without:
        draft.notes.append(f"none of the {len(files)} images has a label file: there is nothing to learn or to find")
    shared: dict[Path, list[str]] = {}
    for file in files:
        shared.setdefault(text_of[file], []).append(file.name)
    twins = [" and ".join(names) for names in shared.values() if len(names) > 1]
    note_alone(draft, twins, "label files belong to several images, and are read for each")
    for folder in sorted({file.parent for file in files}):
        note_unread(draft, folder)


def _contents(recipe: Path, options: ReadOptions) -> tuple[dict[str, Any], list[str]]:
    """The keys of a data.yaml or of darknet's `obj.data`, and the names of the classes."""
    if recipe.suffix.lower() != ".data":
        content = _load_yaml(recipe, options.encoding)
        return content, _names(content.get("names"), recipe)
    pairs = (line.partition("=") for line in read_lines(recipe, options.encoding) if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in pairs}
    # Paths are those of the place where darknet ran: `data/obj.names` lies beside this file.
    listed = next((p for p in (recipe.parent / content.get("names", ""), recipe.parent / Path(content.get("names", "")).name)
                   if content.get("names") and p.is_file()), None)  # fmt: skip
    if listed is None:
        raise UserError(f"'names' ({content.get('names')}) is not there", where=recipe, fix="put obj.names beside it")
    return content, _trimmed(read_lines(listed, options.encoding))


def _class_names(folders: list[Path], options: ReadOptions) -> list[str]:
    """The classes that a text file in one of the folders lists, a line each; empty where there is none."""
    for folder in folders:
        for name in ("classes.txt", "obj.names", "_darknet.labels"):
            if (folder / name).is_file():
                return _trimmed(read_lines(folder / name, options.encoding))
    return []


def _beside(folder: Path) -> list[Path]:
    """The folders where tools put the list of classes of a folder of labels: in it, in `labels`, or one above."""
    return [folder, folder / "labels", folder.absolute().parent]


def _trimmed(lines: list[str]) -> list[str]:
    """Names without blanks around them, and without the empty lines at the end."""
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    return names


_LONGEST_YAML = 1 << 21
"""Letters; the names of 50,000 classes take less."""


def _load_yaml(path: Path, encoding: str | None) -> dict[str, Any]:
    """The keys as texts, as they stand: plain yaml makes `no` a truth and `1_0` a number."""
    text = read_text(path, encoding)
    if len(text) > _LONGEST_YAML or nested_too_deeply(text):
        raise UserError("too large or nested too deeply for a data.yaml", where=path, fix="check the file")
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # builds texts, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not valid yaml ({str(error).splitlines()[0]})", where=path, fix="correct the file") from None
    if not isinstance(content, dict):
        raise UserError("no keys", where=path, fix="a YOLO data.yaml has 'train', 'val' and 'names'")
    if isinstance(content.get("data"), dict) and "names" not in content:
        named = brief(content["data"].get("train"))
        raise UserError("a recipe, not annotations", where=path, fix=f"give what its data.train names: {named}")
    return content


def _names(names: Any, where: Path) -> list[str]:
    if isinstance(names, dict):
        by_number = {as_id(key): name.strip() for key, name in names.items() if isinstance(name, str)}
        if set(by_number) == set(range(len(names))):
            return [by_number[row] for row in range(len(names))]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return [name.strip() for name in names]
    raise UserError("'names' is no list of classes numbered from 0", where=where, fix="write names: [person, car]")


def _key_points(content: dict[str, Any], where: Path) -> int:
    """Numbers of key points that follow each box; 0 without `kpt_shape`."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    values = as_numbers(shape) if isinstance(shape, list) else []
    if len(values) != 2 or not all(1 <= value < 1000 and value.is_integer() for value in values):
        raise UserError(
            f"'kpt_shape' is {brief(shape)}, not [points, 2 or 3]", where=where, fix="write kpt_shape: [17, 3]"
        )
    return int(values[0] * values[1])


def listed_splits(recipe: Path, encoding: str | None = None) -> list[str]:
    """The splits that a data.yaml lists, by flyspeck's names. Raises UserError where it is no such file."""
    content = _load_yaml(recipe, encoding)
    return [name for name in SPLITS if content.get(name) or (name == "val" and content.get("valid"))]


def _listed(content: dict[str, Any], recipe: Path, options: ReadOptions) -> tuple[Path, list[Path], str]:
    """The root, the images of a split of a data.yaml, and words on what was taken."""
    split = options.split
    here = [name for name in (*SPLITS, "valid") if content.get(name)]
    if split is None:
        split = here[0] if here else "train"
    if split == "val" and "val" not in here and "valid" in here:
        split = "valid"
    if split not in here:
        raise UserError(
            f"no split '{split}'", where=recipe, fix=nearest(split, here) if here else "add 'train' and 'val'"
        )
    base = Path(as_path(_text(content.get("path") or ".", "path", recipe)))
    candidates = [recipe.parent / base, base, recipe.parent]
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    files: list[Path] = []
    root = recipe.parent
    for entry in (as_path(_text(one, split, recipe)) for one in entries):
        # Some tools write the entry as if it were a level deeper: `../train/images` beside `train/`.
        trials = [folder / e for folder in candidates for e in (entry, entry.removeprefix("../"), Path(entry).name)]
        place = next((p for p in trials if p.exists()), None)
        if place is None:
            raise UserError(f"'{entry}' of '{split}' does not exist", where=recipe, fix="correct 'path' or the entry")
        root = next((folder for folder in candidates if place.is_relative_to(folder)), place.parent)
        if place.is_file():
            files += listed_images(place, options.encoding)
        else:
            files += image_files(place, recursive=True)
    return root, files, f", split {split}"


def _text(value: Any, key: str, where: Path) -> str:
    """A text of a data.yaml; raises UserError for a list or mapping in its place."""
    if isinstance(value, str):
        return value
    raise UserError(f"'{key}' is {brief(value)}, not a path", where=where, fix="correct it")


def listed_images(path: Path, encoding: str | None = None) -> list[Path]:
    """The images that a text file lists, a line each: beside the file, or where the longest tail of the line lies there."""
    files = []
    for number, line in enumerate(read_lines(path, encoding), 1):
        name = as_path(line)
        if not name:
            continue
        if not Path(name).name:
            fix = "name an image in each line"
            raise UserError(f"'{name}' names no file", where=f"{path}, line {number}", fix=fix)
        parts = name.split("/")
        tails = (path.parent.joinpath(*parts[start:]) for start in range(max(0, len(parts) - 32), len(parts)))
        files.append(next((place for place in (Path(name), *tails) if is_there(place)), path.parent / name))
    return files


def label_file(image: Path) -> Path:
    """The text of an image: the last folder `images` of its path replaced by `labels`, or beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        twin = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        if is_there(twin) or os.path.isdir(twin.parent):
            return _as_spelt(twin)
    return _as_spelt(image.with_suffix(".txt"))


def _as_spelt(text: Path) -> Path:
    """`a.txt`, or `a.TXT` or the other Unicode form of its name where that is the file there."""
    if is_there(text):
        return text
    name = on_disk(text.parent, text.name)
    return next((p for p in (text.with_name(name), text.with_suffix(".TXT")) if is_there(p)), text)


def _note_layouts(draft: Draft, layouts: Counter[str]) -> None:
    """What lines of more than five fields were taken for, and shares that can be none."""
    layouts["polygon"] += layouts["corners"]
    draft.outlines = layouts["polygon"]
    if layouts["keypoints"]:
        draft.unkept.append(f"keypoints of {counted(layouts['keypoints'], 'annotation')}")
    said = "as detections have: they are read as annotations all the same"
    for kind, what in (
        ("track", f"lines have a score and the number of a track behind the box, {said}"),
        ("turned", f"lines have a score behind four corners, {said}"),
        ("corners", "of the polygons have three corners: as detections, they would be a box, a score and a track"),
    ):
        if layouts[kind]:
            draft.notes.append(f"{layouts[kind]} {what}")
    if layouts["polygon"]:
        draft.notes.append(
            f"{counted(layouts['polygon'], 'line holds', 'lines hold')} more than a box, read as a polygon: the box around"
            " it is taken (key points need kpt_shape in the data.yaml)"
        )
    if layouts["score"]:
        draft.notes.append(
            f"{counted(layouts['score'], 'line has', 'lines have')} a sixth field, which is taken for a score and passed over"
        )
    if layouts["beyond"]:
        draft.notes.append(
            f"{counted(layouts['beyond'], 'line has', 'lines have')} shares above 2: are they pixels? YOLO's are shares of"
            " the image"
        )


def _name(draft: Draft, image: Path) -> str:
    """As the table calls it: below the folder of the images, or from the root of the disk."""
    return image.relative_to(draft.root).as_posix() if image.is_relative_to(draft.root) else str(image.absolute())


def _read_image(
    draft: Draft, image: Path, text: Path, points: int, options: ReadOptions, layouts: Counter[str]
) -> None:
    name = _name(draft, image)
    if not is_there(image):
        draft.problems.append(f"{name}: listed, but there is no such image")
        return
    height, width = named_size(draft, name, options)
    if height < 1:
        return
    title = text.name
    row = draft.add_image(without_ending(Path(name)).as_posix(), name, (height, width))
    for count, line in enumerate(read_lines(text, options.encoding) if is_there(text) else [], 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 5:
            draft.problems.append(f"{text.name}, line {count}: {len(fields)} fields where YOLO has 5")
            continue
        key, *shares = as_numbers(fields)
        if points and len(shares) != 4 + points:
            what = f"{len(fields)} fields where a box and its key points (kpt_shape) are {5 + points}"
            draft.problems.append(f"{text.name}, line {count}: {what}")
            continue
        if points:
            layouts["keypoints"] += 1
            shares = shares[:4]
        elif len(shares) > 4:
            kind, length = _kind_of(shares)
            if not kind:
                what = f"{len(fields)} fields are neither a box (5) nor a class and the corners of a polygon"
                draft.problems.append(f"{title}, line {count}: {what}")
                continue
            shares = shares[:length]
            layouts[kind] += 1
            layouts["polygon"] += kind == "turned"
        layouts["beyond"] += max(shares[:4]) > 2
        x1, y1, x2, y2 = _box(shares)
        box = (x1 * width, y1 * height, x2 * width, y2 * height)
        draft.add_box(row, box, int(key) if key.is_integer() else -2, f"{title}, line {count}")


def _kind_of(shares: list[float]) -> tuple[str, int]:
    """What more than four numbers are, by a name of `layouts`, and how many of them are its box or polygon; "" for neither.

    Predictions have a score behind the box or its four corners, and where objects are tracked a number behind that, which
    is no share of an image: the line may be as long as a polygon's.
    """
    count = len(shares)
    if count == 5:
        return "score", 4
    if count == 6 and shares[5] >= 2 and shares[5].is_integer():
        return "track", 4
    if count in (9, 10) and (count == 9 or (shares[9] >= 2 and shares[9].is_integer())):
        return "turned", 8
    return ("", 0) if count % 2 else ("corners" if count == 6 else "polygon", count)


def _box(shares: list[float]) -> tuple[float, float, float, float]:
    """xyxy of centre and size (4 numbers), or of a polygon (6 or more, in pairs)."""
    if len(shares) >= 6:
        x, y = shares[::2], shares[1::2]
        broken = 0.0 if np.isfinite(shares).all() else float("nan")  # min and max may pass over a NaN
        return min(x) + broken, min(y), max(x), max(y)
    x, y, w, h = shares[:4]
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
