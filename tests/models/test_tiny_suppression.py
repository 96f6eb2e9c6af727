"""`tiny` suppression: by hand, against a slow twin, what must hold of it, and as an operator of a graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from flyspeck import one_object
from flyspeck.models import tiny_suppression as tiny
from flyspeck.models.postprocess import RawDetections, Suppression, suppress

SIZE = (200, 200)
TINY = Suppression(score=0.05, iou=0.5, method="tiny")
NMS = Suppression(score=0.05, iou=0.5)


def found(rows: list[tuple[list[float], float]], rule: Suppression = TINY, label: int = 0) -> RawDetections:
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32)
    scores = torch.tensor([score for _, score in rows], dtype=torch.float32)
    return suppress(boxes, scores, torch.full((len(rows),), label), SIZE, rule)


def candidates(seed: int, *, number: int = 60, largest: float = 14) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes that crowd about a few objects, and everywhere a little."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(10, 70, (number, 2))
    box = np.concatenate([corner, corner + rng.uniform(1, largest, (number, 2))], 1)[rng.integers(0, 9, number)]
    box = np.where(rng.random((number, 1)) < 0.1, rng.uniform(10, 70, (number, 1)) + np.array([0, 0, 5, 7]), box)
    box = box + rng.normal(0, 1, (number, 4))
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 0.5)
    scores = rng.uniform(0.06, 1, number)  # all apart
    return (
        torch.tensor(box, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(rng.integers(0, 2, number)),
    )


def shown(rows: list[tuple[list[float], float]], rule: Suppression = TINY) -> int:
    """Boxes from a score of 0.3 on; a duplicate has a quarter of 1 at most."""
    return int((found(rows, rule).scores >= 0.3).sum())


def test_two_boxes_of_a_tiny_object_by_hand() -> None:
    # 8 px, four pixels right and two down: they share 4x6 = 24 of 64 = 0.375, less than 0.51: two objects.
    first, far, third = [20.0, 20, 28, 28], [24.0, 22, 32, 30], [23.0, 20, 31, 28]
    assert shown([(first, 0.9), (far, 0.8)]) == 2
    # Three px off: 5x8 = 40 of 64 = 0.625, IoU 40 / 88 = 0.4545: NMS at 0.5 leaves both. Here the second keeps a quarter of
    # its score and its place, and the first moves: the other counts in full, its IoU being above 0.45.
    # (0.9 * 20 + 0.6 * 23) / 1.5 = 21.2.
    assert shown([(first, 0.9), (third, 0.6)], NMS) == 2
    both = found([(first, 0.9), (third, 0.6)])
    assert_allclose(both.boxes.numpy(), [[21.2, 20, 29.2, 28], third], rtol=1e-6)
    assert_allclose(both.scores.numpy(), [0.9, 0.15])
    # What falls to the threshold goes: a quarter of 0.2 is 0.05, and the threshold is not above it.
    assert len(found([(first, 0.9), (third, 0.2)]).scores) == 1
    # A duplicate goes behind what is now better.
    order = found([(first, 0.9), (third, 0.6), ([90.0, 90, 98, 98], 0.3)])
    assert_allclose(order.scores.numpy(), [0.9, 0.3, 0.15])
    # Half on the ramp: an IoU of 0.4 counts (0.4 - 0.35) / 0.1 = 1/2. Boxes of 7x1 three px apart have 4 / 10.
    thin = found([([20.0, 20, 27, 21], 0.8), ([23.0, 20, 30, 21], 0.8)])
    assert_allclose(thin.boxes.numpy()[0], [20 + 3 * 0.4 / 1.2, 20, 27 + 3 * 0.4 / 1.2, 21], rtol=1e-5)


def test_a_box_within_another() -> None:
    inside, around = [22.0, 22, 28, 28], [20.0, 20, 30, 30]  # 36 / 100: NMS keeps both
    assert shown([(around, 0.9), (inside, 0.8)], NMS) == 2
    assert shown([(around, 0.9), (inside, 0.8)]) == 1
    assert shown([(inside, 0.9), (around, 0.8)]) == 1


def test_the_bound_follows_the_smaller_box() -> None:
    sizes = np.array([1.0, 8, 28, 48, 100])
    assert_allclose(one_object.bound(sizes)[:3], [0.51, 0.51, 0.755])
    assert (one_object.bound(sizes)[3:] >= 1).all()
    # From 48 px on nothing loses that NMS leaves, not even what lies wholly within another.
    assert shown([([0.0, 0, 100, 100], 0.9), ([20.0, 20, 68.8, 68.8], 0.8)]) == 2
    assert shown([([0.0, 0, 100, 100], 0.9), ([20.0, 20, 60, 60], 0.8)]) == 1


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8, 12, 24])
@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_neighbours_half_a_side_apart_stay_as_they_are(side: int, axes: str) -> None:
    step = np.array([axes != "y", axes != "x"]) * side / 2
    corners = np.array([20, 20]) + np.arange(6)[:, None] * step  # a row of six
    rows = [([*c, *(c + side)], 0.9 - 0.05 * k) for k, c in enumerate(corners.tolist() and corners)]
    kept = found([([float(v) for v in box], score) for box, score in rows])
    assert_allclose(kept.boxes.numpy(), np.array([box for box, _ in rows]), rtol=1e-6)
    assert len(found([([float(v) for v in box], score) for box, score in rows], NMS).scores) == 6


def test_classes_do_not_meet() -> None:
    box = torch.tensor([[20.0, 20, 28, 28], [22.0, 22, 27, 27]])
    kept = suppress(box, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), SIZE, TINY)
    assert_allclose(kept.boxes.numpy(), box.numpy())


def slow(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> list[tuple[int, float, np.ndarray]]:
    """One box after the other, in the rule's own words: row, new score and new box, best first."""

    def overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
        wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(wide, 0) * max(tall, 0)
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return shared / (sum(areas) - shared), shared / min(areas), min(areas) ** 0.5

    def one_object_with(i: int, others: list[int]) -> bool:
        for j in others:
            _, share, side = overlap(boxes[i], boxes[j])
            if labels[i] == labels[j] and side < 48 and share > 0.51 + 0.49 * max(side - 8, 0) / 40:
                return True
        return False

    first: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(labels[i] == labels[j] and overlap(boxes[i], boxes[j])[0] > iou for j in first):
            first.append(i)
    kept: list[int] = []
    result = []
    for i in first:
        if one_object_with(i, kept):
            result.append((i, scores[i] / 4, boxes[i]))
            continue
        kept.append(i)
        weights = [
            scores[j] * min(max((overlap(boxes[i], boxes[j])[0] - 0.35) / 0.1, 0), 1) * (labels[i] == labels[j])
            for j in range(len(boxes))
        ]
        result.append((i, scores[i], np.average(boxes, axis=0, weights=weights)))
    return sorted([row for row in result if row[1] > 0.05], key=lambda row: -row[1])


