"""Which of flyspeck's own formats a file or folder is in, told by its content."""

from __future__ import annotations

from pathlib import Path

from flyspeck.data.images import EXTENSIONS
from flyspeck.data.readers.wider import mat_names
from flyspeck.data.readers.yolo import label_file
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
    if path.suffix.lower() == ".mat":
        return ("wider" if {"event_list", "gt_list"} & mat_names(path) else "citypersons"), path
    by_ending = {".json": "coco", ".xml": "voc", ".csv": "csv", ".yaml": "yolo", ".yml": "yolo", ".odgt": "odgt"}
    if path.suffix.lower() in by_ending:
        return by_ending[path.suffix.lower()], path
    if path.suffix.lower() == ".txt" and _first_line(path).lower().endswith(tuple(EXTENSIONS)):
        return "wider", path
    return None


def json_files(folder: Path) -> list[Path]:
    """The json files of a folder and of its `annotations`, by name."""
    return sorted(folder.glob("*.json")) + sorted((folder / "annotations").glob("*.json"))


def _of_folder(folder: Path) -> tuple[str, Path] | None:
    for name in ("data.yaml", "dataset.yaml"):
        if (folder / name).is_file():
            return "yolo", folder / name
    texts = [p for p in (folder, folder / "annotations") if p.is_dir() and _text_kind(p) == "visdrone"]
    if texts:
        return "visdrone", folder
    if any(p.is_dir() and _text_kind(p) == "dota" for p in (folder, *folder.glob("labelTxt*"))):
        return "dota", folder
    if any(any(p.glob("*.xml")) for p in (folder, folder / "Annotations") if p.is_dir()):
        return "voc", folder
    if any(folder.rglob("*_gtBboxCityPersons.json")):
        return "citypersons", folder
    for kind, files in (
        ("coco", json_files(folder)),
        ("csv", sorted(folder.glob("*.csv"))),
        ("wider", sorted(folder.glob("**/wider_face_*_bbx_gt.txt"))),
        ("wider", sorted(folder.glob("wider_face_val.mat"))),
        ("citypersons", sorted(folder.glob("anno_*.mat"))),
        ("odgt", sorted(folder.glob("*.odgt")) + sorted((folder / "annotations").glob("*.odgt"))),
    ):
        if len(files) > 1:
            listed = ", ".join(file.relative_to(folder).as_posix() for file in files[:8])
            raise UserError(f"{len(files)} files of annotations ({listed})", where=folder, fix="give one of them")
        if files:
            return kind, files[0]
    twin = label_file(folder.absolute() / "any.txt").parent
    if (folder / "labels").is_dir() or _text_kind(folder) == "yolo" or (twin != folder.absolute() and twin.is_dir()):
        return "yolo", folder
    return None


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next((line.strip() for line in file if line.strip()), "")
    except UnicodeDecodeError:
        return ""


def _text_kind(folder: Path) -> str | None:
    """What the text files of a folder hold, told by the first few that are not empty."""
    for path in sorted(folder.glob("*.txt"))[:20]:
        line = _first_line(path)
        fields = line.split()
        if line.lower().startswith(("imagesource", "gsd")) or (len(fields) in (9, 10) and not _is_number(fields[8])):
            return "dota"
        if line.count(",") >= 5 and all(_is_number(field) for field in line.rstrip(",").split(",")):
            return "visdrone"
        if len(fields) >= 5 and all(_is_number(field) for field in fields):
            return "yolo"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
