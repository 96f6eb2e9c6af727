"""Time of S-α over 10,000 images of 640x512 with 30 objects each on average: nine anchors a cell, P2-P6."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.fusion import anchor_levels, best_anchor, fusion_statistics

IMAGES, SIZE, STRIDES = 10_000, (512, 640), (4, 8, 16, 32, 64)


def make_annotations() -> Annotations:
    """Objects of log-normal size around 16 px at uniform places."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 61, IMAGES)
    m = int(counts.sum())
    centers, sides = rng.uniform(0, 1, (m, 2)) * SIZE[::-1], np.exp(rng.normal(np.log(16), 0.6, (m, 2)))
    return Annotations(
        image_ids=np.arange(IMAGES),
        file_names=tuple(f"{i}.png" for i in range(IMAGES)),
        sizes=np.tile(SIZE, (IMAGES, 1)),
        image_index=np.repeat(np.arange(IMAGES), counts),
        boxes=np.concatenate([centers - sides / 2, centers + sides / 2], 1),
        labels=np.zeros(m, np.int64),
        area=sides.prod(1),
        ignore=np.zeros(m, bool),
        crowd=np.zeros(m, bool),
        box_ids=np.arange(m),
        classes=("thing",),
        category_ids=(1,),
    )


if __name__ == "__main__":
    annotations = make_annotations()
    levels = anchor_levels(STRIDES, (8, 16, 32, 64, 128), ratios=(0.5, 1, 2), octaves=3)
    start = time.perf_counter()
    found = fusion_statistics(annotations, partial(best_anchor, levels=levels), STRIDES, size=SIZE)
    print(f"{time.perf_counter() - start:.2f} s for {IMAGES} images, {annotations.num_boxes} boxes: {found}")
