from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck import boxes as box_algebra
from flyspeck.infer import pairs
from flyspeck.infer.pairs import BoxIndex


def random_boxes(seed: int, n: int, spread: float) -> np.ndarray:
    """Boxes whose sides span 0 to hundreds of pixels, many of them touching."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-spread / 10, spread, (n, 2))
    side = 2 ** rng.uniform(-1, 8, (n, 1)) * rng.uniform(0, 1.5, (n, 2))
    if seed % 2:
        corner, side = np.floor(corner), np.floor(side)
    return np.concatenate([corner, corner + side], axis=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([20.0, 200.0, 3000.0]), st.booleans())
def test_every_overlapping_pair_once(seed: int, n: int, spread: float, layered: bool) -> None:
    boxes = random_boxes(seed, n, spread)
    layer = np.arange(n) % 3 - 1 if layered else None
    found = [(int(a), int(b)) for i, j in BoxIndex(boxes, layer).pairs() for a, b in zip(i, j, strict=True)]
    assert len(found) == len(set(found))
    assert all(a < b for a, b in found)
    shared = box_algebra.intersection(boxes, boxes)
    expected = {(a, b) for a in range(n) for b in range(a + 1, n) if shared[a, b] > 0}
    if layer is not None:
        expected = {(a, b) for a, b in expected if layer[a] == layer[b]}
        assert all(layer[a] == layer[b] for a, b in found)
    assert expected <= set(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([20.0, 200.0]))
def test_around_gives_every_overlap_of_the_queries_once(seed: int, n: int, spread: float) -> None:
    boxes = random_boxes(seed, n, spread)
    queries = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.3)
    found = [(int(a), int(b)) for i, j in BoxIndex(boxes).around(queries) for a, b in zip(i, j, strict=True)]
    assert len(found) == len(set(found))
    shared = box_algebra.intersection(boxes, boxes)
    expected = {(int(a), b) for a in queries for b in range(n) if a != b and shared[a, b] > 0}
    assert expected <= set(found)
    assert {a for a, _ in found} <= set(queries.tolist())


def test_a_ratio_leaves_out_only_pairs_that_cannot_reach_the_iou() -> None:
    boxes = random_boxes(2, 300, 200.0)
    found = {(int(a), int(b)) for i, j in BoxIndex(boxes).pairs(max_ratio=2.0) for a, b in zip(i, j, strict=True)}
    iou = box_algebra.iou(boxes, boxes)
    alike = {(a, b) for a in range(300) for b in range(a + 1, 300) if iou[a, b] >= 0.5}
    assert alike
    assert alike <= found
    assert len(found) < sum(len(i) for i, _ in BoxIndex(boxes).pairs())


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_boxes(4, 200, 100.0)
    whole = {(int(a), int(b)) for i, j in BoxIndex(boxes).pairs() for a, b in zip(i, j, strict=True)}
    monkeypatch.setattr(pairs, "_CHUNK", 7)
    parts = [(int(a), int(b)) for i, j in BoxIndex(boxes).pairs() for a, b in zip(i, j, strict=True)]
    assert len(parts) == len(whole)
    assert set(parts) == whole


def test_no_boxes_and_broken_boxes() -> None:
    assert list(BoxIndex(np.zeros((0, 4))).pairs()) == []
    with pytest.raises(ValueError, match="finite"):
        BoxIndex(np.array([[0, 0, np.nan, 1]]))
