"""WIDER FACE's validation protocol: its files, and its AP over a thousand score thresholds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.matlab import load_mat
from flyspeck.errors import UserError
from flyspeck.evaluate.curves import area_under
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import Matcher, Truths, overlapping_pairs
from flyspeck.evaluate.protocols import WiderProtocol

SETTINGS = ("easy", "medium", "hard")


def wider_rows(annotations: Annotations, detections: DetectionTable, protocol: WiderProtocol) -> list[dict[str, Any]]:
    """AP in each setting.

    The settings' faces are the columns `kept_easy`, `kept_medium`, `kept_hard` of `annotations.extra`; a table without
    them has the one setting `all`, the faces that are not ignored. Rows of an image are taken in file order, unsorted.
    """
    order = np.argsort(detections.image_index, kind="stable")
    boxes, image = detections.boxes[order], detections.image_index[order]
    scores = _sunk_scores(_normalised(detections.scores[order]), image)
    none = np.zeros(annotations.num_boxes, bool)
    pairs = overlapping_pairs(boxes, image, annotations.boxes, annotations.image_index, pixel=protocol.rule.pixel)
    known = Matcher(pairs, Truths(annotations.area, none, none), np.ones(len(boxes)), protocol.rule)
    kept = {name: annotations.extra[f"kept_{name}"] for name in SETTINGS if f"kept_{name}" in annotations.extra}
    rows = []
    for setting, faces in (kept or {"all": ~annotations.ignore}).items():
        (matching,) = known.at(~np.asarray(faces, bool), (protocol.iou,))
        hit = (matching.truth >= 0) & ~matching.ignored
        row: dict[str, Any] = {"protocol": protocol.name, "metric": "AP", "setting": setting, "iou": protocol.iou}
        value = _average_precision(scores, hit, ~matching.ignored, int(faces.sum()), protocol.thresholds)
        rows.append(row | {"value": value, "count_face": int(faces.sum())})
    return rows


def _normalised(scores: np.ndarray) -> np.ndarray:
    """Min-max over the submission; the reference starts its maximum at 0 and its minimum at 1."""
    low, high = min(1.0, scores.min(initial=1.0)), max(0.0, scores.max(initial=0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (scores - low) / (high - low)


def _sunk_scores(scores: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The largest score from a row to the end of its image.

    The reference counts an image's rows up to the last one that reaches the threshold; that is the rows whose score in
    this sense does. Of an image sorted by score it is the score itself.
    """
    reversed_image, reversed_scores = image[::-1], scores[::-1]
    # Lifting each image by more than the range of scores keeps the running maximum within the image.
    lift = -reversed_image.astype(np.float64) * 4
    return scores if _is_sorted(scores, image) else (np.maximum.accumulate(reversed_scores + lift) - lift)[::-1]


def _is_sorted(scores: np.ndarray, image: np.ndarray) -> bool:
    return not bool(((np.diff(scores) > 0) & (np.diff(image) == 0)).any())


def _average_precision(scores: np.ndarray, hit: np.ndarray, counted: np.ndarray, faces: int, thresholds: int) -> float:
    """Area AP over the curve at the thresholds 1 - (k + 1) / 1000; NaN where a first threshold has no proposal."""
    if not faces:
        return -1.0
    points = 1 - (np.arange(thresholds) + 1) / thresholds
    proposals, recalled = _reaching(scores[counted], points), _reaching(scores[hit], points)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area_under(recalled / faces, recalled / proposals)


