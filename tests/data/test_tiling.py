"""Tile grids against the benchmarks' own, their properties, and annotations cut into tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.data.annotations import Annotations
from flyspeck.data.policy import CutPolicy
from flyspeck.data.readers import read_annotations
from flyspeck.data.tiling import RULES, corners, drop_crowded, tile_annotations
from flyspeck.errors import UserError

GRIDS = ("flyspeck", "tinybenchmark_split_by_size", "tov_cropped_tiles")


def case(result: dict[str, Any]) -> tuple[np.ndarray, list[list[int]]]:
    """Our corners and the reference's, for one golden result (its sizes and overlaps are x, y)."""
    width, height = result["image_size"]
    if result["protocol"] == "tov_cropped_tiles":
        options: dict[str, Any] = {"size": result["tile_shape"][::-1], "overlap": tuple(result["tile_overlap"][::-1])}
        places = zip(result["offsets_xy"], result["crop_hw"], strict=True)
        expected = [[x, y, x + w, y + h] for (x, y), (h, w) in places]
    else:
        options = {"overlap": tuple(result["overlap"][::-1]), "fixed_size": result["use_fix_size"]}
        if "pieces" in result:
            options["pieces"] = tuple(result["pieces"][::-1])
        else:
            options["size"] = tuple(result["sub_image_size"][::-1])
        expected = result["corners_xyxy"]
    return corners(result["protocol"], (height, width), **options), expected


def test_golden_corners(shared: Path) -> None:
    results = json.loads((shared / "golden/tiling/expected.json").read_text())["results"]
    assert {result["protocol"] for result in results} == set(RULES) - {"flyspeck"}
    for result in results:
        ours, expected = case(result)
        assert_array_equal(ours, expected, err_msg=str(result))


def test_golden_cut(shared: Path) -> None:
    whole = read_annotations(shared / "golden/merge_a/merged_gt.json")
    expected = read_annotations(shared / "golden/merge_a/corner_gt.json", for_evaluation=True)
    tiles = tile_annotations(whole, rule="tinybenchmark_split_by_size", first_id=0)
    for name in ("image_ids", "sizes", "image_index", "labels", "ignore", "box_ids"):
        assert_array_equal(getattr(tiles, name), getattr(expected, name), err_msg=name)
    assert_array_equal(tiles.image_extra["corner"], expected.image_extra["corner"])
    assert_array_equal(tiles.image_extra["whole"], expected.image_extra["whole"])
    assert tiles.file_names == expected.file_names
    assert_allclose(tiles.boxes, expected.boxes, atol=1e-4)  # the reference writes float32
    assert_allclose(tiles.area, expected.area, rtol=1e-5)


def test_the_benchmarks_document_by_hand() -> None:
    # 1280x720 with tiles of 640x512 and 50 px overlap: x 0, 590, 640 and y 0, 208, as the dataset's document has it.
    ours = corners("tinybenchmark_split_by_size", (720, 1280), (512, 640), 50)
    assert sorted(set(ours[:, 0])) == [0, 590, 640]
    assert sorted(set(ours[:, 1])) == [0, 208]
    # Ours needs as many, but spread: 3 tiles of 640 in 1280 start at 0, 320, 640; 2 of 512 in 720 at 0, 208.
    assert corners("flyspeck", (720, 1280), (512, 640), 50)[:3].tolist() == [
        [0, 0, 640, 512],
        [320, 0, 960, 512],
        [640, 0, 1280, 512],
    ]


@pytest.mark.parametrize("rule", GRIDS)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    tile=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    share=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_every_pixel_is_covered(rule: str, height: int, width: int, tile: tuple, share: tuple) -> None:
    overlap = (int(tile[0] * share[0]), int(tile[1] * share[1]))
    tiles = corners(rule, (height, width), tile, overlap)
    assert (tiles[:, :2] >= 0).all()
    assert (tiles[:, 2:] <= (width, height)).all()
    assert (tiles[:, 2] - tiles[:, 0] == min(tile[1], width)).all()
    assert (tiles[:, 3] - tiles[:, 1] == min(tile[0], height)).all()
    assert len(np.unique(tiles, axis=0)) == len(tiles)
    for low, high, length, shared in ((0, 2, width, overlap[1]), (1, 3, height, overlap[0])):
        spans = np.unique(tiles[:, [low, high]], axis=0)
        assert spans[0, 0] == 0
        assert spans[-1, 1] == length
        assert (spans[:-1, 1] - spans[1:, 0] >= min(shared, length - 1)).all()


@given(
    size=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    pieces=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    overlap=st.integers(0, 12),
    fixed=st.booleans(),
)
def test_pieces_cover_too(size: tuple, pieces: tuple, overlap: int, fixed: bool) -> None:
    tiles = corners("tinybenchmark_split_by_pieces", size, overlap=overlap, pieces=pieces, fixed_size=fixed)
    assert len(tiles) == pieces[0] * pieces[1]
    covered = np.zeros(size, dtype=bool)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= size[1]
        assert 0 <= y1 < y2 <= size[0]
        covered[y1:y2, x1:x2] = True
    assert covered.all()


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("flyspek", {}, "unknown tile rule 'flyspek'; did you mean 'flyspeck'"),
        ("flyspeck", {"overlap": 512}, "tiles of 640x512 px cannot overlap by 512x512 px"),
        ("flyspeck", {"overlap": -1}, "cannot overlap"),
        ("flyspeck", {"size": (0, 10)}, "cannot overlap"),
        ("tinybenchmark_split_by_pieces", {"pieces": (0, 1)}, "1x0 tiles cannot overlap"),
    ],
)
def test_impossible_grids(rule: str, options: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        corners(rule, (1000, 1000), **options)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="cannot be tiled"):
        corners("flyspeck", (0, 10))


