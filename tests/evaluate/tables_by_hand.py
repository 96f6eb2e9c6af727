"""Small annotation and detection tables, for cases that are worked out by hand, and random ones for twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import DetectionTable


def truth(
    boxes: Sequence[tuple[int, int, Sequence[float]]],
    *,
    images: int = 1,
    classes: int = 1,
    ignore: Sequence[int] = (),
    crowd: Sequence[int] = (),
    uncertain: Sequence[int] = (),
    size: tuple[int, int] = (512, 640),
    extra: dict[str, Any] | None = None,
) -> Annotations:
    """Ground truth of (image, label, [x, y, w, h]); `ignore`, `crowd`, `uncertain` are row numbers; label -1 is a region."""
    xywh = np.array([box for _, _, box in boxes], np.float64).reshape(-1, 4)
    labels = np.array([label for _, label, _ in boxes], np.int64)
    rows = np.arange(len(boxes))
    flags = {name: np.isin(rows, list(chosen)) for name, chosen in (("i", ignore), ("c", crowd), ("u", uncertain))}
    ignored = flags["i"] | flags["c"] | flags["u"] | (labels < 0)
    return Annotations(
        image_ids=np.arange(1, images + 1),
        file_names=tuple(f"{n}.jpg" for n in range(1, images + 1)),
        sizes=np.tile(size, (images, 1)),
        image_index=np.array([image for image, _, _ in boxes], np.int64),
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        labels=np.where(ignored, -1, labels),
        area=xywh[:, 2] * xywh[:, 3],
        ignore=ignored,
        crowd=flags["c"],
        box_ids=rows + 1,
        classes=tuple(f"c{k}" for k in range(classes)),
        category_ids=tuple(range(1, classes + 1)),
        extra={"xywh": xywh, "category": labels, "ignore_flag": flags["i"], "uncertain": flags["u"], **(extra or {})},
    )


def found(boxes: Sequence[tuple[int, int, Sequence[float], float]]) -> DetectionTable:
    """Detections of (image, label, [x, y, w, h], score)."""
    return DetectionTable.from_columns(
        image_index=[image for image, _, _, _ in boxes],
        labels=[label for _, label, _, _ in boxes],
        xywh=[box for _, _, box, _ in boxes],
        scores=[score for _, _, _, score in boxes],
    )


def random_tables(seed: int, *, images: int = 4, classes: int = 2, crowds: bool = True) -> tuple[Any, Any]:
    """Crowded boxes of 1 to 12 px on a coarse grid with many equal overlaps and scores, some ignored, some crowds."""
    rng = np.random.default_rng(seed)
    count, number = int(rng.integers(0, 30)), int(rng.integers(0, 60))
    start = rng.integers(0, 30, (count, 2))
    boxes = [
        (int(p), int(c), [*map(float, xy), *map(float, wh)])
        for p, c, xy, wh in zip(
            np.sort(rng.integers(0, images, count)),
            rng.integers(0, classes, count),
            start,
            rng.integers(1, 13, (count, 2)),
            strict=True,
        )
    ]
    marks = rng.integers(0, 6, count)
    annotations = truth(
        boxes,
        images=images,
        classes=classes,
        ignore=np.flatnonzero(marks == 0).tolist(),
        crowd=np.flatnonzero(marks == 1).tolist() if crowds else [],
        uncertain=np.flatnonzero(marks == 2).tolist(),
    )
    near = rng.integers(0, max(count, 1), number)
    detections = []
    for k in near.tolist():
        image, label, box = boxes[k] if boxes else (0, 0, [3.0, 3.0, 4.0, 4.0])
        shift = rng.integers(-2, 3, 4)
        moved = [box[0] + shift[0], box[1] + shift[1], max(1.0, box[2] + shift[2]), max(1.0, box[3] + shift[3])]
        label = label if rng.uniform() < 0.8 else int(rng.integers(0, classes))
        detections.append((image, label, [float(v) for v in moved], float(rng.integers(0, 8) / 8)))
    return annotations, found(detections)
