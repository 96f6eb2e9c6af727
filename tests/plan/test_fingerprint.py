"""What a data set is like: values by hand, slow twins, and sets that are odd."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from planned_sets import base, squares, write_set

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.files import finite
from flyspeck.one_object import is_one
from flyspeck.plan.fingerprint import Fingerprint, crowding, fingerprint, is_grey, neighbour_distances, with_pixels


def test_values_by_hand(tmp_path: Path) -> None:
    # Two images of 64x96. In the first a square of 4 px at the left border and one of 16 px whose centre is 30 px from its
    # centre along x alone; in the second one of 8 px.
    path = write_set(tmp_path / "set.json", [[[0, 30, 4, 4], [24, 24, 16, 16]], [[40, 20, 8, 8]]])
    found = fingerprint(read_annotations(path))
    assert (found.images, found.objects, found.most_objects, found.images_without_objects) == (2, 3, 2, 0)
    assert found.size_quantiles["50"] == 8.0
    assert found.image_medians == pytest.approx((8 + 0.1 * 2, 8 + 0.9 * 2))  # medians of the images: 10 and 8
    assert found.image_size == (64, 96)
    assert found.per_megapixel == pytest.approx(3 / (2 * 64 * 96 / 1e6))
    assert found.tiny_share == 1.0
    assert found.edge_share == pytest.approx(1 / 3)
    near = neighbour_distances(read_annotations(path))
    assert sorted(near.tolist()) == pytest.approx([30 / 16, 30 / 4, math.inf])


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_and_crowding_as_a_slow_loop_has_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = [[[*rng.uniform(0, 40, 2), *rng.uniform(2, 12, 2)] for _ in range(n)] for n in (0, 1, 2, 30)]
    labels = [rng.integers(0, 2, len(own)).tolist() for own in boxes]
    table = read_annotations(write_set(tmp_path / "set.json", boxes, labels=labels, classes=("a", "b")))
    distances, one = [], 0
    for own, kinds in zip(boxes, labels, strict=True):
        for i, (x, y, w, h) in enumerate(own):
            others = [
                math.hypot(x + w / 2 - a - c / 2, y + h / 2 - b - d / 2) for j, (a, b, c, d) in enumerate(own) if j != i
            ]
            distances.append(min(others, default=math.inf) / math.sqrt(w * h))
            for j, (a, b, c, d) in enumerate(own):
                shared = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
                areas = np.array(w * h), np.array(c * d)
                if j != i and kinds[i] == kinds[j] and is_one(np.array(shared), *areas):
                    one += 1
                    break
    assert neighbour_distances(table) == pytest.approx(np.array(distances))
    assert crowding(table) == pytest.approx(one / 33)


def test_grey_that_is_stored_as_colour_is_noticed(tmp_path: Path) -> None:
    for colour in (False, True):
        table = read_annotations(write_set(tmp_path / f"{colour}.json", squares(3), colour=colour))
        found = with_pixels(fingerprint(table), table)
        assert (found.bands, found.grey_as_colour, found.channels) == ((3, False, 3) if colour else (3, True, 1))
        assert found.decode_seconds > 0
    assert is_grey(np.full((4, 4, 1), 9, np.uint8))
    spot = np.full((64, 64, 3), 9, np.uint8)
    spot[:8, :8, 0] = 90  # a red stamp on a grey image
    assert not is_grey(spot)
    large = np.full((3000, 3000, 3), 9, np.uint8)
    tracemalloc.start()
    try:
        assert is_grey(large)
        assert not is_grey(np.concatenate([large[:2000], np.full((1000, 3000, 3), [9, 60, 9], np.uint8)]))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (
        held < 2.5 * large.nbytes
    )  # of the second image and the part that it is made of; no copies of all of its pixels


def test_it_survives_json(tmp_path: Path) -> None:
    table = read_annotations(write_set(tmp_path / "set.json", [[[3, 3, 8, 8]], [[9, 9, 8, 8]]]))
    found = fingerprint(table)
    assert math.isinf(found.neighbour_quantiles[0])
    assert Fingerprint.of(json.loads(json.dumps(finite(found.to_dict())))) == found


def test_nothing_to_learn_is_one_line(tmp_path: Path) -> None:
    regions = read_annotations(write_set(tmp_path / "regions.json", squares(2), ignored=True))
    with pytest.raises(UserError, match="no object to learn: 4 ignore regions only"):
        fingerprint(regions)
    nothing = read_annotations(write_set(tmp_path / "nothing.json", [[], []]))
    with pytest.raises(UserError, match="no object to learn"):
        fingerprint(nothing)


def test_images_of_a_made_up_table() -> None:
    found = base()
    assert (found.images, found.objects, found.quantile(25), found.crowded_share) == (600, 1800, 10.0, 0.0)
    assert found.ratios == (1.0,)
