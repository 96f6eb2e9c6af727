"""Recall by distance to the next tile border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.testing import assert_allclose
from tables_by_hand import found, truth

from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.borders import border_distance, border_rows, tiles_of_corner_file
from flyspeck.evaluate.protocols import APProtocol

TILES = np.array([[0, 0, 100, 100], [80, 0, 180, 100]], float)  # two tiles of a 180x100 image


def test_distances_by_hand() -> None:
    """Borders inside the image are x = 80 and x = 100; the image's own edges are none."""
    boxes = np.array([[0, 0, 10, 10], [70, 40, 80, 50], [88, 0, 92, 4], [150, 90, 160, 100]], float)
    assert_allclose(border_distance(boxes, TILES, (100, 180)), [75, 5, 10, 55])


def test_a_border_ends_where_its_tile_ends() -> None:
    tiles = np.array([[0, 0, 50, 50], [50, 0, 100, 100]], float)
    box = np.array([[38, 80, 42, 84]], float)  # below the first tile, beside the second: x = 50 is 10 px away
    assert_allclose(border_distance(box, tiles, (100, 100)), [10])
    # The first tile alone: its side x = 50 ends above the box, its lower side y = 50 is 32 px up.
    assert_allclose(border_distance(box, tiles[:1], (100, 100)), [32])
    assert_allclose(border_distance(box, np.array([[0.0, 0.0, 100.0, 100.0]]), (100, 100)), [np.inf])


def test_recall_by_distance() -> None:
    protocol = protocol_named("flyspeck")
    assert isinstance(protocol, APProtocol)
    annotations = truth([(0, 0, [75, 40, 8, 8]), (0, 0, [20, 40, 8, 8])], size=(100, 180))
    detections = found([(0, 0, [20, 40, 8, 8], 0.9)])
    rows = border_rows(annotations, detections, {1: TILES}, replace(protocol, ious=(0.5,)), edges=(0, 10, np.inf))
    values = [(row["n_gt"], row["value"]) for row in rows if row["area"] == "all"]
    assert values == [(1, 0.0), (1, 1.0)]


def test_tiles_come_from_a_corner_file() -> None:
    images = [
        {"id": 0, "file_name": "1.jpg", "corner": [0, 0, 5, 5]},
        {"id": 1, "file_name": "x.jpg", "corner": [0] * 4},
    ]
    content = {"images": images}
    tiles = tiles_of_corner_file(content, truth([]))
    assert list(tiles) == [1]
    assert_allclose(tiles[1], [[0, 0, 5, 5]])
