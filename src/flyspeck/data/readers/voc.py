"""PASCAL VOC: one xml file per image."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, find_root, header_size, numbers
from flyspeck.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, options: ReadOptions) -> Annotations:
    """The table of a VOC folder (with `Annotations/` and `JPEGImages/`), of a folder of xml files, or of one xml file.

    VOC counts pixels from 1 and includes the last one, so `xmin, ymin` lose 1 to give half-open boxes; a set in which a
    coordinate 0 occurs counts from 0 (as many tools write it), and only `xmax, ymax` gain 1. Either way a box is as wide
    as the pixels it names. Classes are the names that occur, sorted. Image ids are the names of the xml files.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = [folder] if folder.is_file() else sorted(folder.glob("*.xml"))
    if not files:
        raise UserError("no xml files", where=folder, fix="give the folder with 'Annotations' and 'JPEGImages'")
    draft = Draft(where=source, root=folder)
    names: list[str] = []
    for name in ("difficult", "truncated"):
        draft.flags[name] = []
    for file in files:
        _read_file(draft, file, names)
    here = files[0].parent
    places = [here.parent / "JPEGImages", here.parent / "images", here, here.parent]
    draft.root = options.images or find_root(places, draft.file_names)
    for row, size in enumerate(draft.sizes):
        if size == (-1, -1) and draft.root.joinpath(draft.file_names[row]).is_file():
            draft.sizes[row] = header_size(draft, draft.root / draft.file_names[row])
    draft.names = sorted(set(names))
    draft.category_ids = list(range(1, len(draft.names) + 1))
    row_of = {name: row for row, name in enumerate(draft.names)}
    draft.category = [row_of[name] for name in names]
    base = 0 if any(0 in box[:2] for box in draft.boxes) else 1
    draft.boxes = [(x1 - base, y1 - base, x2 - base + 1, y2 - base + 1) for x1, y1, x2, y2 in draft.boxes]
    counted = f"pixels counted from {base}"
    return assemble(draft, options, f"voc: {source.name} ({counted})")


def _read_file(draft: Draft, file: Path, names: list[str]) -> None:
    """Append one xml file; a broken one is a problem."""
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        draft.problems.append(f"{file.name}, line {error.position[0]}: not valid xml")
        return
    if tree.tag != "annotation":
        draft.problems.append(f"{file.name}: <{tree.tag}> where VOC has <annotation>")
        return
    height, width = numbers([tree.findtext("size/height", ""), tree.findtext("size/width", "")])
    size = (int(height), int(width)) if height > 0 and width > 0 else (-1, -1)
    file_name = (tree.findtext("filename") or "").strip() or f"{file.stem}.jpg"
    row = draft.add_image(file.stem, file_name if "." in file_name else f"{file_name}.jpg", size)
    for number, item in enumerate(tree.findall("object"), 1):
        place = f"{file.name}, object {number}"
        name = (item.findtext("name") or "").strip()
        if not name:
            draft.problems.append(f"{place}: no name")
            continue
        draft.add_box(row, numbers([item.findtext(f"bndbox/{side}", "") for side in SIDES]), -2, place)
        names.append(name)
        for flag in ("difficult", "truncated"):
            draft.flags[flag].append((item.findtext(flag) or "0").strip() not in ("0", ""))