@pytest.mark.parametrize("seed", range(25))
def test_slow_twin(seed: int) -> None:
    boxes, scores, labels = candidates(seed, largest=60 if seed % 5 == 0 else 14)
    kept = suppress(boxes, scores, labels, (10_000, 10_000), TINY)
    wanted = slow(boxes.double().numpy(), scores.numpy(), labels.numpy(), 0.5)
    assert_allclose(kept.scores.numpy(), [score for _, score, _ in wanted], rtol=1e-6)
    assert kept.labels.tolist() == [int(labels[i]) for i, _, _ in wanted]
    assert_allclose(kept.boxes.numpy(), np.array([place for _, _, place in wanted]), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_what_must_hold(seed: int) -> None:
    boxes, scores, labels = candidates(seed)
    rule = Suppression(score=0.0, iou=0.5, method="tiny")
    kept = suppress(boxes, scores, labels, SIZE, rule)
    plain = suppress(boxes, scores, labels, SIZE, Suppression(score=0.0, iou=0.5))
    # As many boxes as NMS leaves, each with its score or a quarter of it; the best of each class keeps its own.
    own = torch.isin(kept.scores, plain.scores)
    before = torch.where(own, kept.scores, 4 * kept.scores)
    assert_allclose(before.sort().values.numpy(), plain.scores.sort().values.numpy(), rtol=1e-6)
    assert kept.scores.tolist() == sorted(kept.scores.tolist(), reverse=True)
    assert all(scores[labels == k].max() in kept.scores for k in labels.unique())
    # The order of candidates is no matter.
    order = torch.tensor(np.random.default_rng(seed).permutation(len(boxes)))
    again = suppress(boxes[order], scores[order], labels[order], SIZE, rule)
    assert_allclose(again.scores.numpy(), kept.scores.numpy())
    assert_allclose(again.boxes.numpy(), kept.boxes.numpy(), atol=1e-4)
    # Nor is the scale of scores, and the mean of boxes lies among them.
    half = suppress(boxes, scores / 2, labels, SIZE, rule)
    assert_allclose(half.boxes.numpy(), kept.boxes.numpy(), atol=1e-4)
    low, high = boxes.min(0).values, boxes.max(0).values
    assert ((kept.boxes >= low - 1e-4) & (kept.boxes <= high + 1e-4)).all()
    # What stays is settled: before they moved, none of the boxes that stay was a duplicate of another.
    rows = torch.tensor([int((scores == s).nonzero()[0]) for s in kept.scores[own]])
    settled = boxes[rows]
    assert not len(tiny.duplicates(settled, labels[rows])[0])
    # And of those up to 8 px none overlaps another enough to move it (0.51 shared is an IoU of 0.342): once more changes nothing.
    least = (settled[:, 2:] - settled[:, :2]).max(1).values <= 8
    once = suppress(settled[least], scores[rows][least], labels[rows][least], SIZE, rule)
    assert_allclose(once.scores.numpy(), scores[rows][least].numpy())
    assert_allclose(once.boxes.numpy(), settled[least].numpy(), atol=1e-4)


def test_nothing_and_more_than_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    none = suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), SIZE, TINY)
    assert none.boxes.shape == (0, 4)
    # Beyond the best MOST boxes leave as NMS lets them, and beyond the best VOTERS they do not vote.
    monkeypatch.setattr(tiny, "MOST", 2)
    monkeypatch.setattr(tiny, "VOTERS", 2)
    pair = [([20.0, 20, 28, 28], 0.9), ([23.0, 20, 31, 28], 0.6)]
    lower = [([box[0] + 100, box[1], box[2] + 100, box[3]], score / 2) for box, score in pair]
    kept = found(pair + lower)
    assert_allclose(kept.boxes.numpy()[:, 0], [21.2, 120, 123, 23], rtol=1e-5)
    assert_allclose(kept.scores.numpy(), [0.9, 0.45, 0.3, 0.15])


