"""PASCAL VOC: one xml file per image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import PIXELS, Draft, Pixels, ReadOptions, assemble, by_name
from flyspeck.data.readers.folders import files_of, is_there
from flyspeck.data.readers.foreign import tool_of_xml
from flyspeck.data.readers.image_sizes import known_sizes
from flyspeck.data.readers.places import image_files, note_alone, note_unread, settle_root
from flyspeck.data.readers.values import as_numbers, as_path, as_truth, parse_xml
from flyspeck.errors import UserError, brief

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, options: ReadOptions) -> Annotations:
    """The table of a VOC folder (with `Annotations/` and `JPEGImages/`), of a folder of xml files, or of one xml file.

    What whole corners mean is `options.pixels`; None takes what the tool that wrote the files is known to mean: edges
    (LabelImg, CVAT, Roboflow, Label Studio, FiftyOne), or the first and last pixel counted from 1 (Pascal's devkit). A set
    without a tool's marks is read as the devkit defines it, or counted from 0 where a 0 occurs. `Annotations.notes` says what
    was taken and why. Classes are the names that occur, sorted. Image ids are the names of the xml files.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = [folder] if folder.is_file() else files_of(folder, ".xml")
    if not files:
        raise UserError("no xml files", where=folder, fix="give the folder with 'Annotations' and 'JPEGImages'")
    draft = Draft(where=source, root=folder)
    names: list[str] = []
    writers: set[str] = set()
    for name in ("difficult", "truncated"):
        draft.flags[name] = []
    for file in files:
        _read_file(draft, file, names, writers, options.encoding)
    here = files[0].parent
    places = [here.parent / "JPEGImages", here.parent / "images", here, here.parent]
    settle_root(draft, [options.images] if options.images else places)
    _by_own_name(draft, files, [options.images] if options.images else places)
    known_sizes(draft, options)
    _note_partners(draft)
    by_name(draft, names)
    draft.pixels, reason, draft.pixels_known = _meaning(draft.boxes, writers, options.pixels)
    if reason:
        others = " or ".join(p for p in PIXELS if p != draft.pixels)
        draft.notes.append(f"VOC boxes are read as {_MEANS[draft.pixels]}, {reason}; --pixels {others} says otherwise")
    base, last = {"half-open": (0, 0), "from-0": (0, 1), "from-1": (1, 1)}[draft.pixels]
    draft.boxes = [(x1 - base, y1 - base, x2 - base + last, y2 - base + last) for x1, y1, x2, y2 in draft.boxes]
    return assemble(draft, options, f"voc: {source.name} ({_MEANS[draft.pixels]})")


_MEANS: dict[Pixels, str] = {
    "half-open": "edges from 0, half-open",
    "from-0": "pixels counted from 0, the last included",
    "from-1": "pixels counted from 1, the last included",
}
DEVKIT = "Pascal VOC's devkit"


def _meaning(boxes: Sequence[Sequence[float]], writers: set[str], asked: Pixels | None) -> tuple[Pixels, str, bool]:
    """What corners mean, why (empty where the user said so), and whether that is known rather than guessed."""
    if asked is not None:
        return asked, "", True
    if writers == {DEVKIT}:
        return "from-1", f"as {DEVKIT} writes them", True
    if writers and DEVKIT not in writers:
        return "half-open", f"as {' and '.join(sorted(writers))} write{'s' * (len(writers) == 1)} them", True
    if any(side != int(side) for box in boxes for side in box if math.isfinite(side)):
        return "half-open", "since corners are no whole numbers", True
    if any(0 in box[:2] for box in boxes):
        return "from-0", "since a coordinate 0 occurs and no tool left its mark", False
    return "from-1", "as the format defines them, since no tool left its mark", False


def _writer(tree: ElementTree.Element) -> str | None:
    """The tool that wrote a file, told by its marks; None where there are none."""
    database = (tree.findtext("source/database") or "").strip().lower()
    if re.search(r"voc ?20\d\d", database) or "pascal" in (tree.findtext("source/annotation") or "").lower():
        return DEVKIT
    if tree.find("object/robndbox") is not None:
        return "roLabelImg"
    for mark, tool in (("roboflow", "Roboflow"), ("label studio", "Label Studio"), ("mydatabase", "Label Studio"),
                       ("cvat", "CVAT"), ("fiftyone", "FiftyOne"), ("labelme", "labelme"), ("flyspeck", "flyspeck")):  # fmt: skip
        if mark in database:
            return tool
    if database == "unknown":
        return "CVAT" if tree.find("source/annotation") is not None else "LabelImg"
    if tree.find("path") is not None or tree.get("verified") is not None:
        return "LabelImg"
    return None


def _by_own_name(draft: Draft, files: Sequence[Path], places: Sequence[Path]) -> None:
    """Takes the image of an xml file's own name where the one that it names is not there: files are renamed, contents are not."""
    missing = [row for row, name in enumerate(draft.file_names) if not is_there(draft.root / name)]
    if not missing:
        return
    root = draft.root if len(missing) < len(draft.file_names) else None
    stems = {file.stem: file for file in files}
    for folder in [root] if root else places:
        found = {file.stem: file.name for file in image_files(folder)} if folder.is_dir() else {}
        taken = [row for row in missing if draft.image_ids[row] in found and draft.image_ids[row] in stems]
        if taken:
            for row in taken:
                draft.file_names[row] = found[draft.image_ids[row]]
            draft.root = folder
            examples = [str(draft.file_names[row]) for row in taken]
            note_alone(
                draft,
                examples,
                "annotation files name an image that is not there: the image of their own name is taken",
            )
            return


def _note_partners(draft: Draft) -> None:
    """Notes on xml files without image, images without xml, and two files that name one image."""
    missing = [name for name in draft.file_names if not is_there(draft.root / name)]
    if len(missing) < len(draft.file_names):
        note_alone(draft, missing, "annotation files have no image", draft.root)
    if draft.root.is_dir() and not draft.where.is_file():
        listed = {Path(name).name for name in draft.file_names}
        alone = [file.name for file in image_files(draft.root) if file.name not in listed]
        note_alone(draft, alone, "images have no annotation file, and are no part of the set")
        note_unread(draft, draft.root)
    twice = [name for name, count in Counter(draft.file_names).items() if count > 1]
    note_alone(draft, twice, "images are named by several annotation files")


def _read_file(draft: Draft, file: Path, names: list[str], writers: set[str], encoding: str | None) -> None:
    """Append one xml file; a broken one is a problem."""
    try:
        tree = parse_xml(file, encoding)
    except UserError as error:
        draft.problems.append(str(error).replace(str(file), file.name))
        return
    if tree.tag != "annotation":
        kind = tool_of_xml(tree)
        if kind is not None:
            raise UserError(f"a file of {kind}, not of VOC", where=file, fix="give --format")
        draft.problems.append(f"{file.name}: <{tree.tag}> where VOC has <annotation>")
        return
    tool = _writer(tree)
    if tool is not None:
        writers.add(tool)
    height, width = as_numbers([tree.findtext("size/height", ""), tree.findtext("size/width", "")])
    size = (int(height), int(width)) if height > 0 and width > 0 else (-1, -1)
    file_name = as_path(tree.findtext("filename") or "") or f"{file.stem}.jpg"
    row = draft.add_image(file.stem, file_name if "." in file_name else f"{file_name}.jpg", size)
    title = file.name
    for count, item in enumerate(tree.findall("object"), 1):
        place = f"{title}, object {count}"
        parts = {part.tag: part for part in item[::-1]}  # the first of each
        name = _text_of(parts.get("name"))
        if not name:
            draft.problems.append(f"{place}: no name")
            continue
        frames = sum(part.tag == "bndbox" for part in item)
        if frames > 1:
            draft.notes.append(f"{place}: {frames} <bndbox>, of which the first is taken")
        if not frames and "polygon" in parts and "robndbox" not in parts:
            draft.problems.append(f"{place}: a <polygon> and no <bndbox>")
            continue
        draft.add_box(row, _corners(parts), -2, place)
        names.append(name)
        for flag in ("difficult", "truncated"):
            word = _text_of(parts.get(flag))
            said = as_truth(word)
            if said is None:
                draft.notes.append(f"{place}: <{flag}> says neither yes nor no ({brief(word)}): no")
            draft.flags[flag].append(bool(said))


def _text_of(part: ElementTree.Element | None) -> str:
    return "" if part is None else (part.text or "").strip()


def _corners(parts: dict[str, ElementTree.Element]) -> list[float]:
    """The corners of an object's `bndbox`, or of the box around its `robndbox` (roLabelImg); NaN where it has neither."""
    box, turned = parts.get("bndbox"), parts.get("robndbox")
    if turned is None or box is not None:
        sides = {} if box is None else {side.tag: side.text or "" for side in box[::-1]}
        return as_numbers([sides.get(side, "") for side in SIDES])
    x, y, w, h, angle = as_numbers([turned.findtext(name, "") for name in ("cx", "cy", "w", "h", "angle")])
    if not math.isfinite(angle):
        return [math.nan] * 4
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    across, down = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return [x - across, y - down, x + across, y + down]
