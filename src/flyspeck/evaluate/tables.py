"""From an annotation table and a detection table to what a matcher reads: sorted rows, groups, flags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.affinity import affinity_pairs
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.matching import Matcher, MatchRule, Truths, overlapping_pairs


@dataclass(frozen=True)
class TruthTable:
    """Ground truths as evaluators see them: one row per box and class it holds for; `(M,)` columns."""

    row: np.ndarray
    """Row of the annotation table."""
    image: np.ndarray
    """Rank of the image by ascending id."""
    label: np.ndarray
    """0..K-1."""
    boxes: np.ndarray
    """(M, 4) xyxy."""
    sides: np.ndarray
    """(M, 2) width and height, exact where the source gives them."""
    area: np.ndarray
    """The source's area field."""
    crowd: np.ndarray
    flagged: np.ndarray
    """Ignored by its own flags under the protocol at hand."""
    ids: np.ndarray
    """The source's annotation ids."""

    def select(self, rows: np.ndarray) -> TruthTable:
        """The rows that a mask or an index array selects."""
        return TruthTable(**{name: column[rows] for name, column in vars(self).items()})


def image_ranks(annotations: Annotations) -> np.ndarray:
    """(I,) the place of each image when sorted by id: numbers by value, texts by their letters."""
    ids = annotations.image_ids
    if ids.dtype == object:
        ids = np.array([str(value) for value in ids])
    ranks = np.empty(len(ids), np.int64)
    ranks[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    return ranks


def flag_columns(annotations: Annotations) -> dict[str, np.ndarray]:
    """The ignore flags apart, (M,) bool each: `crowd`, `ignore`, `uncertain`.

    Where a source has no `ignore` field of its own, whatever else made its reader ignore a box stands for it. Where it has
    one, so do VOC's and DOTA's `difficult` and WIDER FACE's `invalid`, which a COCO json of such a set keeps beside it.
    """
    none = np.zeros(annotations.num_boxes, bool)
    uncertain, difficult, invalid = (
        np.asarray(annotations.extra.get(name, none), bool) for name in ("uncertain", "difficult", "invalid")
    )
    if "ignore_flag" in annotations.extra:
        ignore = np.asarray(annotations.extra["ignore_flag"], bool) | annotations.ignore & (difficult | invalid)
    else:
        ignore = annotations.ignore & ~annotations.crowd & ~uncertain
    return {"crowd": annotations.crowd, "ignore": ignore, "uncertain": uncertain}


def truth_table(annotations: Annotations, ignore: Iterable[str], *, every_class: bool = False) -> TruthTable:
    """The ground truths of all classes under the flags `ignore` (`crowd`, `ignore`, `uncertain`).

    Regions without a class hold for every class and count as crowds; with `every_class` all flagged boxes do.
    """
    flags = flag_columns(annotations)
    flagged = np.zeros(annotations.num_boxes, bool)
    for name in ignore:
        flagged |= flags[name]
    labels = annotations.own_labels
    region = labels < 0
    if every_class:
        region = region | flagged
    classes = max(len(annotations.classes), 1)
    copies = np.where(region, classes, 1)
    row = np.repeat(np.arange(len(copies)), copies)
    number = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
    boxes = annotations.boxes[row]
    xywh = annotations.extra.get("xywh")
    sides = boxes[:, 2:] - boxes[:, :2] if xywh is None else xywh[row, 2:]
    return TruthTable(
        row=row,
        image=image_ranks(annotations)[annotations.image_index[row]],
        label=np.where(region[row], number, labels[row]),
        boxes=boxes,
        sides=sides,
        area=annotations.area[row],
        crowd=(annotations.crowd | region)[row],
        flagged=(flagged | region)[row],
        ids=annotations.box_ids[row],
    )


@dataclass(frozen=True)
class RankedDetections:
    """Detections sorted by class, image and falling score, ties in file order; `(N,)` columns."""

    row: np.ndarray
    """Row of the detection table."""
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    sides: np.ndarray
    area: np.ndarray
    """w*h in square pixels."""
    scores: np.ndarray
    place: np.ndarray
    """0 for the best of its image (and class), 1 for the next."""

    def __len__(self) -> int:
        return len(self.row)

    def select(self, rows: np.ndarray) -> RankedDetections:
        """The rows that a mask or an index array selects."""
        return RankedDetections(**{name: column[rows] for name, column in vars(self).items()})


def places(group: np.ndarray) -> np.ndarray:
    """(N,) position of each row within its run of equal `group` values."""
    if not len(group):
        return np.zeros(0, np.int64)
    start = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(start, np.diff(np.r_[start, len(group)]))


def ranked(
    detections: DetectionTable, annotations: Annotations, max_dets: int | None, *, per_class: bool = True
) -> RankedDetections:
    """The best `max_dets` detections of every image and class (or image), in the order that evaluators take them."""
    image = image_ranks(annotations)[detections.image_index]
    group = detections.labels * (len(annotations) + 1) + image
    order = np.lexsort((-detections.scores, group))
    if per_class:
        place = places(group[order])
    else:
        by_image = np.lexsort((-detections.scores, image))
        place = np.empty(len(order), np.int64)
        place[by_image] = places(image[by_image])
        place = place[order]
    if max_dets is not None:
        keep = place < max_dets
        order, place = order[keep], place[keep]
    xywh = detections.xywh[order]
    # pycocotools takes the right edge as x + w of the xywh that the file holds
    return RankedDetections(
        row=order,
        image=image[order],
        label=detections.labels[order],
        boxes=detections.boxes[order],
        sides=xywh[:, 2:],
        area=xywh[:, 2] * xywh[:, 3],
        scores=detections.scores[order],
        place=place,
    )


def matcher(found: RankedDetections, truths: TruthTable, rule: MatchRule, affinity: str = "iou") -> Matcher:
    """The matcher of ranked detections and ground truths, each within its image and class."""
    images = int(max(found.image.max(initial=0), truths.image.max(initial=0))) + 1
    group, truth_group = found.label * images + found.image, truths.label * images + truths.image
    pixel = rule.pixel
    pairs = overlapping_pairs(
        found.boxes,
        group,
        truths.boxes,
        truth_group,
        sides=found.sides + pixel,
        truth_sides=truths.sides + pixel,
        pixel=pixel,
    )
    if affinity != "iou":
        pairs = affinity_pairs(found.boxes, group, truths.boxes, truth_group, truths.flagged, pairs, affinity)
    return Matcher(pairs, Truths(truths.area, truths.crowd, truths.flagged), found.area, rule)