def _reaching(scores: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(P,) how many scores are at least each point; NaN (from a submission of one score only) reaches none."""
    scores = scores[~np.isnan(scores)]
    return len(scores) - np.searchsorted(np.sort(scores), points, side="left")


def read_wider(gt: Path, dt: Path) -> tuple[Annotations, DetectionTable]:
    """The folder of `wider_{face,easy,medium,hard}_val.mat`, and the submission (a folder or a zip of event/image.txt)."""
    annotations = read_wider_truth(gt)
    return annotations, read_wider_submission(dt, annotations)


def read_wider_truth(folder: Path) -> Annotations:
    """Faces of the validation set; `extra` has `kept_easy`, `kept_medium`, `kept_hard`."""
    content = load_mat(folder / "wider_face_val.mat")
    kept = {name: load_mat(folder / f"wider_{name}_val.mat") for name in SETTINGS}
    try:
        return _faces(content, kept, folder)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"not the WIDER FACE ground truth ({type(error).__name__}: {error})",
            where=folder,
            fix="give the folder of the official eval_tools' .mat files",
        ) from None


def _faces(content: dict[str, Any], kept: dict[str, dict[str, Any]], folder: Path) -> Annotations:
    names, boxes, counts = [], [], []
    flags: dict[str, list[np.ndarray]] = {name: [] for name in SETTINGS}
    for event_row, event in enumerate(content["event_list"][:, 0]):
        files, faces = content["file_list"][event_row, 0], content["face_bbx_list"][event_row, 0]
        for row in range(len(files)):
            names.append(f"{event[0]}/{files[row, 0][0]}")
            mine = np.asarray(faces[row, 0], np.float64).reshape(-1, 4)
            boxes.append(mine)
            counts.append(len(mine))
            for name in SETTINGS:
                flag = np.zeros(len(mine), bool)
                flag[np.asarray(kept[name]["gt_list"][event_row, 0][row, 0], np.int64).reshape(-1) - 1] = True
                flags[name].append(flag)
    xywh = np.concatenate(boxes)
    image_ids = np.empty(len(names), object)
    image_ids[:] = names
    none = np.zeros(len(xywh), bool)
    return Annotations(
        image_ids=image_ids,
        file_names=tuple(f"{name}.jpg" for name in names),
        sizes=np.full((len(names), 2), -1),
        image_index=np.repeat(np.arange(len(names)), counts),
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        labels=np.zeros(len(xywh), np.int64),
        area=xywh[:, 2] * xywh[:, 3],
        ignore=none,
        crowd=none,
        box_ids=np.arange(1, len(xywh) + 1),
        classes=("face",),
        category_ids=(1,),
        extra={"xywh": xywh, **{f"kept_{name}": np.concatenate(flags[name]) for name in SETTINGS}},
        source=f"widerface: {folder.name}",
    )


def read_wider_submission(source: Path, annotations: Annotations) -> DetectionTable:
    """Rows `x y w h score` of every image's `event/image.txt`, in file order."""
    row_of = {name: row for row, name in enumerate(annotations.image_ids)}
    numbers: dict[int, np.ndarray] = {}
    for where, text in _texts(source):
        lines = text.splitlines()
        row = _image_row(where, lines, row_of)
        if row is not None:
            numbers[row] = _submission_rows(where, lines[2:])
    missing = [name for name, row in row_of.items() if row not in numbers]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(row_of)} images have no file, the first is {missing[0]}.txt",
            where=source,
            fix="write a file for every image, with a count of 0 where nothing was found",
        )
    rows = np.repeat(sorted(numbers), [len(numbers[row]) for row in sorted(numbers)])
    values = np.concatenate([numbers[row] for row in sorted(numbers)])
    notes = []
    if len(values) and values[:, 4].min() == values[:, 4].max():
        notes.append(
            "all scores are equal: the reference divides 0 by 0 when it normalises them, and nothing is recalled"
        )
    if not _is_sorted(values[:, 4], rows):
        bad = np.unique(rows[1:][(np.diff(values[:, 4]) > 0) & (np.diff(rows) == 0)])
        notes.append(
            f"the rows of {len(bad)} images are not sorted by falling score (the first is "
            f"{annotations.image_ids[bad[0]]}); the reference never sorts them and its AP is silently too low: sort them"
        )
    return DetectionTable.from_columns(
        image_index=rows, xywh=values[:, :4], scores=values[:, 4], labels=np.zeros(len(rows)), notes=notes
    )


_LONGEST = 100_000_000
"""Bytes of one image's file within a zip: a few kilobytes may stand for any number."""


def _texts(source: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of every .txt file of a folder or zip."""
    try:
        if source.is_dir():
            for path in sorted(source.rglob("*.txt")):
                yield path.relative_to(source).as_posix(), path.read_text(encoding="utf-8")
            return
        with zipfile.ZipFile(source) as archive:
            for entry in sorted(archive.infolist(), key=lambda one: one.filename):
                if entry.filename.endswith(".txt"):
                    if entry.file_size > _LONGEST:
                        raise zipfile.BadZipFile(f"{entry.filename} would be {entry.file_size / 1e6:,.0f} MB")
                    yield entry.filename, archive.read(entry).decode("utf-8")
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise UserError(f"not a zip of text files ({error})", where=source, fix="give a folder or a zip") from None


def _image_row(where: str, lines: list[str], row_of: dict[str, int]) -> int | None:
    """The image that a file is about: its event folder, and the name in its first line.

    The reference strips all trailing characters of the set `.jpg` from that name, whatever they are.
    """
    parts = where.split("/")
    if len(parts) < 2 or not lines:
        return None
    name = lines[0].strip().split("/")[-1]
    for stem in (name.rstrip(".jpg"), name.removesuffix(".jpg"), parts[-1].removesuffix(".txt")):
        if f"{parts[-2]}/{stem}" in row_of:
            return row_of[f"{parts[-2]}/{stem}"]
    return None


def _submission_rows(where: str, lines: list[str]) -> np.ndarray:
    """(N, 5) numbers of the lines."""
    rows = [line.split() for line in lines if line.strip()]
    try:
        values = np.array([[float(part) for part in row[:5]] for row in rows], np.float64).reshape(-1, 5)
        sound = bool(np.isfinite(values).all())
    except ValueError:
        sound, values = False, np.zeros((0, 5))
    if not sound:
        raise UserError("a row is not five finite numbers", where=where, fix="rows are: x y w h score")
    return values
