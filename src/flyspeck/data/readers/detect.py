"""Which of flyspeck's own formats a file or folder is in, told by its content."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

from flyspeck.data.images import EXTENSIONS
from flyspeck.data.readers.folders import all_files, files_of
from flyspeck.data.readers.foreign import FORMATS_OF_TOOLS, tool_of_json, tool_of_xml
from flyspeck.data.readers.matlab import mat_names
from flyspeck.data.readers.values import as_number, decoded, load_json, parse_xml
from flyspeck.data.readers.video_frames import UAVDT_WHOLE
from flyspeck.data.readers.yolo import CONTENTS, NOT_LABELS, label_file, listed_images
from flyspeck.errors import UserError


def detect(source: Path) -> tuple[str, Path] | None:
    """Which of flyspeck's own formats it is in, and the file or folder to give to its reader; None where none fits.

    Raises UserError where there is nothing, or where several files fit.
    """
    if not source.exists():
        raise UserError("no such file or folder", where=source, fix="check the path")
    return _of_folder(source) if source.is_dir() else _of_file(source)


def _of_file(path: Path) -> tuple[str, Path] | None:
    if path.name.endswith("_gtBboxCityPersons.json"):
        return "citypersons", path
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return ("wider" if {"event_list", "gt_list"} & mat_names(path) else "citypersons"), path
    if suffix == ".json":
        return FORMATS_OF_TOOLS.get(_json_kind(path) or "", "coco"), path
    if suffix == ".xml":
        return ("cvat" if _xml_kind(path) == "CVAT" else "voc"), path
    by_ending = {".csv": "csv", ".odgt": "odgt"}
    by_ending |= dict.fromkeys((".yaml", ".yml", ".data"), "yolo")
    if suffix in by_ending:
        return by_ending[suffix], path
    if suffix == ".txt":
        lines = _first_lines(path, 2)
        if lines and lines[0].lower().endswith(tuple(EXTENSIONS)):
            if (len(lines) > 1 and lines[1].isdigit()) or not any(file.is_file() for file in listed_images(path)[:20]):
                return "wider", path
            darknet = path.parent / "obj.data"
            return "yolo", darknet if darknet.is_file() else path
    return None


def json_files(folder: Path) -> list[Path]:
    """The json files of a folder and of its `annotations`, by name; those that Roboflow puts into each split's folder."""
    beside = files_of(folder, ".json") + files_of(folder / "annotations", ".json")
    return beside or sorted(folder.glob("*/_annotations.coco.json"))


def coco_files(folder: Path) -> list[Path]:
    """The COCO files of a folder that holds several; none where it is a data set of another kind, or of one file."""
    try:
        _of_folder(folder)
    except UserError:  # several files fit
        return [file for file in json_files(folder) if not _is_yolo(folder) or _json_kind(file) == "COCO"]
    return []


def _of_folder(folder: Path) -> tuple[str, Path] | None:
    for name in CONTENTS:
        if (folder / name).is_file():
            return "yolo", folder / name
    if any(next(folder.glob(f"{depth}*{UAVDT_WHOLE}"), None) for depth in ("", "*/")):
        return "uavdt", folder
    for kind in ("visdrone", "visdrone-vid"):
        if any(p.is_dir() and _text_kind(p) == kind for p in (folder, folder / "annotations")):
            return kind, folder
    if any(p.is_dir() and _text_kind(p) == "kitti" for p in (folder, folder / "label_2", folder / "labels")):
        return "kitti", folder
    if any(p.is_dir() and files_of(p, ".json") for p in (folder / "ann", *folder.glob("*/ann"))):
        return "supervisely", folder
    if any(p.is_dir() and _text_kind(p) == "dota" for p in (folder, *folder.glob("labelTxt*"))):
        return "dota", folder
    xmls = next((files for p in (folder, *_label_folders(folder)) if (files := files_of(p, ".xml"))), [])
    if len(xmls) == 1 and _xml_kind(xmls[0]) == "CVAT":
        return "cvat", xmls[0]
    if xmls:
        return "voc", folder if xmls[0].parent in (folder, folder / "Annotations") else xmls[0].parent
    if any(folder.rglob("*_gtBboxCityPersons.json")):
        return "citypersons", folder
    yolo = _is_yolo(folder)
    jsons = [] if yolo else json_files(folder)
    if jsons and _json_kind(jsons[0]) == "labelme":
        return "labelme", folder
    for kind, files in (
        ("coco", [file for file in json_files(folder) if not yolo or _json_kind(file) == "COCO"]),
        ("csv", files_of(folder, ".csv")),
        ("wider", sorted(folder.glob("**/wider_face_*_bbx_gt.txt"))),
        ("wider", sorted(folder.glob("wider_face_val.mat"))),
        ("citypersons", sorted(folder.glob("anno_*.mat"))),
        ("odgt", files_of(folder, ".odgt") + files_of(folder / "annotations", ".odgt")),
    ):
        if len(files) > 1:
            listed = ", ".join(file.relative_to(folder).as_posix() for file in files[:8])
            raise UserError(f"{len(files)} files of annotations ({listed})", where=folder, fix="give one of them")
        if files:
            return _of_file(files[0]) or (kind, files[0])
    if yolo:
        return "yolo", folder
    deep = next(iter(files_of(folder, ".json", recursive=True)), None)
    return ("labelme", folder) if deep is not None and _json_kind(deep) == "labelme" else None


