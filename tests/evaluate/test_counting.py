"""Doubles and errors of the count: by hand, against a slow twin, and what must hold of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_by_hand import found, random_tables, truth

from flyspeck.cli.main import main
from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.ap import prepare
from flyspeck.evaluate.counting import REACH, count
from flyspeck.evaluate.counts import Counts
from flyspeck.evaluate.operating import working_point
from flyspeck.evaluate.protocols import APProtocol

FLYSPECK = protocol_named("flyspeck")
assert isinstance(FLYSPECK, APProtocol)


def counted(annotations: Annotations, detections: DetectionTable, *, score: float | None = 0.5) -> Counts:
    assert isinstance(FLYSPECK, APProtocol)
    return count(annotations, detections, FLYSPECK, score=score)


def test_by_hand() -> None:
    # Image 1: an object of 6x6 with two boxes (centres 1 px apart), one of 10x10 with one, one of 10x10 with none.
    # Image 2: one object of 6x6 with three boxes, and a false box of 5x5. Image 3: nothing, one false box of 30x30.
    objects = truth(
        [(0, 0, [10, 10, 6, 6]), (0, 0, [40, 10, 10, 10]), (0, 0, [80, 10, 10, 10]), (1, 0, [10, 10, 6, 6])], images=3
    )
    boxes = found(
        [
            (0, 0, [10, 10, 6, 6], 0.9),
            (0, 0, [11, 10, 6, 6], 0.8),
            (0, 0, [40, 10, 10, 10], 0.7),
            (1, 0, [10, 10, 6, 6], 0.9),
            (1, 0, [11, 11, 6, 6], 0.8),
            (1, 0, [9, 9, 6, 6], 0.7),
            (1, 0, [50, 50, 5, 5], 0.6),
            (2, 0, [50, 50, 30, 30], 0.6),
            (2, 0, [90, 90, 5, 5], 0.4),  # below the threshold
        ]
    )
    counts = counted(objects, boxes)
    # all: 3 of 4 objects found, 2 of them twice or more. Boxes less objects: 3 - 3, 4 - 1, 1 - 0.
    row = counts.row("all")
    assert (row.objects, row.found, row.boxes) == (4, 3, 8)
    assert row.doubles == pytest.approx(2 / 3)
    assert (row.count_error, row.count_bias, row.count_share) == pytest.approx((4 / 3, 4 / 3, 1.0))
    # 2-8 px: both objects found twice or more; 2 - 1, 4 - 1 (the false box is 5 px), 0.
    row = counts.row("tiny1")
    assert (row.objects, row.found, row.boxes, row.doubles) == (2, 2, 6, 1.0)
    assert (row.count_error, row.count_bias, row.count_share) == pytest.approx((4 / 3, 4 / 3, 2.0))
    # 8-12 px: two objects, one box: 1 - 2 in image 1, nothing elsewhere.
    row = counts.row("tiny2")
    assert (row.objects, row.found, row.boxes, row.doubles) == (2, 1, 1, 0.0)
    assert (row.count_error, row.count_bias, row.count_share) == pytest.approx((1 / 3, -1 / 3, 0.5))
    # 20-32 px: no object, one false box in image 3.
    row = counts.row("small")
    assert (row.objects, row.boxes, row.doubles, row.count_share) == (0, 1, -1.0, -1.0)
    assert (row.count_error, row.count_bias) == pytest.approx((1 / 3, 1 / 3))
    # at IoU 0.5 (11,10) on (10,10): 30 / 42 hits, but that object is taken. 3 hits of 8 boxes, 4 objects.
    assert (counts.at.precision, counts.at.recall, counts.at.f1) == pytest.approx((3 / 8, 3 / 4, 6 / 12))


def test_errors_of_two_classes_do_not_cancel() -> None:
    objects = truth([(0, 0, [10, 10, 6, 6]), (0, 1, [40, 10, 6, 6])], classes=2)
    boxes = found([(0, 0, [10, 10, 6, 6], 0.9), (0, 0, [40, 10, 6, 6], 0.9)])  # the second is called the wrong class
    row = counted(objects, boxes).row("all")
    assert (row.count_error, row.count_bias, row.found) == (2.0, 0.0, 1)


def test_a_neighbours_box_is_no_double() -> None:
    # Two 8 px objects half a side apart: each centre lies on the other's edge. One box each is one box each.
    objects = truth([(0, 0, [10, 10, 8, 8]), (0, 0, [14, 10, 8, 8])])
    boxes = found([(0, 0, [10, 10, 8, 8], 0.9), (0, 0, [14, 10, 8, 8], 0.8)])
    assert counted(objects, boxes).row("all").doubles == 0
    both = found([(0, 0, [10, 10, 8, 8], 0.9), (0, 0, [11, 10, 8, 8], 0.8)])
    row = counted(objects, both).row("all")
    assert (row.found, row.doubles, row.count_error) == (1, 1.0, 0.0)  # the count is right, and one of two is missed


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("off", [0.0, 1.0, 2.0, 2.5, 4.5])
def test_the_reach_of_a_tiny_object(side: int, off: float) -> None:
    objects = truth([(0, 0, [100, 100, side, side])])
    boxes = found([(0, 0, [100, 100, side, side], 0.9), (0, 0, [100 + off, 100, side, side], 0.8)])
    within = off <= max(side, REACH) / 2
    assert counted(objects, boxes).row("all").doubles == float(within)


def test_ignore_regions_count_for_nothing() -> None:
    objects = truth([(0, 0, [10, 10, 8, 8]), (0, -1, [50, 50, 40, 40]), (0, 0, [12, 10, 8, 8])], ignore=[2])
    boxes = found([(0, 0, [10, 10, 8, 8], 0.9), (0, 0, [60, 60, 8, 8], 0.9), (0, 0, [18, 10, 3, 8], 0.9)])
    row = counted(objects, boxes).row("all")
    # The second box lies in the region, the third in the ignored object alone: neither is too many.
    assert (row.objects, row.boxes, row.count_error, row.doubles) == (1, 1, 0.0, 0.0)


def test_nothing_at_all() -> None:
    empty = counted(truth([], images=2), found([]), score=None)
    row = empty.row("all")
    assert (empty.at.score, empty.at.f1, row.doubles, row.count_share) == (0.5, -1.0, -1.0, -1.0)
    assert (row.count_error, row.count_bias) == (0.0, 0.0)
    none = counted(truth([(0, 0, [10, 10, 8, 8])], images=2), DetectionTable.empty(), score=None)
    assert (none.at.f1, none.row("all").doubles, none.row("all").count_bias) == (0.0, -1.0, -0.5)
    assert "—" in empty.text()


def slow(annotations: Annotations, detections: DetectionTable, score: float) -> tuple[list[int], list[float]]:
    """Loads of the objects and errors by (image, class), box by box and object by object; all sizes."""
    load = [0] * annotations.num_boxes
    errors: dict[tuple[int, int], int] = {}
    for i in range(annotations.num_boxes):
        if not annotations.ignore[i]:
            key = (int(annotations.image_index[i]), int(annotations.labels[i]))
            errors[key] = errors.get(key, 0) - 1
    for d in range(len(detections)):
        if detections.scores[d] < score:
            continue
        image, label = int(detections.image_index[d]), int(detections.labels[d])
        cx, cy = ((detections.boxes[d][k] + detections.boxes[d][k + 2]) / 2 for k in (0, 1))
        best, owner, hidden = 2.0, -1, False
        for i in range(annotations.num_boxes):
            x1, y1, x2, y2 = annotations.boxes[i]
            far = max(abs(cx - (x1 + x2) / 2) / (max(x2 - x1, 4) / 2), abs(cy - (y1 + y2) / 2) / (max(y2 - y1, 4) / 2))
            if annotations.image_index[i] != image or far > 1:
                continue
            if annotations.ignore[i]:
                hidden = True  # under these rules an ignored box holds for every class
            elif annotations.labels[i] == label and far < best:
                best, owner = far, i
        if owner >= 0:
            load[owner] += 1
        if owner >= 0 or not hidden:
            errors[image, label] = errors.get((image, label), 0) + 1
    return load, list(map(float, errors.values()))


@pytest.mark.parametrize("seed", range(20))
def test_slow_twin(seed: int) -> None:
    annotations, detections = random_tables(seed)
    row = counted(annotations, detections, score=0.3).row("all")
    load, errors = slow(annotations, detections, 0.3)
    hit = sum(n > 0 for n in load)
    assert row.found == hit
    assert row.doubles == pytest.approx(sum(n > 1 for n in load) / hit if hit else -1)
    assert row.count_error == pytest.approx(sum(map(abs, errors)) / len(annotations))
    assert row.count_bias == pytest.approx(sum(errors) / len(annotations))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_what_must_hold(seed: int, score: float) -> None:
    annotations, detections = random_tables(seed)
    counts = counted(annotations, detections, score=score)
    order = np.random.default_rng(seed).permutation(len(detections))
    assert counted(annotations, detections.select(order), score=score).rows == counts.rows
    for row in counts.rows:
        assert abs(row.count_bias) <= row.count_error
        assert row.found <= min(row.objects, row.boxes)
        assert row.doubles <= 1
    # The objects themselves, as detections: nothing twice, nothing missed; and all of them again: everything twice.
    kept = ~annotations.ignore
    perfect = DetectionTable.from_columns(
        image_index=annotations.image_index[kept],
        boxes=annotations.boxes[kept],
        scores=np.ones(kept.sum()),
        labels=annotations.labels[kept],
    )
    best = counted(annotations, perfect, score=None).row("all")
    assert best.count_error == 0
    if best.objects:
        twice = perfect.select(np.tile(np.arange(len(perfect)), 2))
        again = counted(annotations, twice, score=None).row("all")
        assert (again.found, again.count_bias) == (best.found, best.objects / len(annotations))
        assert again.doubles == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_working_point_is_the_best_of_all(seed: int) -> None:
    annotations, detections = random_tables(seed)
    assert isinstance(FLYSPECK, APProtocol)
    inputs = prepare(annotations, detections, FLYSPECK)
    best = working_point(inputs, "all", 0.5)
    every = [working_point(inputs, "all", 0.5, score=float(s)) for s in np.unique(detections.scores)]
    assert best.f1 == pytest.approx(max(point.f1 for point in every))
    assert best.score == max(p.score for p in every if p.f1 == pytest.approx(best.f1)) or best.f1 == 0


def test_it_stands_beside_ap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = truth([(0, 0, [10, 10, 8, 8])])
    boxes = found([(0, 0, [10, 10, 8, 8], 0.9), (0, 0, [11, 10, 8, 8], 0.25)])
    result = evaluate(objects, boxes, score=0.2)
    assert result.counts is not None
    stored = result.to_dict()["counts"]
    assert (stored["score"], stored["rule"], stored["rows"][0]["doubles"]) == (0.2, "given", 1.0)
    assert "score 0.2 (given" in result.table()
    assert evaluate(objects, boxes, "coco_bbox").counts is not None
    assert evaluate(objects, boxes, "flyspeck_mr").counts is None
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 8, 8], "area": 64, "iscrowd": 0}
    files = {
        "gt.json": {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "c"}]},
        "dt.json": boxes.to_coco(objects),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    words = ["eval", "--gt", str(tmp_path / "gt.json"), "--dt", str(tmp_path / "dt.json")]
    assert main([*words, "--score", "0.2"]) == 0
    assert "100.00         1.00  +1.00" in capsys.readouterr().out
    assert main(words) == 0
    assert "score 0.9 (best F1 on this set; F1 100.00)" in capsys.readouterr().out
    assert main([*words, "--protocol", "flyspeck_mr", "--score", "0.2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
