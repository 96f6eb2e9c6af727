"""Reading COCO results files, with a plain answer to everything that is commonly wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.values import as_id, as_number
from flyspeck.errors import UserError, brief
from flyspeck.evaluate.collector import paused_collector

_FIELDS = ("image_id", "category_id", "bbox", "score")


class ResultColumns(NamedTuple):
    """The detections of a COCO results file as columns; those of categories that the ground truth does not have are left out."""

    image_index: np.ndarray
    """(N,) int64 row of the annotation table's `image_ids`."""
    labels: np.ndarray
    """(N,) int64 in 0..K-1."""
    xywh: np.ndarray
    """(N, 4) float64 pixels."""
    scores: np.ndarray
    """(N,) float64."""
    notes: tuple[str, ...]
    """What was odd, one line each."""


def read_columns(
    source: Path | str | Sequence[dict[str, Any]], annotations: Annotations, *, any_score: bool = False
) -> ResultColumns:
    """The columns of a COCO results file (or of the list in it), in file order; `DetectionTable.from_coco` is a table of them.

    Raises UserError for an image id that the ground truth does not have, ids of the wrong type, boxes that are not four
    finite numbers, scores that are not finite, and scores outside [0, 1] unless `any_score`. Categories that the
    ground truth does not have are left out with a note, as pycocotools does silently.
    """
    where = source if isinstance(source, Path | str) else "detections"
    entries = load_results(Path(source)) if isinstance(source, Path | str) else list(source)
    if not entries:
        nothing = np.zeros(0, np.int64)
        return ResultColumns(nothing, nothing, np.zeros((0, 4)), np.zeros(0), ())
    image_ids, categories, xywh, values = checked_columns(entries, where, any_score=any_score)
    image_index = _image_rows(image_ids, annotations, where)
    labels, notes = _labels(categories, annotations)
    known = labels >= 0
    return ResultColumns(image_index[known], labels[known], xywh[known], values[known], tuple(notes))


def load_results(path: Path) -> list[Any]:
    """The list in a COCO results file (or under `annotations` of an object)."""
    try:
        with paused_collector():
            content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid json: {error.msg}", where=f"{path}, line {error.lineno}", fix="is the file cut off?"
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise UserError("not a text file", where=path, fix="give a COCO results json") from None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
        if content and isinstance(content[0], dict) and "score" not in content[0]:
            raise UserError(
                "this is a ground-truth file: its annotations have no score", where=path, fix="swap --gt and --dt?"
            )
    if not isinstance(content, list):
        raise UserError(
            f"COCO results are a list of detections, this is {type(content).__name__}",
            where=path,
            fix='write [{"image_id": …, "category_id": …, "bbox": [x, y, w, h], "score": …}, …]',
        )
    return content


def checked_columns(
    entries: list[Any], where: object, *, any_score: bool = False
) -> tuple[list[Any], list[Any], np.ndarray, np.ndarray]:
    """Image ids and category ids as they stand, boxes (N, 4) xywh and scores (N,) in float64; UserError for unsound ones."""
    image_ids, categories, boxes, scores = _columns(entries, where)
    return image_ids, categories, _boxes(boxes, where), _scores(scores, where, any_score)


def _columns(entries: list[Any], where: object) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    try:
        return (
            [entry["image_id"] for entry in entries],
            [entry["category_id"] for entry in entries],
            [entry["bbox"] for entry in entries],
            [entry["score"] for entry in entries],
        )
    except (KeyError, TypeError):
        for number, entry in enumerate(entries):
            missing = [name for name in _FIELDS if not isinstance(entry, dict) or name not in entry]
            if missing:
                raise UserError(
                    f"detection {number} has no {' and no '.join(missing)}",
                    where=where,
                    fix=f"every detection needs {', '.join(_FIELDS)}",
                ) from None
        raise


def _boxes(boxes: list[Any], where: object) -> np.ndarray:
    try:
        xywh = np.array(boxes, dtype=np.float64) if boxes else np.zeros((0, 4))
        sound = xywh.shape == (len(boxes), 4) and bool(np.isfinite(xywh).all())
    except (TypeError, ValueError, OverflowError):
        xywh, sound = np.zeros((0, 4)), False
    if not sound:
        for number, box in enumerate(boxes):
            try:
                values = np.array(box, dtype=np.float64)
                good = values.shape == (4,) and bool(np.isfinite(values).all())
            except (TypeError, ValueError, OverflowError):
                good = False
            if not good:
                raise UserError(
                    f"detection {number} has the bbox {brief(box)}",
                    where=where,
                    fix="give four finite numbers [x, y, w, h]",
                )
    negative = np.flatnonzero((xywh[:, 2:] < 0).any(1))
    if len(negative):
        raise UserError(
            f"{len(negative)} boxes have a negative width or height, the first is detection {negative[0]}: "
            f"{xywh[negative[0]].tolist()}",
            where=where,
            fix="COCO boxes are [x, y, width, height]; are these corners in another order?",
        )
    return xywh


def _scores(scores: list[Any], where: object, any_score: bool) -> np.ndarray:
    try:
        values = np.array(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.array([as_number(score) for score in scores], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(
            f"{len(bad)} scores are not finite numbers, the first is detection {bad[0]}: {brief(scores[bad[0]])}",
            where=where,
            fix="drop these detections or repair the model that gave them",
        )
    outside = np.flatnonzero((values < 0) | (values > 1))
    if len(outside) and not any_score:
        raise UserError(
            f"{len(outside)} scores are outside [0, 1], the first is detection {outside[0]}: {values[outside[0]]:g}",
            where=where,
            fix="divide percents by 100, put logits through a sigmoid, or allow them with --any-score (only the order counts)",
        )
    return values


def _image_rows(image_ids: list[Any], annotations: Annotations, where: object) -> np.ndarray:
    row_of = {
        as_id(value.item() if isinstance(value, np.generic) else value): row
        for row, value in enumerate(annotations.image_ids)
    }
    rows = [row_of.get(key if type(key) is int else as_id(key), -1) for key in image_ids]
    unknown = [number for number, row in enumerate(rows) if row < 0]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(rows)} detections are on images that the ground truth does not have, "
            f"the first is detection {unknown[0]} with image_id {brief(image_ids[unknown[0]])}",
            where=where,
            fix="give the ground truth of these images, or leave the detections out",
        )
    return np.array(rows, np.int64)


def _labels(categories: list[Any], annotations: Annotations) -> tuple[np.ndarray, list[str]]:
    label_of = {as_id(category): label for label, category in enumerate(annotations.category_ids)}
    labels = [label_of.get(key if type(key) is int else as_id(key), -1) for key in categories]
    unknown = [category for category, label in zip(categories, labels, strict=True) if label < 0]
    notes = []
    if unknown:
        shown = (
            ", ".join(repr(value) for value in sorted(set(map(brief, unknown)))[:5]).replace('"', "").replace("'", "")
        )
        text = " (category ids are numbers)" if isinstance(as_id(unknown[0]), str) else ""
        notes.append(
            f"{len(unknown)} of {len(categories)} detections have a category that the ground truth does not have "
            f"({shown}){text}; they count for nothing"
        )
    return np.array(labels, np.int64), notes
