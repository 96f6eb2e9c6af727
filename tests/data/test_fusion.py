"""S-α against vectors worked by hand, and the search near each box against the search over all anchors."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.fusion import (
    AnchorLevel,
    Matches,
    anchor_levels,
    assigned_points,
    axis_overlap,
    best_anchor,
    factors,
    fusion_facts,
    fusion_statistics,
    point_ranges,
)
from flyspeck.errors import UserError

STRIDES = (4, 8, 16, 32, 64)
ANCHORS = (8, 16, 32, 64, 128)
ONE_PER_CELL = anchor_levels(STRIDES, ANCHORS)
NINE_PER_CELL = anchor_levels(STRIDES, ANCHORS, ratios=(0.5, 1, 2), octaves=3)

# Squares (centre x, centre y, side) in images of 128x128. Anchors are centred at 2, 6, 10, … on the finest level, so the
# best IoUs of A are 1, 1, 49/64, 64/81, 36/64, 64/100, 1, 1 (8-px anchors), 1, 196/256, 256/324, 1 (16), 1, 900/1024 (32).
A = [(10, 10, 8), (30, 10, 8), (50, 10, 7), (70, 10, 9), (90, 10, 6), (110, 30, 10), (10, 50, 8), (30, 50, 8)]
A += [(20, 84, 16), (52, 84, 14), (84, 84, 18), (116, 84, 16), (24, 104, 32), (104, 104, 30)]
B = [(48, 48, 64), (14, 14, 8), (14, 30, 8), (100, 20, 16), (60, 100, 16)]
C = [(96, 96, 128), (32, 32, 120)]
DUPLICATES = [(10, 10, 8), (10, 10, 7), (10, 10, 6)]


def table(*images: list, size: tuple[int, int] = (128, 128), ignore: list[bool] | None = None) -> Annotations:
    squares = np.array([square for image in images for square in image], dtype=float).reshape(-1, 3)
    boxes = np.concatenate([squares[:, :2] - squares[:, 2:] / 2, squares[:, :2] + squares[:, 2:] / 2], 1)
    return from_boxes([len(p) for p in images], boxes, size, ignore)


def from_boxes(
    counts: list[int], boxes: np.ndarray, size: tuple[int, int], ignore: list[bool] | None = None
) -> Annotations:
    m, images = len(boxes), len(counts)
    return Annotations(
        image_ids=np.arange(images),
        file_names=tuple(f"{i}.png" for i in range(images)),
        sizes=np.tile(np.array(size), (images, 1)),
        image_index=np.repeat(np.arange(images), counts),
        boxes=boxes,
        labels=np.zeros(m, np.int64),
        area=np.ones(m),
        ignore=np.array(ignore if ignore is not None else [False] * m, dtype=bool),
        crowd=np.zeros(m, bool),
        box_ids=np.arange(1, m + 1),
        classes=("thing",),
        category_ids=(1,),
    )


def statistics(annotations: Annotations, levels=ONE_PER_CELL, **options):
    return fusion_statistics(annotations, partial(best_anchor, levels=levels), STRIDES, size=None, **options)


@pytest.mark.parametrize("levels", [ONE_PER_CELL, NINE_PER_CELL], ids=["one", "nine"])
def test_v1_counts_and_factors_of_two_images(levels):
    found = statistics(table(A, B), levels, raw=True)
    assert found.counts == (10, 6, 2, 1, 0)
    assert found.edges == ("a23", "a34", "a45")
    assert_allclose(found.factors, [6 / 10, 2 / 6, (1 + 0) / 2], rtol=0)


def test_v2_the_last_factor_adds_the_level_made_by_subsampling():
    found = statistics(table(A, B, C))
    assert found.counts == (10, 6, 2, 1, 2)
    assert found.factors == (0.6, 0.333, 1.5)


def test_v3_nothing_above_an_edge_gives_zero_raw_and_the_clamps_floor_otherwise():
    assert statistics(table(A), raw=True).factors == (0.5, 0.5, 0.0)
    assert statistics(table(A)).factors == (0.5, 0.5, 0.2)


def test_v4_clamp_and_rounding():
    assert_allclose(factors([100, 5, 12, 1, 0], raw=True), [0.05, 2.4, 1 / 12], rtol=1e-15)
    assert factors([100, 5, 12, 1, 0]) == (0.2, 2.0, 0.2)


def test_v5_objects_that_share_an_anchor_count_once_or_each():
    with pytest.warns(UserWarning, match="P3"):
        assert statistics(table(DUPLICATES)).counts == (1, 0, 0, 0, 0)
    with pytest.warns(UserWarning, match="P3"):
        assert statistics(table(DUPLICATES), count="objects").counts == (3, 0, 0, 0, 0)


def test_the_same_anchor_in_two_images_counts_twice():
    with pytest.warns(UserWarning, match="P3"):
        assert statistics(table(DUPLICATES, DUPLICATES)).counts == (2, 0, 0, 0, 0)


def test_an_empty_level_below_an_edge_gives_one_and_names_the_level():
    with pytest.warns(UserWarning, match="no object falls on P4"):
        assert factors([4, 2, 0, 3, 1], levels=("P2", "P3", "P4", "P5", "P6")) == (0.5, 0.2, 1.0)


def test_levels_without_an_extra_one_end_in_a_plain_ratio():
    # P2..P5 with nothing made from P5; and P3..P7 with two levels made from P5.
    assert_allclose(factors([8, 4, 2, 3], extra_levels=0, raw=True), [0.5, 0.5, 1.5], rtol=0)
    assert_allclose(factors([8, 4, 2, 1, 3], extra_levels=2, raw=True), [0.5, 1.5], rtol=0)
    with pytest.raises(UserError, match="nothing is fused"):
        factors([8, 4], extra_levels=1)


def test_ignore_regions_are_no_objects_and_boxes_outside_are_kept_or_reported():
    with pytest.warns(UserWarning, match="P3"):
        found = statistics(table([(10, 10, 8), (64, 64, 60)], ignore=[False, True]))
    assert found.counts == (1, 0, 0, 0, 0)
    # Half outside: kept as it is; its best 8-px anchor is the one centred at (2, 10), not a clipped one.
    matches = best_anchor(np.array([[-4.0, 6, 4, 14]]), np.array([[128, 128]]), ONE_PER_CELL)
    assert (matches.level.tolist(), matches.location.tolist()) == ([0], [2 * 32])
    # No anchor touches the one far outside, nor the one without area.
    with pytest.warns(UserWarning, match="P3"):
        assert statistics(table([(10, 10, 8), (900, 900, 4), (20, 20, 0)])).unmatched == 2


def test_unknown_image_size_is_refused_with_the_image_named():
    unknown = table(A, size=(-1, -1))
    with pytest.raises(UserError, match=r"0\.png.*--size"):
        statistics(unknown)
    given_size = fusion_statistics(
        unknown, partial(best_anchor, levels=ONE_PER_CELL), STRIDES, size=(128, 128), raw=True
    )
    assert given_size.counts == (8, 4, 2, 0, 0)


def test_no_boxes_at_all():
    with pytest.warns(UserWarning, match="P2"):
        assert statistics(table([], [])).factors == (1.0, 1.0, 1.0)


def test_facts_for_data_inspect():
    assert fusion_facts(table(A, B)) == {
        "anchors": [8, 16, 32, 64, 128],
        "counts": {"P2": 10, "P3": 6, "P4": 2, "P5": 1, "P6": 0},
        "factors": {"a23": 0.6, "a34": 0.333, "a45": 0.5},
    }
    assert fusion_facts(table(A, size=(-1, -1))) is None
    assert fusion_facts(table([], [])) is None


# --- the full search, in three arithmetics ---------------------------------------------------------------------------


def centers_and_shapes(levels: tuple[AnchorLevel, ...], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Every anchor of the pyramid in order: centres (A, 2) and shapes (A, 2)."""
    centers, shapes = [], []
    for level in levels:
        rows, columns = level.grid(np.array(size))
        for r in range(rows):
            for c in range(columns):
                for shape in level.shapes:
                    centers.append(((c + 0.5) * level.stride, (r + 0.5) * level.stride))
                    shapes.append(shape)
    return np.array(centers), np.array(shapes)


