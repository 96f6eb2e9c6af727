"""Chances to a ranked list: each annotation once, under its likeliest error, and each object that nobody annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.files import cell
from flyspeck.label_errors.ranking import KINDS, Chances, Kind

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Suspect:
    """One place of the set that is likely annotated wrongly."""

    kind: Kind
    """`missing`: an object without annotation; `superfluous`: an annotation without object; `class`: of another class;
    `placement`: a box that lies badly."""
    chance: float
    """The estimated chance that it is an error of this kind, in [0, 1], comparable between the kinds."""
    image: int
    """Row of the image in the table."""
    row: int | None
    """Row of the annotation in the table; None where it is missing."""
    file_name: str
    image_id: int | str
    box_id: int | str | None
    """The annotation's id in its source; None where the annotation is missing."""
    annotated_class: str | None
    suggested_class: str | None
    """The detector's; None where it sees nothing."""
    box: Box | None
    """The annotation's box, xyxy pixels of the image's file."""
    suggested_box: Box | None
    """The detector's."""
    score: float | None
    """The detector's best score there."""
    size: float
    """Square root of the area, px: of the annotation, else of the detection."""
    apart: float | None
    """How far annotation and detection are from each other (`evidence.apart`)."""


COLUMNS = (
    "kind",
    "chance",
    "file_name",
    "image_id",
    "box_id",
    "annotated_class",
    "suggested_class",
    "x1",
    "y1",
    "x2",
    "y2",
    "suggested_x1",
    "suggested_y1",
    "suggested_x2",
    "suggested_y2",
    "score",
    "size",
    "apart",
)
"""Of the csv file."""


def rank(annotations: Annotations, found: Chances, *, least: float = 0.0) -> list[Suspect]:
    """The suspects of at least the chance `least`, the likeliest first; equal ones in the order of the set."""
    kinds = np.stack([found.superfluous, found.another, found.placement], 1)
    best = kinds.argmax(1)
    suspects = [
        _annotated(annotations, found, row, KINDS[1 + int(best[row])], float(kinds[row, best[row]]))
        for row in np.flatnonzero(kinds.max(1, initial=0) >= max(least, 1e-9)).tolist()
    ]
    suspects += [
        _missing(annotations, found, sight) for sight in np.flatnonzero(found.missing >= max(least, 1e-9)).tolist()
    ]
    return sorted(
        suspects, key=lambda one: (-one.chance, KINDS.index(one.kind), one.image, one.box or one.suggested_box)
    )


def _annotated(annotations: Annotations, found: Chances, row: int, kind: Kind, chance: float) -> Suspect:
    evidence, image = found.evidence, int(annotations.image_index[row])
    sight = int(evidence.sight[row])
    seen = sight >= 0
    return Suspect(
        kind,
        chance,
        image,
        row,
        annotations.file_names[image],
        _plain(annotations.image_ids[image]),
        _plain(annotations.box_ids[row]),
        annotations.classes[int(annotations.labels[row])],
        annotations.classes[int(evidence.label[sight])] if seen else None,
        _box(annotations.boxes[row]),
        _box(evidence.boxes[sight]) if seen else None,
        float(evidence.best[sight]) if seen else None,
        float(box_algebra.size(annotations.boxes[row])),
        float(evidence.distance[row]) if seen else None,
    )


def _missing(annotations: Annotations, found: Chances, sight: int) -> Suspect:
    evidence, image = found.evidence, int(found.evidence.image[sight])
    return Suspect(
        "missing",
        float(found.missing[sight]),
        image,
        None,
        annotations.file_names[image],
        _plain(annotations.image_ids[image]),
        None,
        None,
        annotations.classes[int(evidence.label[sight])],
        None,
        _box(evidence.boxes[sight]),
        float(evidence.best[sight]),
        float(box_algebra.size(evidence.boxes[sight])),
        None,
    )


def _box(box: np.ndarray) -> Box:
    x1, y1, x2, y2 = np.round(box, 3).tolist()
    return x1, y1, x2, y2


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def csv_text(suspects: Sequence[Suspect]) -> str:
    """A line of `COLUMNS`, and one for each suspect; what is not known is empty."""
    lines = [",".join(COLUMNS)]
    for one in suspects:
        nowhere = (None,) * 4
        values = (one.kind, round(one.chance, 4), one.file_name, one.image_id, one.box_id, one.annotated_class)
        values += (one.suggested_class, *(one.box or nowhere), *(one.suggested_box or nowhere))
        lines.append(",".join(cell(v) for v in (*values, one.score, one.size, one.apart)))
    return "\n".join([*lines, ""])


def plain_values(suspects: Sequence[Suspect]) -> list[dict[str, Any]]:
    """The suspects as dictionaries for JSON, without the rows, which only a table has."""
    return [{key: value for key, value in asdict(one).items() if key not in ("image", "row")} for one in suspects]
