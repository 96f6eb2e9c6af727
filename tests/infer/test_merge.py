from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flyspeck.errors import UserError
from flyspeck.infer import merge as merge_module
from flyspeck.infer import tiles as tiling
from flyspeck.infer.merge import METHODS, MergeRule, in_own_part, merge
from flyspeck.types import Detections

SIZE = (100, 140)
TILES = tiling.grid(SIZE, (60, 60), 20)


def scene(seed: int, n: int) -> tuple[Detections, np.ndarray]:
    """What a jittery detector reports in the tiles of a crowd: duplicates, parts at borders, ties in score."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, (SIZE[1] - 1, SIZE[0] - 1), (n, 2))
    objects = np.concatenate([corner, corner + rng.choice([1.0, 3.0, 8.0, 18.0, 30.0], (n, 2))], axis=1)
    kinds = rng.integers(0, 2, n)
    boxes, scores, labels, own = [], [], [], []
    for index, (x1, y1, x2, y2) in enumerate(TILES):
        for box, kind in zip(objects, kinds, strict=True):
            seen = np.array([max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2)])
            if (seen[2:] - seen[:2]).min() <= 0.5 or rng.random() < 0.1:
                continue
            boxes.append(seen + rng.choice([0, 0, 0.25, -0.5], 4))
            scores.append(rng.choice([0.2, 0.5, 0.8]))
            labels.append(kind if rng.random() < 0.9 else 1 - kind)
            own.append(index)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    found = Detections(array, np.array(scores), np.array(labels, np.int64), SIZE, ("a", "b"))
    own_array = np.array(own, np.int64)
    cut = tiling.is_cut(array, TILES[own_array], SIZE)
    return Detections(array, found.scores, found.labels, SIZE, ("a", "b"), extra={"cut": cut}), own_array


# TILES start at x 0, 40, 80 and y 0, 40, and are 60 long: the middles of the overlaps are x 50 and 90, y 50.
PARTS_X, PARTS_Y = [(-1e9, 50), (50, 90), (90, 1e9)], [(-1e9, 50), (50, 1e9)]
WHATEVER = MergeRule(owned=False)  # for the rules that hold among the boxes that stay


def slow_owned(box: list[float], tile: int) -> bool:
    """Whether a box has its centre in its tile's part, give or take a quarter of its side and 1 px."""
    for low, high, (first, last) in ((box[0], box[2], PARTS_X[tile % 3]), (box[1], box[3], PARTS_Y[tile // 3])):
        centre, slack = (low + high) / 2, 1 + (high - low) / 4
        if not first - slack <= centre <= last + slack:
            return False
    return True


def slow_deep(box: list[float], tile: int) -> bool:
    """Whether a tenth of a box's longer side lies between it and every border of its tile that is not the image's."""
    x1, y1, x2, y2 = TILES[tile].tolist()
    gaps = [box[0] - x1 if x1 > 0 else 1e9, box[1] - y1 if y1 > 0 else 1e9]
    gaps += [x2 - box[2] if x2 < SIZE[1] else 1e9, y2 - box[3] if y2 < SIZE[0] else 1e9]
    return min(gaps) >= float(np.float32(0.1) * np.float32(max(box[2] - box[0], box[3] - box[1])))


def shared_area(a: list[float], b: list[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def area(a: list[float]) -> float:
    return max(0.0, a[2] - a[0]) * max(0.0, a[3] - a[1])


def slow_merge(
    found: Detections, own: np.ndarray | None, rule: MergeRule
) -> list[tuple[tuple[float, ...], float, int]]:
    """The rules of `merge` for NMS, NMM and weighted fusion, box by box, as a reader would write them down."""
    witness = [False] * len(found)
    if own is not None and rule.owned:
        told = list(zip(found.boxes.tolist(), own.tolist(), found.extra["cut"].tolist(), strict=True))
        owned = np.array([slow_owned(box, tile) for box, tile, _ in told], bool)
        deep = np.array([not cut and slow_deep(box, tile) for box, tile, cut in told], bool)
        stays = owned | (deep & rule.witnesses & (rule.method != "nmm"))
        found, own, witness = found[stays], own[stays], (~owned[stays]).tolist()
    frames = [[0.0] * 4] * len(found) if own is None else TILES[own].astype(float).tolist()
    cut = found.extra["cut"].tolist() if own is not None else [False] * len(found)
    # Areas are ranked in float32 like the boxes themselves.
    seen_area = (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])
    rows = [
        (
            *(
                2 if cut[k] else int(witness[k]),
                -float(seen_area[k]) if cut[k] else 0.0,
                -float(found.scores[k]),
                int(found.labels[k]),
            ),
            *(tuple(found.boxes[k].astype(float).tolist()), tuple(frames[k]), -1 if own is None else int(own[k])),
        )
        for k in range(len(found))
    ]
    rows.sort()
    groups: list[list[int]] = []
    for j, (rank_j, _, _, label_j, box_j, frame_j, own_j) in enumerate(rows):
        for group in groups:
            rank_i, _, _, label_i, box_i, _, own_i = rows[group[0]]
            cut_i, cut_j = rank_i == 2, rank_j == 2
            apart = own is None or rule.within_tile or own_i != own_j
            shared = shared_area(box_i, box_j)
            whole = min(area(box_i), area(box_j)) if rule.metric == "ios" else area(box_i) + area(box_j) - shared
            alike = label_i == label_j
            overlaps = shared > 0 and (shared / whole >= rule.threshold or slow_tiny(box_i, box_j, shared, rule))
            same = overlaps and apart and (alike or not rule.class_aware)
            if own is not None and cut_j and own_i != own_j and (alike or not cut_i):
                part = [max(box_i[0], frame_j[0]), max(box_i[1], frame_j[1])]
                part += [min(box_i[2], frame_j[2]), min(box_i[3], frame_j[3])]
                visible = shared_area(part, box_j)
                same |= visible > 0 and visible >= rule.threshold * (area(part) + area(box_j) - visible)
                same |= visible > 0 and not cut_i and visible >= 0.5 * area(box_j)
            if same:
                group.append(j)
                break
        else:
            groups.append([j])
    # A witness alone is nothing.
    return [fuse([rows[k] for k in group], rule.method) for group in groups if any(rows[k][0] != 1 for k in group)]


def slow_tiny(a: list[float], b: list[float], shared: float, rule: MergeRule) -> bool:
    """Whether `tiny` takes two boxes for one object, whatever their IoU."""
    smaller, *sides = min(area(a), area(b)), max(a[2] - a[0], a[3] - a[1]), max(b[2] - b[0], b[3] - b[1])
    if rule.method != "tiny" or rule.threshold * max(sides) > min(sides) or smaller >= 48**2:
        return False
    return shared > smaller * (0.51 + 0.49 * max(0, smaller**0.5 - 8) / 40)


def slow_vote(a: list[float], b: list[float]) -> float:
    shared = shared_area(a, b)
    overlap = shared / max(area(a) + area(b) - shared, 1e-9)
    return 1.0 if a == b else min(1.0, max(0.0, (overlap - 0.35) / 0.1))


def fuse(rows: list[tuple], method: str) -> tuple[tuple[float, ...], float, int]:
    best = rows[0]
    alike = [r for r in rows if r[3] == best[3]]
    score = max(-r[2] for r in alike)
    members = [r for r in alike if r[0] != 2 or (best[0] == 2 if method == "nmm" else r is best)]
    box = best[4]
    if method == "nmm":
        box = tuple(min(r[4][k] for r in members) for k in (0, 1)) + tuple(
            max(r[4][k] for r in members) for k in (2, 3)
        )
    elif method == "wbf":
        box = tuple(sum(-r[2] * r[4][k] for r in members) / sum(-r[2] for r in members) for k in range(4))
    elif method == "tiny":
        weights = [-r[2] * slow_vote(best[4], r[4]) for r in members]
        box = tuple(sum(w * r[4][k] for w, r in zip(weights, members, strict=True)) / sum(weights) for k in range(4))
    return box, score, best[3]


def as_rows(found: Detections) -> list[tuple[tuple[float, ...], float, int]]:
    return [
        (tuple(b), float(s), int(c))
        for b, s, c in zip(found.boxes.astype(float).tolist(), found.scores, found.labels, strict=True)
    ]


def assert_same(found: Detections, expected: list[tuple[tuple[float, ...], float, int]]) -> None:
    assert len(found) == len(expected)
    got = sorted(as_rows(found), key=lambda r: (r[2], r[1], r[0]))
    want = sorted(expected, key=lambda r: (r[2], r[1], r[0]))
    assert [r[2] for r in got] == [r[2] for r in want]
    assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-6)
    assert_allclose([r[0] for r in got], [r[0] for r in want], atol=1e-4)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n=st.integers(0, 60),
    method=st.sampled_from(["nms", "nmm", "wbf", "tiny"]),
    metric=st.sampled_from(["iou", "ios"]),
    threshold=st.sampled_from([0.2, 0.4, 0.7]),
    class_aware=st.booleans(),
    within_tile=st.booleans(),
    owned=st.booleans(),
    witnesses=st.booleans(),
    tiled=st.booleans(),
)
def test_equals_the_slow_twin(
    seed, n, method, metric, threshold, class_aware, within_tile, owned, witnesses, tiled
) -> None:
    rule = MergeRule(
        method=method,
        metric=metric,
        threshold=threshold,
        class_aware=class_aware,
        within_tile=within_tile,
        owned=owned,
        witnesses=witnesses,
    )
    found, own = scene(seed, n)
    if tiled:
        assert_same(merge(found, tiles=TILES, tile_index=own, rule=rule), slow_merge(found, own, rule))
    else:
        plain = Detections(found.boxes, found.scores, found.labels, SIZE, found.classes)
        assert_same(merge(plain, rule=rule), slow_merge(plain, None, rule))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), method=st.sampled_from(METHODS), shuffle=st.integers(0, 1000))
