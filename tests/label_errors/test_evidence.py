from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.evaluate.detections import DetectionTable
from flyspeck.label_errors.evidence import FLOOR, GATE, NEIGHBOUR, SAME, apart, gather, near_pairs, offsets
from planted_errors import table


def found(
    boxes: list[list[float]], scores: list[float], labels: list[int], image: list[int] | None = None
) -> DetectionTable:
    return DetectionTable.from_columns(
        image_index=[0] * len(boxes) if image is None else image, boxes=boxes, scores=scores, labels=labels
    )


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        # a shift by half the size of 40 px: 20 / (40 + 1)
        ([0, 0, 40, 40], [20, 0, 60, 40], 20 / 41),
        # the same of 4 px: 2 / (4 + 1)
        ([0, 0, 4, 4], [2, 0, 6, 4], 2 / 5),
        # one centre; sides 8 and 4 differ by 4, a quarter of twice 16 under the root; sizes 8 and 4: sqrt(8) / (sqrt(32) + 1)
        ([0, 0, 8, 8], [2, 2, 6, 6], 8**0.5 / (32**0.5 + 1)),
        ([5, 5, 6, 6], [5, 5, 6, 6], 0),
        # 1 px, one pixel off both ways: sqrt(2) / 2, though the IoU is 0
        ([0, 0, 1, 1], [1, 1, 2, 2], 2**0.5 / 2),
    ],
)
def test_apart_by_hand(one: list[float], other: list[float], wanted: float) -> None:
    a, b = np.array([one], float), np.array([other], float)
    assert apart(a, b)[0] == pytest.approx(wanted)
    assert apart(b, a)[0] == pytest.approx(wanted)
    assert np.hypot(*offsets(a, b))[0] == pytest.approx(wanted)


@given(st.integers(0, 10_000), st.sampled_from([SAME, GATE, NEIGHBOUR]))
def test_near_pairs_are_those_of_a_plain_loop(seed: int, most: float) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        corner, side = rng.uniform(0, 60, (count, 2)), rng.choice([0.5, 1, 2, 8, 40], (count, 2))
        return np.concatenate([corner, corner + side], 1), rng.integers(0, 2, count)

    (boxes, image), (others, other_image) = some(12), some(9)
    wanted = {
        (i, j)
        for i in range(12)
        for j in range(9)
        if image[i] == other_image[j] and apart(boxes[i : i + 1], others[j : j + 1])[0] <= most
    }
    pairs = near_pairs(boxes, image, others, other_image, most)
    assert set(zip(pairs.detection.tolist(), pairs.truth.tolist(), strict=True)) == wanted


def test_classes_at_one_place_are_one_sight() -> None:
    truth = table(np.array([[10, 10, 16, 16]]), np.array([0]), np.array([0]))
    evidence = gather(truth, found([[10, 10, 16, 17], [10, 10, 16, 16], [40, 40, 44, 44]], [0.3, 0.6, 0.2], [1, 0, 1]))
    np.testing.assert_array_equal(evidence.boxes, [[10, 10, 16, 16], [40, 40, 44, 44]])
    np.testing.assert_array_equal(evidence.scores, [[0.6, 0.3], [FLOOR, 0.2]])
    np.testing.assert_array_equal(evidence.partner, [0, -1])
    np.testing.assert_array_equal(evidence.sight, [0])
    assert evidence.label.tolist() == [0, 1]
    assert evidence.crowding.tolist() == [NEIGHBOUR, NEIGHBOUR]  # the one has no other annotation, the other none near


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 8])
def test_tiny_objects_side_by_side_keep_their_own_sights(side: int) -> None:
    """Five boxes in a row, a size apart, of which the detector is half a pixel off: one to one, in order."""
    left = np.arange(5) * (side + 1.0) + 10
    boxes = np.stack([left, np.full(5, 20.0), left + side, np.full(5, 20.0 + side)], 1)
    truth = table(boxes, np.zeros(5), np.zeros(5))
    evidence = gather(truth, found((boxes + np.array([0.3, 0, 0.3, 0])).tolist(), [0.9, 0.5, 0.8, 0.7, 0.6], [0] * 5))
    assert len(evidence.image) == 5
    np.testing.assert_allclose(evidence.boxes[evidence.sight], boxes + np.array([0.3, 0, 0.3, 0]))
    np.testing.assert_allclose(evidence.distance, 0.3 / (side + 1), rtol=1e-6)


def test_what_lies_under_an_ignore_region_says_nothing() -> None:
    boxes = np.array([[0, 0, 50, 50], [60, 60, 66, 66]])
    truth = table(boxes, np.zeros(2), np.zeros(2), ignore=np.array([True, False]))
    evidence = gather(truth, found([[10, 10, 16, 16], [47, 47, 53, 53], [60, 60, 66, 66]], [0.9, 0.8, 0.7], [0, 0, 0]))
    np.testing.assert_array_equal(evidence.hidden, [True, False, False])  # a quarter under it is not hidden
    np.testing.assert_array_equal(evidence.partner, [-1, -1, 1])
    np.testing.assert_array_equal(evidence.sight, [-1, 2])


def test_nothing_at_all() -> None:
    none = table(np.zeros((0, 4)), np.zeros(0), np.zeros(0), num_images=2)
    some = table(np.array([[1, 1, 3, 3]]), np.array([1]), np.array([0]))
    assert len(gather(none, DetectionTable.empty()).image) == 0
    assert gather(some, DetectionTable.empty()).sight.tolist() == [-1]
    assert gather(none, found([[1, 1, 3, 3]], [0.5], [0])).partner.tolist() == [-1]


@given(st.integers(0, 1000))
def test_the_order_of_detections_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 40, (30, 2)), rng.uniform(1, 8, (30, 2))
    boxes = np.concatenate([corner, corner + side], 1)
    truth = table(boxes[:12], rng.integers(0, 2, 12), np.sort(rng.integers(0, 2, 12)))
    detections = DetectionTable.from_columns(
        image_index=rng.integers(0, 2, 22),
        boxes=boxes[8:],
        scores=rng.permutation(22) / 22,
        labels=rng.integers(0, 2, 22),
    )
    first = gather(truth, detections)
    second = gather(truth, detections.select(rng.permutation(22)))
    for name in ("image", "boxes", "scores", "partner", "sight", "distance", "crowding"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