def full_search(boxes: np.ndarray, levels: tuple[AnchorLevel, ...], size: tuple[int, int]) -> np.ndarray:
    """Argmax over all anchors, -1 where nothing overlaps; the overlap is written as in the module."""
    centers, shapes = centers_and_shapes(levels, size)
    box_centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    shared = axis_overlap(np.abs(centers - box_centers[:, None]), sides[:, None], shapes).prod(-1)
    overlap = shared / ((sides.prod(-1)[:, None] + shapes.prod(-1)) - shared)
    return np.where(overlap.max(1) > 0, overlap.argmax(1), -1)


def full_search_corners(boxes: np.ndarray, levels: tuple[AnchorLevel, ...], size: tuple[int, int]) -> np.ndarray:
    """The same by corners and the package's IoU; exact for sides and corners that are multiples of 1/8."""
    centers, shapes = centers_and_shapes(levels, size)
    overlap = box_algebra.iou(boxes, np.concatenate([centers - shapes / 2, centers + shapes / 2], 1))
    return np.where(overlap.max(1) > 0, overlap.argmax(1), -1)


def near_search(boxes: np.ndarray, levels: tuple[AnchorLevel, ...], size: tuple[int, int]) -> np.ndarray:
    matches = best_anchor(boxes, np.tile(size, (len(boxes), 1)), levels)
    result = np.full(len(boxes), -1)
    result[matches.box] = matches.location
    return result


