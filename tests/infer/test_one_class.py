"""One box for each place: a slow twin, and a case by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck.boxes import iou
from flyspeck.infer.one_class import best_of_each_place
from flyspeck.types import Detections


def found(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
    return Detections(boxes, scores, labels, (64, 64), ("a", "b", "c"))


def slow(one: Detections, least: float) -> list[int]:
    """Best first, each against all that stay."""
    stay: list[int] = []
    for row in sorted(range(len(one)), key=lambda row: (-float(one.scores[row]), row)):
        own = one.boxes[row : row + 1].astype(np.float64)
        if not stay or iou(own, one.boxes[stay].astype(np.float64)).max() < least:
            stay.append(row)
    return sorted(stay)


def test_the_best_class_of_an_object_stays() -> None:
    """A 4 px box of two classes, and one beside it: 4x4 moved by 2 px overlaps by 8 / 24."""
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [2, 0, 6, 4]], np.float32)
    one = best_of_each_place(found(boxes, np.array([0.4, 0.6, 0.5]), np.array([0, 1, 2])))
    assert one.labels.tolist() == [1, 2]
    assert best_of_each_place(one, iou=1 / 3).labels.tolist() == [1]
    assert len(best_of_each_place(Detections.empty((8, 8)))) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.3, 0.5, 0.7]))
def test_it_is_what_the_slow_way_gives(seed: int, count: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 24, (count, 2)), rng.integers(1, 9, (count, 2))
    one = found(
        np.hstack([corners, corners + sides]).astype(np.float32),
        rng.integers(1, 9, count) / 10,
        rng.integers(0, 3, count),
    )
    kept = slow(one, least)
    assert best_of_each_place(one, iou=least).boxes.tolist() == one.boxes[kept].tolist()
