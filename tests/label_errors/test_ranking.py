from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flyspeck.evaluate.detections import DetectionTable
from flyspeck.label_errors.evidence import GATE, apart
from flyspeck.label_errors.ranking import KINDS, chances, empty_places
from flyspeck.label_errors.suspects import Suspect, rank
from planted_errors import Planted, planted, table


def hits(suspects: list[Suspect], made: Planted, kind: str, count: int) -> float:
    """The share of the first `count` suspects of a kind that were planted as such."""
    mine = [one for one in suspects if one.kind == kind][:count]
    if kind != "missing":
        return sum(one.row in made.rows[kind] for one in mine) / count
    right = 0
    for one in mine:
        here = made.missing[made.missing[:, 0] == one.image, 1:]
        box = np.array([one.suggested_box])
        right += bool(len(here)) and bool(apart(np.repeat(box, len(here), 0), here).min() <= GATE)
    return right / count


@pytest.mark.parametrize("sides", [(2, 4), (4, 8), (6, 24)])
def test_planted_errors_come_first(sides: tuple[float, float]) -> None:
    """Of objects of 2 to 4 px as of larger ones: what eight of ten detections can show is shown."""
    made = planted(3, sides=sides)
    found = chances(made.annotations, made.detections)
    suspects = rank(made.annotations, found)
    count = len(made.missing)
    assert count == 36
    for kind in ("missing", "class"):
        assert hits(suspects, made, kind, count) > 0.7, kind
    assert hits(suspects, made, "placement", count) > (0.45 if sides[0] < 4 else 0.6)
    # 8 % of the objects are not seen at all and 12 % weakly: of what is not seen, 5 in 13 at most are superfluous
    assert 0.15 < hits(suspects, made, "superfluous", count) < 0.5


@pytest.mark.parametrize("share", [0.02, 0.05, 0.08])
def test_chances_are_chances(share: float) -> None:
    """Up to a third of the annotations wrong in one way or another: the expected errors are at most about as many as there are.

    There may be fewer: what differs from the annotation may be the detector's own error.
    """
    made = planted(5, share=share, num_images=80)
    found = chances(made.annotations, made.detections)
    expected = {kind: 0.0 for kind in KINDS}
    for one in rank(made.annotations, found):
        expected[one.kind] += one.chance
    count = len(made.missing)
    for kind in KINDS:
        least = {"missing": 0.15, "superfluous": 0.1, "class": 0.4, "placement": 0.5}[kind]
        assert least * count < expected[kind] < 1.4 * count, (kind, expected[kind], count)
        assert least * share < found.rates[kind] < 1.4 * share, (kind, found.rates[kind])


def test_a_set_without_errors_has_few_suspects() -> None:
    made = planted(6, share=0.0, num_images=80)
    suspects = rank(made.annotations, chances(made.annotations, made.detections), least=0.5)
    assert len(suspects) <= 0.01 * made.annotations.num_boxes


