"""A small data set of generated scenes with made-up detections: found, displaced, mislabelled, missed, invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flyspeck.data.readers import read_annotations
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.report import RunReport


def invented(annotations, seed: int, quality: float) -> DetectionTable:
    """Detections that find a share `quality` of the objects."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(~annotations.ignore & (rng.random(annotations.num_boxes) < quality))
    boxes = annotations.boxes[rows] + rng.normal(0, 0.35, (len(rows), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(rng.random(len(rows)) < 0.08, (annotations.labels[rows] + 1) % 3, annotations.labels[rows])
    extra = 30
    at = rng.uniform(0, 200, (extra, 2))
    return DetectionTable.from_columns(
        image_index=np.concatenate([annotations.image_index[rows], rng.integers(0, len(annotations), extra)]),
        boxes=np.concatenate([boxes, np.concatenate([at, at + rng.uniform(3, 20, (extra, 2))], 1)]),
        scores=np.concatenate([rng.uniform(0.3, 1.0, len(rows)), rng.uniform(0.02, 0.7, extra)]),
        labels=np.concatenate([labels, rng.integers(0, 3, extra)]),
    )


def history(epochs: int, top: float) -> tuple[dict, ...]:
    """Epoch records as training writes them."""
    return tuple(
        {
            "kind": "epoch",
            "step": 10 * e,
            "epoch": e,
            "seconds": 3.0,
            "losses": {"classification": 1.5 / e, "box": 0.4 / e},
            "metrics": {"ap50_tiny": top * e / epochs, "ap50_all": top * e / epochs + 0.05},
        }
        for e in range(1, epochs + 1)
    )


@pytest.fixture(scope="session")
def scene_set(tmp_path_factory) -> Path:
    """COCO json of 12 small scenes."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), num_images=12, seed=11, height=192, width=256)


@pytest.fixture(scope="session")
def runs(scene_set) -> list[RunReport]:
    """Two runs on the same scenes, one better than the other."""
    annotations = read_annotations(scene_set)
    made = []
    for name, quality in (("good", 0.85), ("poor <b>&", 0.5)):
        detections = invented(annotations, 3, quality)
        result = evaluate(annotations, detections, "flyspeck")
        made.append(RunReport(name, annotations, detections, result, history(6, quality / 2), {"model": name}))
    return made
