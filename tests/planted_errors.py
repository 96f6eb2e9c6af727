"""A made-up data set whose errors are known, and a detector's detections of it: no image is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable

CLASSES = ("car", "person")


def table(
    boxes: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    *,
    num_images: int | None = None,
    size: tuple[int, int] = (400, 400),
    ignore: np.ndarray | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> Annotations:
    """Annotations of boxes (N, 4) with labels (N,), sorted by their image (N,)."""
    number = int(image.max(initial=-1)) + 1 if num_images is None else num_images
    ignore = np.zeros(len(boxes), bool) if ignore is None else ignore
    return Annotations(
        image_ids=np.arange(number) + 1,
        file_names=tuple(f"im{row:04d}.png" for row in range(number)),
        sizes=np.tile(np.array(size, np.int64), (number, 1)),
        image_index=np.asarray(image, np.int64),
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4),
        labels=np.where(ignore, -1, labels).astype(np.int64),
        area=box_algebra.area(np.asarray(boxes, np.float64).reshape(-1, 4)),
        ignore=ignore,
        crowd=np.zeros(len(boxes), bool),
        box_ids=np.arange(len(boxes)) + 1,
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        root=Path("nowhere"),
        source="made up",
    )


@dataclass(frozen=True)
class Planted:
    """Annotations with errors, and what a detector that is mostly right says of the images."""

    annotations: Annotations
    detections: DetectionTable
    missing: np.ndarray
    """(k, 5) image and box of the objects that were left out."""
    rows: dict[str, np.ndarray]
    """Kind to the rows of the annotations with that error."""


def planted(seed: int, *, sides: tuple[float, float] = (4, 24), share: float = 0.05, num_images: int = 60) -> Planted:
    """Objects on a grid of 40 px, eight of ten found; boxes of annotator and detector differ by a fraction of a pixel.

    `share` of the objects has each of the four errors: left out, moved by half its size, of the other class, made up.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2) * 42 + 20
    image, middles, empty = [], [], []
    for row in range(num_images):
        places = grid[rng.permutation(len(grid))[:20]]
        middles.append(places[:12])
        empty.append(places[12:])
        image.append(np.full(12, row))
    image, middle = np.concatenate(image), np.concatenate(middles) + rng.uniform(-3, 3, (12 * num_images, 2))
    count = len(image)
    side = np.exp(rng.uniform(np.log(sides[0]), np.log(sides[1]), (count, 1))) * rng.uniform(0.8, 1.25, (count, 2))
    label = rng.integers(0, 2, count)
    true = np.concatenate([middle - side / 2, middle + side / 2], 1)
    noise = 0.04 * box_algebra.size(true)[:, None] + 0.15
    detections = _detections(rng, image, true + noise * rng.normal(size=(count, 4)), label, np.stack(empty))
    annotated = true + noise * rng.normal(size=(count, 4))
    number = round(share * count)
    gone, moved, changed, _ = np.split(rng.permutation(count)[: 3 * number + 1], [number, 2 * number, 3 * number])
    angle = rng.uniform(0, 2 * np.pi, number)
    step = np.stack([np.cos(angle), np.sin(angle)], 1) * box_algebra.size(true[moved])[:, None] / 2
    annotated[moved] += np.tile(step, (1, 2))
    labels = label.copy()
    labels[changed] = 1 - labels[changed]
    made_image = rng.integers(0, num_images, number)
    place = np.stack(empty)[made_image, rng.integers(4, 8, number)]
    copied = side[rng.integers(0, count, number)]
    kept = np.setdiff1d(np.arange(count), gone)
    made_up = np.concatenate([place - copied / 2, place + copied / 2], 1)
    all_boxes = np.concatenate([annotated[kept], made_up])
    all_labels = np.concatenate([labels[kept], rng.integers(0, 2, number)])
    all_images = np.concatenate([image[kept], made_image])
    order = np.argsort(all_images, kind="stable")
    new = np.empty(len(order), np.int64)
    new[order] = np.arange(len(order))
    place_of = {old: int(new[position]) for position, old in enumerate(kept.tolist())}
    rows = {
        "placement": np.array([place_of[old] for old in moved.tolist()]),
        "class": np.array([place_of[old] for old in changed.tolist()]),
        "superfluous": new[len(kept) :],
    }
    annotations = table(all_boxes[order], all_labels[order], all_images[order], num_images=num_images)
    return Planted(annotations, detections, np.column_stack([image[gone], true[gone]]), rows)


def _detections(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, label: np.ndarray, empty: np.ndarray
) -> DetectionTable:
    """Of each object one or two classes, strong for eight of ten; weak ones at the first four of the `empty` places (I, 8, 2)."""
    count = len(image)
    found = rng.uniform(size=count) < 0.8
    strong = np.where(found, rng.beta(9, 1.5, count), rng.beta(1, 12, count))
    strong = np.where(~found & (rng.uniform(size=count) < 0.4), 0, strong)
    weak = strong * rng.uniform(0, 1.6 - 1.3 * strong)  # the weaker, the more often it is the right class that is weak
    false_image = np.repeat(np.arange(len(empty)), 4)
    middle = empty[:, :4].reshape(-1, 2)
    half = rng.uniform(2, 10, (len(middle), 1))
    scores = np.concatenate([strong, weak, rng.beta(1, 9, len(middle))])
    order = rng.permutation(np.flatnonzero(scores >= 0.01))
    return DetectionTable.from_columns(
        image_index=np.concatenate([image, image, false_image])[order],
        boxes=np.concatenate([boxes, boxes, np.concatenate([middle - half, middle + half], 1)])[order],
        scores=scores[order],
        labels=np.concatenate([label, 1 - label, rng.integers(0, 2, len(middle))])[order],
    )