def some_boxes(step: float) -> st.SearchStrategy[list[list[float]]]:
    """Boxes on a grid of `step` pixels, from a fraction of a pixel to larger than the image, inside and outside of it."""
    span = round(1 / step)
    corner, side = st.integers(-40 * span, 160 * span), st.one_of(st.integers(1, 12 * span), st.integers(1, 200 * span))
    box = st.tuples(corner, corner, side, side).map(
        lambda b: [v * step for v in (b[0], b[1], b[0] + b[2], b[1] + b[3])]
    )
    return st.lists(box, min_size=1, max_size=12)


DYADIC = (
    AnchorLevel(4, np.array([[8.0, 8.0], [4.0, 16.0], [8.0, 8.0]])),  # a repeated shape: a tie at every cell
    AnchorLevel(8, np.array([[16.0, 16.0], [8.0, 8.0]])),  # the finer level's shape again: ties between levels
    AnchorLevel(32, np.array([[64.0, 32.0]])),
)


@settings(max_examples=60, deadline=None)
@given(boxes=some_boxes(0.5), size=st.sampled_from([(96, 128), (100, 60), (33, 47)]))
def test_near_search_equals_the_full_search_ties_included(boxes, size):
    """Half-pixel boxes lie midway between anchors all the time; large ones have plateaus of equal anchors inside them."""
    boxes = np.array(boxes)
    for levels in (ONE_PER_CELL, DYADIC):
        expected = full_search_corners(boxes, levels, size)
        assert_array_equal(full_search(boxes, levels, size), expected)
        assert_array_equal(near_search(boxes, levels, size), expected)


@settings(max_examples=30, deadline=None)
@given(boxes=some_boxes(0.3), size=st.sampled_from([(96, 128), (40, 70)]))
def test_near_search_equals_the_full_search_where_sides_are_irrational(boxes, size):
    boxes = np.array(boxes)
    assert_array_equal(near_search(boxes, NINE_PER_CELL, size), full_search(boxes, NINE_PER_CELL, size))


@settings(max_examples=40, deadline=None)
@given(
    corner=st.tuples(*[st.floats(-30, 150)] * 2),
    side=st.tuples(*[st.floats(0.1, 150)] * 2),
    size=st.sampled_from([(96, 128), (40, 70)]),
)
def test_near_search_finds_the_highest_iou_of_arbitrary_floats(corner, side, size):
    boxes = np.array([[*corner, corner[0] + side[0], corner[1] + side[1]]])
    centers, shapes = centers_and_shapes(NINE_PER_CELL, size)
    overlap = box_algebra.iou(boxes, np.concatenate([centers - shapes / 2, centers + shapes / 2], 1))[0]
    found = near_search(boxes, NINE_PER_CELL, size)[0]
    assert_allclose(overlap[found] if found >= 0 else 0.0, overlap.max(), rtol=1e-9, atol=1e-12)