@pytest.mark.parametrize("seed", range(6))
def test_the_operator_of_a_batch_finds_the_same(seed: int) -> None:
    from flyspeck.models.batch_decoding import suppress_levels

    images = [candidates(10 * seed + k, number=50) for k in range(3)]
    rule = Suppression(score=0.3, iou=0.5, method="tiny", max_detections=(4, 500)[seed % 2])
    columns = [torch.stack(parts) for parts in zip(*images, strict=True)]
    batch = suppress_levels([tuple(columns)], 2, rule)  # type: ignore[list-item]
    boxes, scores, labels = batch.best(rule.max_detections)
    for k, (box, score, label) in enumerate(images):
        rows = score > rule.score
        wanted = suppress(box[rows], score[rows], label[rows], (10_000, 10_000), Suppression(**{**vars(rule)}))
        number = len(wanted.scores)
        assert int((scores[k] > 0).sum()) == number
        assert_allclose(scores[k, :number].numpy(), wanted.scores.numpy())
        assert labels[k, :number].tolist() == wanted.labels.tolist()
        low = box.clip(min=0).numpy()  # `suppress` clips, `suppress_levels` is given clipped boxes
        if (low == box.numpy()).all():
            assert_allclose(boxes[k, :number].numpy(), wanted.boxes.numpy(), atol=1e-4)
