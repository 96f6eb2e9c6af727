"""Doubtful boxes and classes of one annotation table: what stands twice, what a tile's border cut, names that are nearly one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flyspeck import boxes as bx
from flyspeck.data.annotations import Annotations

SAME_IOU = 0.85
"""Least IoU of two boxes that are called the same."""
SAME_PX = 0.5
"""Boxes whose four edges differ by no more are the same whatever their IoU: two boxes of 2 px half a pixel apart have 0.6."""
BORDER_PX = 1.0
"""A box touches the border of its image where an edge is no further from it."""
SLIVER = 0.5
"""A box that touches the border is a sliver where it is shorter, across the border, than this share of the usual object."""
_LISTED = 20


@dataclass(frozen=True)
class RepeatedBoxes:
    """Pairs of boxes of one image that are the same, or nearly."""

    first: np.ndarray
    """(N,) row of the box that stands first in the file."""
    second: np.ndarray
    """(N,) row of the one that repeats it."""
    exact: np.ndarray
    """(N,) bool: all four numbers are equal."""
    other_class: np.ndarray
    """(N,) bool: the two are of different classes."""


@dataclass(frozen=True)
class BoxFaults:
    """What is doubtful in one table; counts are of boxes unless they say otherwise."""

    repeated: int
    """Boxes that repeat another of their image and class exactly."""
    nearly_repeated: int
    """Boxes that repeat another nearly: IoU of at least 0.85, or no edge further off than half a pixel."""
    two_classes: int
    """Pairs at one place of different classes."""
    border_boxes: int
    """Objects that touch the border of their image."""
    border_expected: float
    """How many would, if the objects lay anywhere: the share of an image's area where an object of that size is cut."""
    border_slivers: int
    """Of them, those less than half as long across the border as the usual object of the class."""
    class_twins: tuple[tuple[str, ...], ...]
    """Classes whose names differ in case and blanks only; `_` counts as a blank."""
    empty_classes: tuple[str, ...]
    """Classes without any box, ignore regions included."""
    first: dict[str, tuple[str, ...]]
    """By field, where the first 20 are: image, and ids of the boxes."""

    def facts(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "border_expected": round(self.border_expected, 1)}


def find_box_faults(annotations: Annotations) -> BoxFaults:
    """What is doubtful in the boxes and classes of a table."""
    pairs = repeated_boxes(annotations)
    same = ~pairs.other_class
    exact = np.unique(pairs.second[same & pairs.exact])
    near = np.setdiff1d(pairs.second[same], exact)
    touching, slivers, expected = border_boxes(annotations)
    mixed = np.flatnonzero(pairs.other_class)[:_LISTED]
    first = {
        "repeated": _places(annotations, exact),
        "nearly_repeated": _places(annotations, near),
        "two_classes": tuple(
            f"{_place(annotations, int(pairs.first[k]))}, {_class(annotations, int(pairs.first[k]))} and"
            f" {_class(annotations, int(pairs.second[k]))}"
            for k in mixed
        ),
        "border_slivers": _places(annotations, slivers),
    }
    return BoxFaults(
        repeated=len(exact),
        nearly_repeated=len(near),
        two_classes=int(pairs.other_class.sum()),
        border_boxes=len(touching),
        border_expected=expected,
        border_slivers=len(slivers),
        class_twins=class_twins(annotations.classes),
        empty_classes=empty_classes(annotations),
        first=first,
    )


def _place(annotations: Annotations, row: int) -> str:
    image = annotations.file_names[int(annotations.image_index[row])]
    box = ", ".join(f"{value:g}" for value in np.round(annotations.boxes[row], 2))
    return f"{image}: box {annotations.box_ids[row]} ({box})"


def _places(annotations: Annotations, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(_place(annotations, row) for row in rows[:_LISTED].tolist())


def _class(annotations: Annotations, row: int) -> str:
    return annotations.classes[int(annotations.labels[row])]


def repeated_boxes(annotations: Annotations) -> RepeatedBoxes:
    """The pairs of boxes of one image that are the same or nearly so; ignore regions are compared among themselves only.

    Boxes are sorted by image and left edge, and each is compared with those whose left edge lies close enough behind its own.
    """
    boxes, image = annotations.boxes, annotations.image_index
    order = np.lexsort((np.arange(len(boxes)), boxes[:, 0], annotations.ignore, image))
    left, kind = boxes[order, 0], image[order] * 2 + annotations.ignore[order]
    # IoU of SAME_IOU needs left edges closer than (1 - SAME_IOU) of the wider box, which is at most 1 / SAME_IOU times as wide.
    width = np.maximum(boxes[order, 2] - left, 0)
    reach = left + np.maximum(SAME_PX, width * (1 / SAME_IOU - 1)) + 1e-9
    found: list[np.ndarray] = []
    ahead, step = np.arange(len(order)), 1
    while True:
        ahead = ahead[ahead + step < len(order)]
        ahead = ahead[(kind[ahead] == kind[ahead + step]) & (left[ahead + step] <= reach[ahead])]
        if not len(ahead):
            break
        a, b = order[ahead], order[ahead + step]
        close = (np.abs(boxes[a] - boxes[b]) <= SAME_PX).all(1)
        close |= bx.paired_iou(boxes[a], boxes[b]) >= SAME_IOU
        found.append(np.stack([a[close], b[close]], 1))
        step += 1
    pairs = np.sort(np.concatenate([np.zeros((0, 2), dtype=np.int64), *found]), axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    first, second = pairs[:, 0], pairs[:, 1]
    return RepeatedBoxes(
        first,
        second,
        (boxes[first] == boxes[second]).all(1),
        annotations.labels[first] != annotations.labels[second],
    )


def border_boxes(annotations: Annotations) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of objects that touch a border, of those that are slivers, and how many objects would touch one by chance."""
    sizes = annotations.sizes[annotations.image_index]
    rows = np.flatnonzero(~annotations.ignore & (sizes > 0).all(1))
    boxes, (height, width) = annotations.boxes[rows], sizes[rows].T
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    at_x = (boxes[:, 0] <= BORDER_PX) | (boxes[:, 2] >= width - BORDER_PX)
    at_y = (boxes[:, 1] <= BORDER_PX) | (boxes[:, 3] >= height - BORDER_PX)
    # Of centres spread evenly over the image, those closer to a border than half an object touch it.
    free = np.maximum(0, 1 - (sides[:, 0] + 2) / width) * np.maximum(0, 1 - (sides[:, 1] + 2) / height)
    usual = np.ones((len(annotations.classes), 2))
    inside = ~(at_x | at_y)
    for label in range(len(annotations.classes)):
        own = sides[inside & (annotations.labels[rows] == label)]
        usual[label] = np.median(own, 0) if len(own) else 0
    typical = usual[annotations.labels[rows]] if len(rows) else np.zeros((0, 2))
    sliver = (at_x & (sides[:, 0] < SLIVER * typical[:, 0])) | (at_y & (sides[:, 1] < SLIVER * typical[:, 1]))
    return rows[at_x | at_y], rows[sliver], float((1 - free).sum())


def class_twins(classes: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of names that differ in case and blanks only; `_` counts as a blank."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(classes):
        groups["".join(name.replace("_", " ").split()).casefold()].append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def empty_classes(annotations: Annotations) -> tuple[str, ...]:
    """Classes that no box has, be it an ignore region."""
    used = set(annotations.own_labels.tolist())
    return tuple(name for label, name in enumerate(annotations.classes) if label not in used)