def test_near_search_against_exact_fractions():
    """No rounding at all: thirds of a pixel, in rational numbers."""
    rng = np.random.default_rng(0)
    thirds = rng.integers(-20, 200, (12, 2)), rng.integers(1, 90, (12, 2))
    boxes = [[Fraction(int(a), 3) for a in (x, y, x + w, y + h)] for (x, y), (w, h) in zip(*thirds, strict=True)]
    size, levels = (64, 64), anchor_levels((4, 8, 16), (8, 16, 32))
    centers, shapes = centers_and_shapes(levels, size)
    expected = []
    for x1, y1, x2, y2 in boxes:
        best, row = Fraction(0), -1
        for i, ((cx, cy), (w, h)) in enumerate(zip(centers.tolist(), shapes.tolist(), strict=True)):
            cx, cy, w, h = (Fraction(v) for v in (cx, cy, w, h))
            dx = min(x2, cx + w / 2) - max(x1, cx - w / 2)
            dy = min(y2, cy + h / 2) - max(y1, cy - h / 2)
            shared = dx * dy if dx > 0 and dy > 0 else Fraction(0)
            overlap = shared / ((x2 - x1) * (y2 - y1) + w * h - shared)
            if overlap > best:
                best, row = overlap, i
        expected.append(row)
    assert_array_equal(near_search(np.array(boxes, dtype=float), levels, size), expected)


def test_images_of_different_sizes_are_counted_on_their_own_grids():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 100, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (40, 2))], 1)
    sizes = rng.integers(64, 160, (40, 2))
    found = best_anchor(boxes, sizes, NINE_PER_CELL)
    one_by_one = [near_search(boxes[i : i + 1], NINE_PER_CELL, tuple(sizes[i]))[0] for i in range(40)]
    assert_array_equal(found.location, one_by_one)


# --- points ----------------------------------------------------------------------------------------------------------


def naive_points(box: np.ndarray, size: tuple[int, int], strides, ranges, radius: float) -> set[tuple[int, int]]:
    claimed, number = set(), 0
    for level, (stride, (low, high)) in enumerate(zip(strides, ranges, strict=True)):
        for r in range(-(-size[0] // stride)):
            for c in range(-(-size[1] // stride)):
                x, y = (c + 0.5) * stride, (r + 0.5) * stride
                sides = (x - box[0], y - box[1], box[2] - x, box[3] - y)
                off = max(abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2))
                if min(sides) > 0 and low < max(sides) <= high and off < radius * stride:
                    claimed.add((level, number))
                number += 1
    return claimed


@settings(max_examples=40, deadline=None)
@given(boxes=some_boxes(0.5))
def test_points_near_each_box_equal_all_points(boxes):
    boxes, size = np.array(boxes), (96, 128)
    found = assigned_points(boxes, np.tile(size, (len(boxes), 1)), STRIDES)
    for i, box in enumerate(boxes):
        pairs = set(zip(found.level[found.box == i].tolist(), found.location[found.box == i].tolist(), strict=True))
        assert pairs == naive_points(box, size, STRIDES, point_ranges(STRIDES), 1.5)


def test_ranges_of_adap_fcos():
    assert point_ranges(STRIDES) == ((-1, 16), (16, 32), (32, 64), (64, 128), (128, np.inf))


def test_objects_and_points_of_an_anchor_free_head():
    # 8 px at (10, 10) spans 6..14. P2 has points at 6, 10, 14: two of them on its border, so one point.
    # 40 px at (40, 40) spans 20..60. P2: the farthest side of any point is 20 px or more away: none (at most 16).
    # P3 (16, 32], points 28, 36, 44, 52; less than 12 px from 40 are 36 and 44, whose farthest side is 24 px away: 2x2.
    # P4 (32, 64], points 24, 40, 56, all less than 24 px from 40; the farthest side is 36 px away, but 20 for (40, 40): 3x3 - 1.
    assign = partial(assigned_points, strides=STRIDES)
    both = table([(10, 10, 8), (40, 40, 40)])
    assert fusion_statistics(both, assign, STRIDES, size=None).counts == (1, 4, 8, 0, 0)
    assert fusion_statistics(both, assign, STRIDES, size=None, count="objects").counts == (1, 1, 1, 0, 0)


def test_any_function_may_assign():
    def smallest_by_height(boxes: np.ndarray, sizes: np.ndarray) -> Matches:
        level = np.searchsorted([12, 24], boxes[:, 3] - boxes[:, 1])
        return Matches(np.arange(len(boxes)), level, np.arange(len(boxes)))

    found = fusion_statistics(table(A), smallest_by_height, (4, 8, 16), size=None, raw=True, extra_levels=0)
    assert found.counts == (8, 4, 2)


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match="2 anchor sizes for 3 strides"):
        anchor_levels((4, 8, 16), (8, 16))
    with pytest.raises(UserError, match="positive"):
        anchor_levels((4, 8), (8, -16))