def _is_yolo(folder: Path) -> bool:
    """Whether labels lie in a folder of YOLO's, or beside the images. A folder `labels` of json or xml is another tool's."""
    twin = label_file(folder.absolute() / "any.txt").parent
    places = [folder / "labels", *([twin] if twin != folder.absolute() else [])]
    return any(p.is_dir() and not _of_another_tool(p) for p in places) or _text_kind(folder) == "yolo"


def _of_another_tool(labels: Path) -> bool:
    """Whether a folder of labels holds json or xml files and no text. An empty one is YOLO's, of images without objects."""
    found = False
    for file in all_files(labels, recursive=True):
        ending = file.suffix.lower()
        if ending == ".txt" and file.name not in NOT_LABELS:
            return False
        found |= ending in (".json", ".xml")
    return found


def _label_folders(folder: Path) -> list[Path]:
    """Folders beside the images where tools and people put a label file for each image."""
    names = ("Annotations", "annotations", "labels", "label", "xml", "xmls")
    return [place for name in names if (place := folder / name).is_dir()]


_SMALL = 1 << 23


def _json_kind(path: Path) -> str | None:
    """The tool or kind of a json file: many tools write that ending. Only COCO's files are large, and begin with its keys."""
    try:
        if path.stat().st_size > _SMALL:
            with path.open("rb") as file:
                head = file.read(1 << 16).lstrip()
            return None if head.startswith(b"[") else "COCO"
        return tool_of_json(load_json(path))
    except (UserError, OSError):
        return None


def _xml_kind(path: Path) -> str | None:
    try:
        return tool_of_xml(parse_xml(path))
    except (UserError, OSError):
        return None


def _first_lines(path: Path, count: int) -> list[str]:
    """The first lines that are not empty, without blanks around; none of what is no text."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
        lines = decoded(head[: head.rfind(b"\n") + 1] or head, path).splitlines()
    except (UserError, OSError):
        return []
    return [line.strip() for line in lines if line.strip()][:count]


def _text_kind(folder: Path) -> str | None:
    """What the text files of a folder hold, told by the first few that hold something; folders may be empty for long."""
    files = [path for path in files_of(folder, ".txt") if path.name not in NOT_LABELS]
    filled = (path for path in files if path.stat().st_size > 0)
    for path in islice(filled, 20):
        line = next(iter(_first_lines(path, 1)), "")
        fields = line.split()
        if line.lower().startswith(("imagesource", "gsd")) or (len(fields) in (9, 10) and not _is_number(fields[8])):
            return "dota"
        parts = line.rstrip(",").split(",")
        if len(parts) >= 6 and all(map(_is_number, parts)):
            return "visdrone-vid" if len(parts) == 10 else "visdrone"
        if len(fields) in (15, 16) and not _is_number(fields[0]) and all(map(_is_number, fields[1:])):
            return "kitti"
        if len(fields) >= 5 and all(_is_number(field) for field in fields):
            return "yolo"
    return None


def _is_number(text: str) -> bool:
    return math.isfinite(as_number(text))
