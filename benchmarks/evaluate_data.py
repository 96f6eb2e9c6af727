"""Generated ground truth and detections of any size for the evaluation benchmarks: seeded, with ties, ignores and misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import DetectionTable


def generate(
    *, images: int, boxes: int, detections: int, classes: int, seed: int = 0, median_size: float = 14.0
) -> tuple[Annotations, DetectionTable]:
    """Boxes of log-normal size around `median_size` px in 1920x1080 images; two thirds of the detections near a box."""
    rng = np.random.default_rng(seed)
    image_index = np.sort(rng.integers(0, images, boxes))
    sides = median_size * np.exp(rng.normal(0, 0.7, (boxes, 1))) * np.exp(rng.normal(0, 0.2, (boxes, 2)))
    corner = rng.uniform(0, 1, (boxes, 2)) * (np.array([1920, 1080]) - 40)
    xywh = np.round(np.concatenate([corner, sides], 1), 2)
    labels = rng.integers(0, classes, boxes)
    ignore = rng.uniform(size=boxes) < 0.15
    annotations = Annotations(
        image_ids=np.arange(1, images + 1),
        file_names=tuple(f"{n}.jpg" for n in range(images)),
        sizes=np.tile([1080, 1920], (images, 1)),
        image_index=image_index,
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        labels=labels,
        area=xywh[:, 2] * xywh[:, 3],
        ignore=ignore,
        crowd=ignore & (rng.uniform(size=boxes) < 0.2),
        box_ids=np.arange(1, boxes + 1),
        classes=tuple(f"class {k}" for k in range(classes)),
        category_ids=tuple(range(1, classes + 1)),
        root=Path(),
        extra={"xywh": xywh, "category": labels, "ignore_flag": ignore},
    )
    source = rng.integers(0, boxes, detections)
    near = rng.uniform(size=detections) < 2 / 3
    size = sides[source]
    moved = xywh[source, :2] + rng.normal(0, 0.15, (detections, 2)) * size
    place = np.where(near[:, None], moved, rng.uniform(0, 1, (detections, 2)) * (np.array([1920, 1080]) - 40))
    shape = size * np.exp(rng.normal(0, 0.15, (detections, 2)))
    scores = np.round(np.clip(rng.beta(2, 4, detections) + 0.3 * near, 0, 1), 3)
    table = DetectionTable.from_columns(
        image_index=image_index[source],
        xywh=np.round(np.concatenate([place, shape], 1), 2),
        scores=scores,
        labels=np.where(rng.uniform(size=detections) < 0.9, labels[source], rng.integers(0, classes, detections)),
    )
    return annotations, table