def test_the_order_of_tiles_and_boxes_does_not_show(seed: int, method: str, shuffle: int) -> None:
    found, own = scene(seed, 40)
    rule = MergeRule(method=method)
    merged = merge(found, tiles=TILES, tile_index=own, rule=rule)
    rng = np.random.default_rng(shuffle)
    boxes, tiles = rng.permutation(len(found)), rng.permutation(len(TILES))
    again = merge(found[boxes], tiles=TILES[tiles], tile_index=np.argsort(tiles)[own[boxes]], rule=rule)
    assert_array_equal(again.boxes, merged.boxes)
    assert_array_equal(again.scores, merged.scores)
    assert_array_equal(again.labels, merged.labels)
    assert_array_equal(again.extra["cut"], merged.extra["cut"])


def test_long_chains_are_walked_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # 400 boxes of 10 px, each 2 px right of the last and a little worse: IoU 8/12 with the next, 6/14 with the one after.
    # At 0.5 only neighbours are duplicates, so greedy keeps every second one, whatever the number of vectorised rounds.
    x = 2.0 * np.arange(400)
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    found = Detections(boxes, np.linspace(0.9, 0.1, 400), np.zeros(400), (10, 1000))
    for rounds in (0, 1, 50, 1000):
        monkeypatch.setattr(merge_module, "_ROUNDS", rounds)
        kept = merge(found, rule=MergeRule(threshold=0.5))
        assert_allclose(kept.boxes[:, 0], x[::2])