def test_ranks_by_hand() -> None:
    """Sixty images with one person and one car each, found as annotated at 0.95; and five suspects in the last images."""
    boxes, labels, image, scores = [], [], [], []
    for row in range(60):
        boxes += [[50, 50, 58, 60], [150, 150, 170, 160]]
        labels += [1, 0]
        image += [row, row]
        scores += [0.95, 0.95]
    annotations = table(np.array(boxes, float), np.array(labels), np.array(image))
    jitter = np.random.default_rng(0).normal(0, 0.3, (120, 4))
    seen, seen_as = np.array(boxes) + jitter, np.array(labels)
    strength = np.array(scores)
    seen_as[118] = 0  # the last person is seen as a car
    seen[116] += [5, 0, 5, 0]  # the person before lies half a size beside
    keep = np.arange(120) != 115  # the car of image 57 is not seen at all
    extra = [[100, 100, 108, 110], [300, 300, 308, 310]]  # image 56: somebody at 0.95, and at 0.2
    detections = DetectionTable.from_columns(
        image_index=[*np.array(image)[keep], 56, 56],
        boxes=np.concatenate([seen[keep], extra]),
        scores=[*strength[keep], 0.95, 0.2],
        labels=[*seen_as[keep], 1, 1],
    )
    suspects = rank(annotations, chances(annotations, detections))
    first = {}
    for one in suspects:
        first.setdefault(one.kind, one)
    assert (first["class"].row, first["class"].annotated_class, first["class"].suggested_class) == (
        118,
        "person",
        "car",
    )
    assert first["placement"].row == 116
    assert (first["superfluous"].row, first["superfluous"].suggested_box, first["superfluous"].score) == (
        115,
        None,
        None,
    )
    assert (first["missing"].image, first["missing"].suggested_box) == (56, (100, 100, 108, 110))
    assert [one.suggested_box for one in suspects if one.kind == "missing"][:2] == [
        (100, 100, 108, 110),
        (300, 300, 308, 310),
    ]
    assert all(one.chance > 0.2 for kind, one in first.items() if kind != "missing"), first
    assert [one.chance for one in suspects] == sorted((one.chance for one in suspects), reverse=True)
    rows = [one.row for one in suspects if one.row is not None]
    assert len(rows) == len(set(rows))


def test_the_order_of_images_and_detections_does_not_change_the_ranks() -> None:
    made = planted(7, num_images=30)
    order = np.random.default_rng(0).permutation(len(made.detections))
    again = chances(made.annotations, made.detections.select(order))
    first = chances(made.annotations, made.detections)
    for name in ("missing", "superfluous", "another", "placement"):
        np.testing.assert_allclose(getattr(again, name), getattr(first, name), atol=1e-9)


def test_ignore_regions_and_classes_that_the_detector_does_not_know_are_not_judged() -> None:
    made = planted(8, num_images=30)
    ignored = np.zeros(made.annotations.num_boxes, bool)
    ignored[made.rows["class"][::2]] = True
    annotations = replace(made.annotations, ignore=ignored, labels=np.where(ignored, -1, made.annotations.labels))
    found = chances(annotations, made.detections, known=np.array([True, False]))
    unjudged = ignored | (annotations.labels == 1)
    for name in ("superfluous", "another", "placement"):
        assert not getattr(found, name)[unjudged].any()
        assert getattr(found, name)[~unjudged].any()


def test_sets_of_one_class_or_without_detections_or_images() -> None:
    one = table(np.array([[5, 5, 9, 9]]), np.array([0]), np.array([0]), classes=("car",))
    alone = chances(one, DetectionTable.from_columns(image_index=[0], boxes=[[5, 5, 9, 9]], scores=[0.9], labels=[0]))
    assert alone.another.tolist() == [0]
    blind = rank(one, chances(one, DetectionTable.empty()))
    assert [suspect.kind for suspect in blind] == ["superfluous"]
    assert blind[0].chance < 0.2  # one annotation that a blind detector does not see proves little
    nothing = table(np.zeros((0, 4)), np.zeros(0), np.zeros(0), num_images=1)
    assert rank(nothing, chances(nothing, DetectionTable.empty())) == []


def test_empty_places_hold_no_annotation_and_lie_in_the_image() -> None:
    made = planted(9, num_images=20)
    rows = np.arange(made.annotations.num_boxes)
    places = empty_places(made.annotations, rows)
    assert np.isfinite(places).all()
    assert (places[:, :2] >= 0).all()
    assert (places[:, 2:] <= 400 + 1e-9).all()
    for row in rows[::7].tolist():
        here = made.annotations.boxes[made.annotations.of_image(int(made.annotations.image_index[row]))]
        assert apart(np.repeat(places[row : row + 1], len(here), 0), here).min() > GATE
    np.testing.assert_array_equal(places, empty_places(made.annotations, rows))
    full = table(np.array([[0, 0, 20, 20]]), np.zeros(1), np.zeros(1), size=(20, 20))
    assert np.isnan(empty_places(full, np.array([0]))).all()  # nowhere else to go
