"""What a score threshold is worth: by hand, against a slow twin, and as it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_by_hand import found, truth

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, protocol_named
from flyspeck.evaluate.score_curve import KEY, ScoreCurve, ScoreRule, score_curve

FLYSPECK = protocol_named("flyspeck")


Xywh = list[float]


def a_set(objects: list[list[Xywh]], scored: list[list[tuple[Xywh, float]]]) -> tuple[Annotations, DetectionTable]:
    """Objects and scored boxes of each image, one class."""
    table = truth([(n, 0, box) for n, boxes in enumerate(objects) for box in boxes], images=len(objects))
    return table, found([(n, 0, box, score) for n, boxes in enumerate(scored) for box, score in boxes])


A, B, C, OFF = [10.0, 10, 4, 4], [30.0, 30, 6, 6], [60.0, 60, 4, 4], [80.0, 80, 4, 4]


def test_by_hand() -> None:
    curve = score_curve(*a_set([[A, B], [C]], [[(A, 0.9), (OFF, 0.7), (B, 0.5)], [(OFF, 0.7)]]), FLYSPECK)
    got = [(p.score, p.precision, p.recall, p.false_positives) for p in curve.points]
    expected = [(0.9, 1, 1 / 3, 0), (0.7, 1 / 3, 1 / 3, 1), (0.5, 0.5, 2 / 3, 1)]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (curve.images, curve.objects) == (2, 3)
    assert curve.best.score == pytest.approx(0.5)
    assert curve.best.f1 == pytest.approx(4 / 7, abs=1e-4)
    assert ScoreCurve.of({KEY: curve.to_dict()}) == curve
    assert ScoreCurve.of({}) is None


def test_nothing_found_or_to_find() -> None:
    assert score_curve(*a_set([[A]], [[]]), FLYSPECK).points == ()
    assert score_curve(*a_set([[]], [[(A, 0.5)]]), FLYSPECK).points == ()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20)), max_size=400), st.integers(1, 5))
def test_its_points_are_those_of_a_slow_count(rows: list[tuple[int, int]], images: int) -> None:
    """Boxes on 8 places of an image, of which the first 4 hold objects; the best F1 is never thinned away."""
    places = [[10.0 * k, 10.0, 4.0, 4.0] for k in range(9)]
    scored: list[list[tuple[Xywh, float]]] = [[] for _ in range(images)]
    for number, (place, score) in enumerate(rows):
        scored[number % images].append((places[place], score / 20))
    table, detections = a_set([places[:4]] * images, scored)
    curve = score_curve(table, detections, FLYSPECK)
    total, best = 4 * images, 0.0
    slow = {}
    for threshold in sorted({s for one in scored for _, s in one}):
        hits = sum(len({tuple(b) for b, s in one if s >= threshold and b in places[:4]}) for one in scored)
        count = sum(s >= threshold for one in scored for _, s in one)
        slow[round(threshold, 6)] = (hits / count, hits / total, (count - hits) / images)
        best = max(best, 2 * hits / (count + total))
    for point in curve.points:
        np.testing.assert_allclose(
            (point.precision, point.recall, point.false_positives), slow[round(point.score, 6)], atol=1e-5
        )
    assert len(curve.points) <= 101
    if rows:
        assert curve.best.f1 == pytest.approx(best, abs=1e-4)


def test_what_a_threshold_is_asked_for() -> None:
    curve = score_curve(*a_set([[A, B], [C]], [[(A, 0.9), (OFF, 0.7), (B, 0.5)], [(OFF, 0.7)]]), FLYSPECK)

    def told(text: str) -> float | None:
        point = ScoreRule.parse(text).threshold(curve)
        return None if point is None else round(point.score, 3)

    assert [told(t) for t in ("auto", "precision=0.5", "precision=.9", "false-positives=0", "0.25")] == [
        0.5,
        0.5,
        0.9,
        0.9,
        None,
    ]
    assert ScoreRule.parse("0.25") == ScoreRule.parse(0.25) == ScoreRule("score", 0.25)
    assert ScoreRule.parse("auto").threshold(None) is None
    assert ScoreRule.parse("auto").threshold(ScoreCurve((), 3, 0)) is None  # nothing was found in validation
    for text, message in (
        ("precision=1.2", "no score threshold"),
        ("best", "no score threshold"),
        ("-1", "no score"),
        ("1.5", "no"),
    ):
        with pytest.raises(UserError, match=message):
            ScoreRule.parse(text)
    with pytest.raises(UserError, match="has no scores of a validation set"):
        ScoreRule.parse("precision=0.5").threshold(None)
    low = score_curve(*a_set([[A]], [[(OFF, 0.9), (A, 0.5)]]), FLYSPECK)
    with pytest.raises(UserError, match=r"precision=0.8 on the validation set, which had a precision of at most 0.5"):
        ScoreRule.parse("precision=0.8").threshold(low)
    with pytest.raises(UserError, match=r"at least 1 false positives an image"):
        ScoreRule.parse("false-positives=0.5").threshold(low)