def two_tiles(boxes: list, scores: list, labels: list, own: list) -> tuple[Detections, np.ndarray, np.ndarray]:
    tiles = np.array([[0, 0, 60, 60], [40, 0, 100, 60]])
    array = np.array(boxes, np.float32).reshape(-1, 4)
    cut = tiling.is_cut(array, tiles[own], (60, 100))
    return Detections(array, scores, labels, (60, 100), extra={"cut": cut}), tiles, np.array(own)


def test_a_part_yields_to_the_whole_though_its_score_is_higher() -> None:
    # A 12 px object at x 52..64: the left tile sees its first 8 px with 0.9, the right tile all of it with 0.6.
    found, tiles, own = two_tiles([[52, 10, 60, 22], [52, 10, 64, 22]], [0.9, 0.6], [0, 0], [0, 1])
    kept = merge(found, tiles=tiles, tile_index=own, rule=WHATEVER)
    assert_array_equal(kept.boxes, [[52, 10, 64, 22]])
    assert_allclose(kept.scores, [0.9], rtol=1e-6)
    assert not kept.extra["cut"].any()


def test_a_sliver_of_another_class_yields_and_lends_no_score() -> None:
    found, tiles, own = two_tiles([[57, 10, 60, 22], [57, 10, 69, 22]], [0.9, 0.6], [1, 0], [0, 1])
    kept = merge(found, tiles=tiles, tile_index=own, rule=WHATEVER)
    assert_array_equal(kept.boxes, [[57, 10, 69, 22]])
    assert_allclose(kept.scores, [0.6], rtol=1e-6)


