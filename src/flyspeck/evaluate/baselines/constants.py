"""The best answers that do not look at the image: always the same boxes, and always the same number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import Bin

_CANDIDATES, _MOST = 1500, 100
_SAME_SIZE = 0.9
"""Share of the images that must have one size, for a place in the image to mean something."""


@dataclass(frozen=True)
class ConstantBoxes:
    """The same boxes in every image."""

    boxes: np.ndarray
    """(N, 4) xyxy in shares of the image's width and height."""
    labels: np.ndarray
    """(N,)"""
    scores: np.ndarray
    """(N,) share of the training images that have such an object there."""

    def detect(self, annotations: Annotations) -> DetectionTable:
        """These boxes in every image of a table whose sizes are known."""
        images, number = len(annotations), len(self.boxes)
        sides = np.repeat(annotations.sizes[:, ::-1], number, axis=0)
        boxes = np.tile(self.boxes, (images, 1)) * np.concatenate([sides, sides], 1)
        return DetectionTable.from_columns(
            image_index=np.repeat(np.arange(images), number),
            boxes=boxes,
            scores=np.tile(self.scores, images),
            labels=np.tile(self.labels, images),
        )


def fit_constant_boxes(train: Annotations, *, seed: int = 0) -> ConstantBoxes | str:
    """The places where most training images have an object: each the box of one object, by the share of the images it fits.

    Greedy: a place is taken whose box overlaps (IoU 0.5) an object of its class in most images, then the next that no taken one
    overlaps. Returns why there are none where the images' sizes differ or are not stated.
    """
    if (train.sizes < 0).any():
        return "the annotations do not state the images' sizes"
    shapes, counts = np.unique(train.sizes, axis=0, return_counts=True)
    if not len(counts) or counts.max() < _SAME_SIZE * len(train):
        return f"the images have {len(shapes)} sizes, so that a place in the image means nothing"
    objects = ~train.ignore & ~train.crowd & (train.labels >= 0) & (box_algebra.area(train.boxes) > 0)
    rows = np.flatnonzero(objects)
    sides = train.sizes[train.image_index[rows], ::-1]
    boxes = train.boxes[rows] / np.concatenate([sides, sides], 1)
    labels, images = train.labels[rows], train.image_index[rows]
    picked = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_CANDIDATES])
    shares = np.zeros(len(picked))
    for place, row in enumerate(picked):
        same = labels == labels[row]
        near = box_algebra.iou(boxes[row][None], boxes[same])[0] >= 0.5
        shares[place] = len(np.unique(images[same][near])) / max(1, len(train))
    kept: list[int] = []
    overlap = box_algebra.iou(boxes[picked], boxes[picked]) > 0.5
    overlap &= labels[picked][:, None] == labels[picked][None]
    alive = np.ones(len(picked), bool)
    for place in np.argsort(-shares, kind="stable"):
        if alive[place]:
            kept.append(int(place))
            alive &= ~overlap[place]
            if len(kept) == _MOST:
                break
    return ConstantBoxes(boxes[picked][kept], labels[picked][kept], shares[kept])


def count_table(annotations: Annotations, area: Bin) -> np.ndarray:
    """(I, K) objects of a bin by image and class."""
    inside = (annotations.area >= area.low) & (annotations.area <= area.high)
    inside &= ~annotations.ignore & ~annotations.crowd & (annotations.labels >= 0)
    classes = max(1, len(annotations.classes))
    place = annotations.image_index[inside] * classes + annotations.labels[inside]
    return np.bincount(place, minlength=len(annotations) * classes).reshape(len(annotations), classes)


def constant_count_errors(train: Annotations, val: Annotations, area: Bin) -> tuple[float, float]:
    """Error and bias of the count, boxes an image, of always answering the training images' median number of each class.

    The median is the constant with the least mean error.
    """
    if not len(train) or not len(val):
        return -1.0, 0.0
    off = np.median(count_table(train, area), axis=0)[None] - count_table(val, area)
    return float(np.abs(off).sum(1).mean()), float(off.sum(1).mean())
