"""Detections of a whole data set as columns, tied to the annotation table they are scored against."""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.convert import class_names
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, brief
from flyspeck.evaluate.coco_results import read_columns
from flyspeck.files import write_json
from flyspeck.types import Detections


@dataclass(frozen=True)
class DetectionTable:
    """`N` detections in file order (file order breaks ties between equal scores, in every protocol).

    Both forms of the box are kept because protocols compute on the form that their files hold, and the last digit of a
    width decides whether an overlap reaches its threshold.
    """

    image_index: np.ndarray
    """(N,) int64 row of the annotation table's `image_ids`."""
    xywh: np.ndarray
    """(N, 4) float64 `[x, y, w, h]` in pixels of the original image."""
    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels of the original image."""
    scores: np.ndarray
    """(N,) float64."""
    labels: np.ndarray
    """(N,) int64 in 0..K-1."""
    notes: tuple[str, ...] = ()
    """What was odd about the input, one line each; the command line prints them as warnings."""

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def from_columns(
        *,
        image_index: Any,
        scores: Any,
        labels: Any,
        xywh: Any = None,
        boxes: Any = None,
        notes: Sequence[str] = (),
    ) -> DetectionTable:
        """A table from its columns; one of `xywh` and `boxes` (xyxy) may be left out and is derived from the other."""
        if xywh is None and boxes is None:
            raise ValueError("DetectionTable needs xywh or boxes")
        if xywh is None:
            boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
            xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        xywh = np.asarray(xywh, np.float64).reshape(-1, 4)
        if boxes is None:
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        table = DetectionTable(
            np.asarray(image_index, np.int64).reshape(-1),
            xywh,
            np.asarray(boxes, np.float64).reshape(-1, 4),
            np.asarray(scores, np.float64).reshape(-1),
            np.asarray(labels, np.int64).reshape(-1),
            tuple(notes),
        )
        lengths = {len(table.image_index), len(table.xywh), len(table.boxes), len(table.scores), len(table.labels)}
        if len(lengths) > 1:
            raise ValueError(f"columns of a DetectionTable differ in length: {sorted(lengths)}")
        return table

    @staticmethod
    def from_list(detections: Iterable[Detections], annotations: Annotations) -> DetectionTable:
        """From one `Detections` an image, as a detector or a predictor returns them.

        An `image_id` is one of the ground truth's, or the path of one of its images; the name alone will do, where one image has
        it and no other file is meant. A `Detections` without one belongs to the image at its own position. Classes are those of
        the same name; boxes of a class that the ground truth does not have are left out, with a note. Without names, labels are
        0..K-1 already.
        Images without an entry simply have no detections.

        Raises UserError for an image that is not there or has two entries, and where no class is one of the ground truth's.
        """
        detections = list(detections)
        if not detections:
            return DetectionTable.empty()
        rows, labels = _rows_of(detections, annotations), []
        unknown: Counter[str] = Counter()
        for found in detections:
            known = _label_of(found.classes, annotations.classes)
            labels.append(found.labels if known is None else known[np.minimum(found.labels, len(known) - 1)])
            unknown.update(np.array(class_names(found), object)[labels[-1] < 0].tolist())
        notes = []
        if unknown:
            most = ", ".join(name for name, _ in unknown.most_common(5))
            notes.append(
                f"{unknown.total()} detections are of classes that the ground truth does not have ({most}); they count for"
                " nothing"
            )
        table = DetectionTable.from_columns(
            image_index=np.repeat(rows, [len(found) for found in detections]),
            boxes=np.concatenate([found.boxes for found in detections]),
            scores=np.concatenate([found.scores for found in detections]),
            labels=np.concatenate(labels),
            notes=notes,
        )
        return table.select(table.labels >= 0) if unknown else table

    @staticmethod
    def from_coco(
        source: Path | str | Sequence[dict[str, Any]], annotations: Annotations, *, any_score: bool = False
    ) -> DetectionTable:
        """From a COCO results file, or the list in it: see `flyspeck.evaluate.coco_results.read_columns`, also for errors.

        `any_score` allows scores outside [0, 1], of which only the order counts.
        """
        columns = read_columns(source, annotations, any_score=any_score)
        return DetectionTable.from_columns(**columns._asdict())

    @staticmethod
    def empty() -> DetectionTable:
        """No detections at all."""
        return DetectionTable.from_columns(image_index=[], scores=[], labels=[], xywh=np.zeros((0, 4)))

    def select(self, rows: Any) -> DetectionTable:
        """The rows that a mask or an index array selects, in that order."""
        return replace(
            self,
            image_index=self.image_index[rows],
            xywh=self.xywh[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
        )

    def to_coco(self, annotations: Annotations) -> list[dict[str, Any]]:
        """COCO results, one dict a detection, with the source's own image and category ids."""
        image_ids = [_plain(image_id) for image_id in annotations.image_ids]
        categories = annotations.category_ids
        columns = zip(
            self.image_index.tolist(), self.labels.tolist(), self.xywh.tolist(), self.scores.tolist(), strict=True
        )
        return [
            {"image_id": image_ids[image], "category_id": categories[label], "bbox": box, "score": score}
            for image, label, box, score in columns
        ]

    def write_coco(self, path: Path, annotations: Annotations) -> None:
        """Write the COCO results file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_coco(annotations), indent=None)


def _label_of(classes: Sequence[str], wanted: Sequence[str]) -> np.ndarray | None:
    """(K + 1,) the label that each of the `classes` has among the `wanted`, -1 for none and for what has no name.

    None where they are the same, or not named. Raises UserError where not one is wanted.
    """
    if not classes or tuple(classes) == tuple(wanted):
        return None
    place = {name: label for label, name in enumerate(wanted)}
    if place.keys().isdisjoint(classes):
        raise UserError(
            f"no class of the detections ({brief(', '.join(classes))}) is one of the ground truth's ({brief(', '.join(wanted))})",
            fix="rename those of one side; without names (classes=()), the labels of both are taken to be the same",
        )
    return np.array([place.get(name, -1) for name in classes] + [-1], np.int64)


def _rows_of(detections: Sequence[Detections], annotations: Annotations) -> list[int]:
    """The row of the ground truth's image that each entry belongs to; see `DetectionTable.from_list`."""
    row_of = {_plain(image_id): row for row, image_id in enumerate(annotations.image_ids)}
    by_path: dict[Path, int] | None = None
    rows: list[int] = []
    for position, found in enumerate(detections):
        row = position if found.image_id is None else row_of.get(_plain(found.image_id), -1)
        if row < 0 and isinstance(found.image_id, str):
            by_path = _rows_by_path(annotations) if by_path is None else by_path
            row = _row_of_path(Path(found.image_id), by_path, annotations)
        if not 0 <= row < len(annotations):
            raise UserError(
                f"detections for image {found.image_id!r}, which the ground truth does not have",
                fix="pass the annotation table of the images that were predicted",
            )
        rows.append(row)
    ((row, entries),) = Counter(rows).most_common(1)
    if entries > 1:
        raise UserError(
            f"{entries} entries for image {annotations.image_ids[row]}",
            fix="give one for each image, all in one call",
        )
    return rows


def _row_of_path(path: Path, by_path: dict[Path, int], annotations: Annotations) -> int:
    """The row of the image in a file, -1 for none: that of its path, or of its name alone, unless both are there and differ."""
    row = by_path.get(Path(os.path.abspath(path)))
    if row is not None:
        return row
    row = by_path.get(Path(path.name), -1)
    if row < 0:
        return -1
    own = annotations.path(row)
    another = path.is_file() and own.is_file() and not filecmp.cmp(path, own, shallow=False)
    return -1 if another else row  # 0001.png of another folder may be another image


def _rows_by_path(annotations: Annotations) -> dict[Path, int]:
    """Rows by the images' absolute paths, and by their names alone, where one image has it."""
    paths = [annotations.path(row) for row in range(len(annotations))]
    names = Counter(path.name for path in paths)
    alone = {Path(path.name): row for row, path in enumerate(paths) if names[path.name] == 1}
    return {**alone, **{Path(os.path.abspath(path)): row for row, path in enumerate(paths)}}


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python value that JSON and dict keys want."""
    return value.item() if isinstance(value, np.generic) else value