def table(
    boxes: list, ignore: list[bool] | None = None, sizes: tuple = ((40, 100),), index: list | None = None
) -> Annotations:
    count = len(boxes)
    ignored = np.array([False] * count if ignore is None else ignore, dtype=bool)
    xyxy = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Annotations(
        image_ids=np.arange(10, 10 + len(sizes)),
        file_names=tuple(f"{n}.png" for n in range(len(sizes))),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        image_index=np.array([0] * count if index is None else index, dtype=np.int64),
        boxes=xyxy,
        labels=np.where(ignored, -1, 0),
        area=(xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]) / 2,
        ignore=ignored,
        crowd=np.zeros(count, bool),
        box_ids=np.arange(1, count + 1),
        classes=("person",),
        category_ids=(1,),
        extra={
            "height": xyxy[:, 3] - xyxy[:, 1],
            "size": np.ones(count),
            "polygon": np.zeros((count, 8)),
            "uncertain": np.zeros(count, bool),
        },
    )


def test_boxes_in_the_frame_of_their_tile() -> None:
    # Tiles of 40x40 with overlap 10 in 100x40: x 0, 30, 60. The second box lies on the seam, 6 of 8 px wide in tile 0.
    whole = table([[5, 5, 9, 9], [34, 10, 42, 14], [80, 0, 84, 4]])
    tiles = tile_annotations(whole, size=(40, 40), overlap=10, policy=CutPolicy(keep=0.75, ignore=0.1))
    assert_array_equal(tiles.image_extra["corner"][:, 0], [0, 30, 60])
    assert_array_equal(tiles.image_index, [0, 0, 1, 2])
    assert_array_equal(tiles.boxes, [[5, 5, 9, 9], [34, 10, 40, 14], [4, 10, 12, 14], [20, 0, 24, 4]])
    assert not tiles.ignore.any()
    assert_array_equal(tiles.area, [8, 12, 16, 8])  # the source's own area, times the visible share
    assert_allclose(tiles.extra["size"], np.sqrt([8, 12, 16, 8]))
    assert_array_equal(tiles.extra["height"], [4, 4, 4, 4])
    assert "polygon" not in tiles.extra
    assert_array_equal(tiles.image_extra["whole"], [10, 10, 10])
    assert_array_equal(tiles.image_ids, [1, 2, 3])
    assert_array_equal(tiles.box_ids, [1, 2, 3, 4])
    strict = tile_annotations(whole, size=(40, 40), overlap=10, policy=CutPolicy(keep=0.8, ignore=0.1))
    assert_array_equal(strict.labels, [0, -1, 0, 0])
    assert_array_equal(strict.ignore, [False, True, False, False])


def test_what_lies_outside_the_image_was_not_cut_off() -> None:
    """An object at the border, of which the annotation goes on outside, is as whole as the image shows it."""
    whole = table([[-6, 0, 4, 10], [96, 30, 116, 50]])
    tiles = tile_annotations(whole, size=(40, 40), overlap=10)
    assert_array_equal(tiles.boxes, [[0, 0, 4, 10], [36, 30, 40, 40]])
    assert_array_equal(tiles.labels, [0, 0])
    # The benchmark counts what it cannot see: 0.4 of the first box and 0.1 of the second, less than half (0.7 squared).
    theirs = tile_annotations(whole, rule="tinybenchmark_split_by_size", size=(40, 40), overlap=10)
    assert theirs.num_boxes == 0


def test_ignore_regions_reach_every_tile() -> None:
    tiles = tile_annotations(table([[0, 0, 100, 40]], [True]), size=(40, 40), overlap=10)
    assert_array_equal(tiles.boxes, [[0, 0, 40, 40]] * 3)
    assert tiles.ignore.all()


def test_empty_and_unknown() -> None:
    tiles = tile_annotations(table([], sizes=((40, 100), (10, 10))), size=(40, 40), overlap=10)
    assert (len(tiles), tiles.num_boxes) == (4, 0)
    nothing = tile_annotations(table([], sizes=()), size=(40, 40))
    assert len(nothing) == 0
    unknown = replace(table([]), sizes=np.array([[-1, -1]]))
    with pytest.raises(UserError, match=r"0.png: its size is not known"):
        tile_annotations(unknown)


@given(st.lists(st.tuples(st.integers(0, 95), st.integers(0, 35), st.integers(1, 5), st.integers(1, 5)), max_size=20))
def test_objects_smaller_than_the_overlap_are_whole_somewhere(rows: list) -> None:
    whole = table([[x, y, x + w, y + h] for x, y, w, h in rows])
    tiles = tile_annotations(whole, size=(20, 30), overlap=5)
    corner = tiles.image_extra["corner"][tiles.image_index]
    back = tiles.boxes + np.tile(corner[:, :2], 2)
    found = {tuple(box) for box in back.tolist()}
    assert all(tuple(box) in found for box in whole.boxes.tolist())
    assert (tiles.boxes >= 0).all()


def test_crowded_images() -> None:
    whole = table([[0, 0, 1, 1]] * 5, sizes=((9, 9), (9, 9), (9, 9)), index=[0, 0, 0, 2, 2])
    assert_array_equal(drop_crowded(whole, 2).image_ids, [11, 12])
    assert_array_equal(drop_crowded(whole, 3).image_ids, [10, 11, 12])
