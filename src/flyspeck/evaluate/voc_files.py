"""VOC's and DOTA's own files, read as their evaluators read them: coordinates as they stand, no clipping, no shift."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import VOCProtocol

_VOC_RESULT = re.compile(r"(?:comp\d+_det_[^_]+_)?(.+)")
_DOTA_RESULT = re.compile(r"Task2_(.+)")


def read_voc_pair(gt: Path, dt: Path) -> tuple[Annotations, DetectionTable]:
    """`Annotations/*.xml` and `comp4_det_<set>_<class>.txt` (image, score, x1, y1, x2, y2)."""
    files = sorted(gt.glob("*.xml"))
    if not files:
        raise UserError("no .xml files", where=gt, fix="give the folder of VOC annotations")
    entries = [(row, *entry) for row, path in enumerate(files) for entry in _xml_objects(path)]
    results = _result_files(dt, _VOC_RESULT)
    classes = tuple(dict.fromkeys([*sorted({entry[1] for entry in entries}), *sorted(results)]))
    annotations = _table([path.stem for path in files], classes, entries, f"voc: {gt.name}")
    return annotations, _read_results(results, annotations, classes, ())


def _xml_objects(path: Path) -> Iterator[tuple[str, list[float], bool]]:
    """(class, xyxy, difficult) of every object of a VOC xml."""
    try:
        root = ElementTree.parse(path).getroot()
        for entry in root.iter("object"):
            box = entry.find("bndbox")
            assert box is not None
            corners = [float(box.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax")]
            yield entry.findtext("name") or "", corners, (entry.findtext("difficult") or "0").strip() == "1"
    except (ElementTree.ParseError, AssertionError, ValueError) as error:
        raise UserError(f"not a VOC annotation ({error})", where=path, fix="repair or remove the file") from None


def read_dota_pair(gt: Path, dt: Path, protocol: VOCProtocol) -> tuple[Annotations, DetectionTable]:
    """`labelTxt/*.txt` and `Task2_<class>.txt`.

    As the devkit does, only corners 1 and 3 of a ground truth are read and their decimals cut off; rotated boxes are noted.
    """
    files = sorted(gt.glob("*.txt"))
    if not files:
        raise UserError("no .txt files", where=gt, fix="give DOTA's labelTxt folder")
    entries, rotated, headers = [], 0, 0
    for row, path in enumerate(files):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parts = line.split()
            if len(parts) < 9:
                headers += bool(parts)
                continue
            corners = _numbers(parts[:8], path, number)
            rotated += not _upright(corners)
            box = [float(int(corners[k])) for k in (0, 1, 4, 5)]
            entries.append((row, parts[8], box, len(parts) == 10 and parts[9] == "1"))
    notes = []
    if rotated:
        notes.append(
            f"{rotated} of {len(entries)} ground truths are rotated; the devkit reads their corners 1 and 3 only, "
            "so convert the labels to upright boxes first"
        )
    if headers:
        notes.append(f"skipped {counted(headers, 'header line')} in the labels (the devkit fails on them)")
    results = _result_files(dt, _DOTA_RESULT)
    classes = tuple(
        dict.fromkeys([*(protocol.classes or ()), *sorted(entry[1] for entry in entries), *sorted(results)])
    )
    annotations = _table([path.stem for path in files], classes, entries, f"dota: {gt.name}")
    missing = [name for name in protocol.classes or () if name not in results]
    if missing:
        notes.append(f"no Task2 file for {', '.join(missing)}: counted as no detections (the devkit fails)")
    return annotations, _read_results(results, annotations, classes, tuple(notes))


def _upright(corners: list[float]) -> bool:
    """Whether four corners in order are an upright box from its top-left corner on."""
    x, y = corners[0::2], corners[1::2]
    return x[0] == x[3] and x[1] == x[2] and y[0] == y[1] and y[2] == y[3] and x[0] <= x[1] and y[0] <= y[2]


def _table(names: list[str], classes: tuple[str, ...], entries: list[tuple[Any, ...]], source: str) -> Annotations:
    """The annotation table of (row, class, xyxy, difficult) entries; difficult ones are ignored."""
    boxes = np.array([entry[2] for entry in entries], np.float64).reshape(-1, 4)
    difficult = np.array([entry[3] for entry in entries], bool)
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[entry[1]] for entry in entries], np.int64)
    image_ids = np.empty(len(names), object)
    image_ids[:] = names
    return Annotations(
        image_ids=image_ids,
        file_names=tuple(f"{name}.jpg" for name in names),
        sizes=np.full((len(names), 2), -1),
        image_index=np.array([entry[0] for entry in entries], np.int64),
        boxes=boxes,
        labels=np.where(difficult, -1, labels),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        ignore=difficult,
        crowd=np.zeros(len(boxes), bool),
        box_ids=np.arange(1, len(boxes) + 1),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        extra={"category": labels, "difficult": difficult},
        source=source,
    )


def _result_files(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Result files by class."""
    if not folder.is_dir():
        raise UserError("not a folder", where=folder, fix="give the folder with one result file per class")
    found = {}
    for path in sorted(folder.glob("*.txt")):
        match = pattern.fullmatch(path.stem)
        if match:
            found[match.group(1)] = path
    if not found:
        raise UserError(
            "no result files", where=folder, fix="name them comp4_det_test_<class>.txt or Task2_<class>.txt"
        )
    return found


def _read_results(
    files: dict[str, Path], annotations: Annotations, classes: tuple[str, ...], notes: tuple[str, ...]
) -> DetectionTable:
    """Lines `image score x1 y1 x2 y2` of every class file."""
    row_of = {name: row for row, name in enumerate(annotations.image_ids)}
    rows, labels, numbers = [], [], []
    for name, path in files.items():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parts = line.split()
            if not parts:
                continue
            if len(parts) != 6:
                raise UserError(
                    f"{len(parts)} fields", where=f"{path}, line {number}", fix="a line is: image score x1 y1 x2 y2"
                )
            if parts[0] not in row_of:
                raise UserError(
                    f"image '{parts[0]}' has no ground truth",
                    where=f"{path}, line {number}",
                    fix="score the images of the ground truth only",
                )
            rows.append(row_of[parts[0]])
            labels.append(classes.index(name))
            numbers.append(_numbers(parts[1:], path, number))
    values = np.array(numbers, np.float64).reshape(-1, 5)
    turned = int((values[:, 3:] < values[:, 1:3]).any(1).sum())
    if turned:
        notes += (
            f"{turned} detections have a right or lower corner before the left or upper one and match nothing: "
            "a line is: image score x1 y1 x2 y2",
        )
    return DetectionTable.from_columns(
        image_index=rows, boxes=values[:, 1:], scores=values[:, 0], labels=labels, notes=notes
    )


def _numbers(parts: list[str], path: Path, line: int) -> list[float]:
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = [float("nan")]
    if not np.isfinite(values).all():
        raise UserError(
            f"'{' '.join(parts)}' are not all finite numbers", where=f"{path}, line {line}", fix="repair it"
        )
    return values