def test_a_part_that_nothing_explains_stays() -> None:
    found, tiles, own = two_tiles([[52, 10, 60, 22], [70, 10, 82, 22]], [0.9, 0.6], [0, 0], [0, 1])
    kept = merge(found, tiles=tiles, tile_index=own, rule=WHATEVER)
    assert_array_equal(kept.extra["cut"], [True, False])


def test_a_crowd_within_one_tile_is_left_alone() -> None:
    # IoU 7/9 in one tile: the detector kept both, so do we; seen from two tiles they would be one.
    boxes = [[45, 10, 53, 18], [46, 10, 54, 18]]
    found, tiles, own = two_tiles(boxes, [0.9, 0.8], [0, 0], [0, 0])
    assert len(merge(found, tiles=tiles, tile_index=own)) == 2
    assert len(merge(found, tiles=tiles, tile_index=own, rule=MergeRule(within_tile=True))) == 1
    assert len(merge(found, tiles=tiles, tile_index=np.array([0, 1]))) == 1


def test_classes_are_merged_apart_unless_told() -> None:
    found, tiles, own = two_tiles([[45, 10, 53, 18]] * 2, [0.9, 0.8], [0, 1], [0, 1])
    assert len(merge(found, tiles=tiles, tile_index=own)) == 2
    assert len(merge(found, tiles=tiles, tile_index=own, rule=MergeRule(class_aware=False))) == 1


def test_nmm_and_fusion_worked_example() -> None:
    # IoU of [45,10,53,18] and [46,10,54,18]: 56/72. Hull 45..54; mean weighted 0.9 : 0.3 is 45.25..53.25.
    found, tiles, own = two_tiles([[45, 10, 53, 18], [46, 10, 54, 18]], [0.9, 0.3], [0, 0], [0, 1])
    joined = merge(found, tiles=tiles, tile_index=own, rule=MergeRule(method="nmm"))
    assert_allclose(joined.boxes, [[45, 10, 54, 18]])
    fused = merge(found, tiles=tiles, tile_index=own, rule=MergeRule(method="wbf"))
    assert_allclose(fused.boxes, [[45.25, 10, 53.25, 18]], rtol=1e-6)
    assert_allclose(fused.scores, [0.9], rtol=1e-6)


def test_tiny_worked_example() -> None:
    # Two tiles see an 8 px object three px apart: 40 of 64 px shared, above 0.51; IoU 0.4545, so the second counts in full.
    # A third sees a part of it, 4x4 within the first: an IoU of 1/4, and wholly shared. It moves nothing.
    boxes = [[50, 10, 58, 18], [53, 10, 61, 18], [52, 12, 56, 16]]
    found, tiles, own = two_tiles(boxes, [0.9, 0.6, 0.5], [0, 0, 0], [0, 1, 1])
    rule = MergeRule(method="tiny", owned=False, threshold=0.46)
    one = merge(found, tiles=tiles, tile_index=own, rule=rule)
    assert_allclose(one.boxes, [[50 + 3 * 0.6 / 1.5, 10, 58 + 3 * 0.6 / 1.5, 18]], rtol=1e-6)
    assert_allclose(one.scores, [0.9])
    assert len(merge(found, tiles=tiles, tile_index=own, rule=MergeRule(owned=False, threshold=0.46))) == 3


@pytest.mark.parametrize("side", [1.0, 2.0, 4.0, 8.0])
def test_tiny_neighbours_half_a_side_apart_stay_two(side: float) -> None:
    boxes = [[50, 10, 50 + side, 10 + side], [50 + side / 2, 10, 50 + 1.5 * side, 10 + side]]
    found, tiles, own = two_tiles(boxes, [0.9, 0.8], [0, 0], [0, 1])
    two = merge(found, tiles=tiles, tile_index=own, rule=MergeRule(method="tiny", owned=False))
    assert_allclose(two.boxes, boxes)


