"""Merging at the edges of its rules: what lies on a threshold, on the end of a slack, and tiles that tell nothing."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from flyspeck.infer import tiles as tiling
from flyspeck.infer.merge import MergeRule, in_own_part, merge
from flyspeck.types import Detections

SIZE = (100, 140)
TILES = tiling.grid(SIZE, (60, 60), 20)


def alone(boxes: list[list[float]], **more: np.ndarray) -> Detections:
    """Boxes of one class, the first the best."""
    scores = np.linspace(0.9, 0.5, len(boxes))
    return Detections(np.array(boxes, np.float32), scores, np.zeros(len(boxes), np.int64), SIZE, ("a",), extra=more)


def test_an_overlap_of_the_threshold_is_one_object() -> None:
    found = alone([[0, 0, 2, 1], [0, 0, 1, 1]])  # IoU 1/2 exactly
    assert len(merge(found, rule=MergeRule(method="nms", threshold=0.5))) == 1
    assert len(merge(found, rule=MergeRule(method="nms", threshold=0.501))) == 2


def test_tiles_without_their_boxes_tell_nothing() -> None:
    found = alone([[0, 0, 8, 8], [50, 50, 58, 58]])
    for rule in (MergeRule(), MergeRule(owned=False)):
        assert_array_equal(merge(found, tiles=TILES, rule=rule).boxes, merge(found, rule=rule).boxes)
        assert_array_equal(
            merge(found, tile_index=np.zeros(2, np.int64), rule=rule).boxes, merge(found, rule=rule).boxes
        )


def test_a_centre_on_the_edge_of_the_slack_stays() -> None:
    """The parts end at x 50; a box of 8 px has a slack of 1 + 8 / 4 = 3 px: centres from 47 on may be of the second tile."""
    boxes = np.array([[43, 10, 51, 18], [42.75, 10, 50.75, 18], [49, 10, 57, 18], [49.25, 10, 57.25, 18]], np.float32)
    assert in_own_part(boxes, TILES, np.array([1, 1, 0, 0])).tolist() == [True, False, True, False]
    turned = boxes[:, [1, 0, 3, 2]]  # down, the parts end at y 50 too
    assert in_own_part(turned, TILES, np.array([3, 3, 0, 0])).tolist() == [True, False, True, False]


def test_a_part_of_no_area_is_explained_by_nothing() -> None:
    """It covers nothing of the whole box that stands there, so it is not a part of it."""
    boxes = [[45, 10, 55, 20], [50, 10, 50, 20]]
    cut = np.array([False, True])
    rule = MergeRule(method="nms", owned=False)
    assert len(merge(alone(boxes, cut=cut), tiles=TILES, tile_index=np.array([0, 1]), rule=rule)) == 2
    boxes[1] = [50, 10, 55, 20]  # half of it, seen in the next tile
    assert len(merge(alone(boxes, cut=cut), tiles=TILES, tile_index=np.array([0, 1]), rule=rule)) == 1