def test_soft_nms_worked_example() -> None:
    # Three in a row, IoU 56/72 between neighbours and 48/80 between the outer two; sigma 0.5. The best decays both, then
    # the better of what is left (0.7 * exp(-2 * 0.36) = 0.341 against 0.8 * exp(-2 * 0.605) = 0.239) decays the other.
    boxes = np.array([[0, 0, 8, 8], [1, 0, 9, 8], [2, 0, 10, 8]], np.float32)
    near, far = math.exp(-2 * (56 / 72) ** 2), math.exp(-2 * (48 / 80) ** 2)
    found = Detections(boxes, [0.9, 0.8, 0.7], [0, 0, 0], (20, 20))
    kept = merge(found, rule=MergeRule(method="soft-nms"))
    assert_allclose(kept.scores, [0.9, 0.7 * far, 0.8 * near * near], rtol=1e-5)
    assert_array_equal(kept.boxes, boxes[[0, 2, 1]])
    # With a floor of 0.1 the twice decayed one (0.8 * 0.298^2 = 0.071) goes.
    assert len(merge(found, rule=MergeRule(method="soft-nms", min_score=0.1))) == 2


@pytest.mark.parametrize("side", [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
@pytest.mark.parametrize("method", METHODS)
def test_tiny_neighbours_that_only_touch_stay_two(side: float, method: str) -> None:
    boxes = np.array([[50 - side, 10, 50, 10 + side], [50, 10, 50 + side, 10 + side]])
    found, tiles, own = two_tiles([*boxes, *boxes], [0.9, 0.8, 0.9, 0.8], [0, 0, 0, 0], [0, 0, 1, 1])
    kept = merge(found, tiles=tiles, tile_index=own, rule=MergeRule(method=method, min_score=0.2))
    assert_allclose(sorted(kept.boxes[:, 0]), boxes[:, 0])


def test_points_and_nothing_at_all() -> None:
    points = Detections([[5, 5, 5, 5], [5, 5, 5, 5]], [0.5, 0.5], [0, 0], SIZE)
    assert len(merge(points)) == 2  # boxes without area overlap nothing
    for method in METHODS:
        assert len(merge(Detections.empty(SIZE), rule=MergeRule(method=method))) == 0


@pytest.mark.parametrize(
    ("field", "value"), [("method", "nsm"), ("metric", "giou"), ("threshold", 0.0), ("threshold", 2.0)]
)
def test_unknown_rules_are_refused(field: str, value: object) -> None:
    with pytest.raises(UserError):
        MergeRule(**{field: value})  # pyright: ignore[reportArgumentType]


def test_a_place_is_left_to_the_tile_that_sees_it_farther_from_its_border() -> None:
    # Tiles 0..60 and 40..100: the middle is 50. At 54..58 the left tile's answer, 2 px from its border, gives way, though it is
    # the better scored and no duplicate by overlap (IoU 16/56 with the right tile's).
    found, tiles, own = two_tiles([[54, 10, 58, 14], [54, 10, 58, 24]], [0.9, 0.4], [0, 0], [0, 1])
    kept = merge(found, tiles=tiles, tile_index=own)
    assert_array_equal(kept.boxes, [[54, 10, 58, 24]])
    assert_allclose(kept.scores, [0.4], rtol=1e-6)
    assert len(merge(found, tiles=tiles, tile_index=own, rule=WHATEVER)) == 2
    # A right tile that was not run (skipped, or a hole) has judged nothing.
    left = found[np.array([0])]
    assert len(merge(left, tiles=tiles, tile_index=np.array([0]))) == 0
    kept = merge(left, tiles=tiles, tile_index=np.array([0]), ran=np.array([True, False]))
    assert_array_equal(kept.boxes, [[54, 10, 58, 14]])


def test_an_object_on_the_dividing_line_is_found_once_whichever_way_the_tiles_err() -> None:
    for left in (-0.6, -0.2, 0.2, 0.6):
        for right in (-0.6, -0.2, 0.2, 0.6):  # 4 px at 48..52: the tiles place its centre on any side of 50
            boxes = [[48 + d, 10, 52 + d, 14] for d in (left, right)]
            found, tiles, own = two_tiles(boxes, [0.9, 0.8], [0, 0], [0, 1])
            assert len(merge(found, tiles=tiles, tile_index=own)) == 1


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(30, 200),
    width=st.integers(30, 300),
    tile=st.integers(10, 60),
    overlap=st.integers(0, 59),
    seed=st.integers(0, 10_000),
)
def test_what_is_whole_in_some_tile_is_whole_where_it_belongs(
    height: int, width: int, tile: int, overlap: int, seed: int
) -> None:
    if overlap >= tile:
        return
    tiles = tiling.grid((height, width), (tile, tile), overlap)
    rng = np.random.default_rng(seed)
    side = rng.uniform(0.5, tile, (50, 2))
    corner = rng.uniform(0, 1, (50, 2)) * (np.array([width, height]) - side).clip(min=0)
    boxes = np.concatenate([corner, np.minimum(corner + side, (width, height))], axis=1)
    for box in boxes:
        inside = ((box[:2] >= tiles[:, :2]) & (box[2:] <= tiles[:, 2:])).all(axis=1)
        if inside.any():  # of the tiles that see all of it, one keeps its box
            rows = np.flatnonzero(inside)
            assert in_own_part(np.repeat(box[None], len(rows), axis=0), tiles, rows).any()


def test_tiles_that_are_no_grid_own_nothing() -> None:
    tiles = np.array([[0, 0, 60, 60], [40, 20, 100, 80]])
    assert in_own_part(np.array([[56, 30, 58, 32.0]]), tiles, np.array([0])).all()


def test_a_witness_confirms_and_is_nothing_by_itself() -> None:
    # The overlap is x 40 to 60, its middle 50: the place of the box at 52 is the second tile's.
    boxes = [[50, 10, 56, 16], [51, 10, 57, 16]]
    found, tiles, own = two_tiles(boxes, [0.9, 0.6], [0, 0], [0, 1])
    for method, x1 in (("nms", 51), ("wbf", 50.4), ("tiny", 50.4)):
        merged = merge(found, tiles=tiles, tile_index=own, rule=MergeRule(method=method))
        assert_allclose(merged.scores, [0.9])
        assert_allclose(merged.boxes[:, 0], [x1], atol=1e-5)
    for alone in (MergeRule(witnesses=False), MergeRule(method="nmm")):
        merged = merge(found, tiles=tiles, tile_index=own, rule=alone)
        assert_allclose(merged.scores, [0.6])
        assert_array_equal(merged.boxes, np.array([boxes[1]], np.float32))
    # Without one of its owner it is nothing, however sure; nearer to its border than a tenth of its side, it is no witness.
    assert len(merge(found[:1], tiles=tiles, tile_index=own[:1])) == 0
    near, tiles, own = two_tiles([[48.47, 10, 58.97, 20.5], [48.6, 10, 59.1, 20.5]], [0.9, 0.6], [0, 0], [0, 1])
    assert_allclose(merge(near, tiles=tiles, tile_index=own).scores, [0.6])
    # Another class is no witness.
    other, tiles, own = two_tiles(boxes, [0.9, 0.6], [1, 0], [0, 1])
    assert_allclose(merge(other, tiles=tiles, tile_index=own).scores, [0.6])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), method=st.sampled_from(["nms", "wbf", "tiny"]))
def test_witnesses_add_no_box_and_take_no_score(seed: int, method: str) -> None:
    found, own = scene(seed, 40)
    found = found[~found.extra["cut"]]
    own = own[~scene(seed, 40)[0].extra["cut"]]
    alone = merge(found, tiles=TILES, tile_index=own, rule=MergeRule(method=method, witnesses=False))
    both = merge(found, tiles=TILES, tile_index=own, rule=MergeRule(method=method))
    assert_allclose(np.sort(both.scores) >= np.sort(alone.scores) - 1e-6, True)
    assert len(both) == len(alone)


@pytest.mark.parametrize("places", ["own", "witnesses", "all"])
def test_whose_boxes_count_is_one_word(places: str) -> None:
    assert MergeRule.at(places, method="tiny").places == places
    assert MergeRule.at(places, method="tiny", threshold=0.3).threshold == 0.3
    assert MergeRule.at("witnesses", method="nmm").places == "own"
