"""Intervals and comparisons: exactness of the weighted AP, and what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from tables_by_hand import found, random_tables, truth

from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.bootstrap import _curves, _mean_ap, compare, interval_rows
from flyspeck.evaluate.protocols import APProtocol

_FLYSPECK = protocol_named("flyspeck")
assert isinstance(_FLYSPECK, APProtocol)
PROTOCOL = replace(_FLYSPECK, ious=(0.5,))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100_000))
def test_weighted_ap_is_the_ap_of_copied_images(seed: int) -> None:
    """Images drawn twice or not at all score exactly as a data set with copies of them (scores without ties)."""
    annotations, detections = random_tables(seed, images=4, classes=2)
    rng = np.random.default_rng(seed)
    detections = replace(detections, scores=rng.permutation(len(detections)) / max(len(detections), 1))
    weight = rng.multinomial(4, np.full(4, 0.25)).astype(float)
    drawn = np.repeat(np.arange(4), weight.astype(int))
    copies = replace(annotations.select_images(drawn), image_ids=np.arange(1, 5))
    pieces = [(new, detections.select(detections.image_index == old)) for new, old in enumerate(drawn)]
    moved = DetectionTable.from_columns(
        image_index=np.concatenate([np.full(len(piece), new) for new, piece in pieces]),
        xywh=np.concatenate([piece.xywh for _, piece in pieces]),
        scores=np.concatenate([piece.scores for _, piece in pieces]),
        labels=np.concatenate([piece.labels for _, piece in pieces]),
    )
    expected = evaluate(copies, moved, PROTOCOL)
    for area, curves in _curves(annotations, detections, PROTOCOL, 0.5).items():
        assert_allclose(_mean_ap(curves, weight), expected.value(metric="AP", iou=0.5, area=area), atol=1e-12)


def test_interval_holds_the_value_and_shrinks_with_images() -> None:
    widths = []
    for images in (10, 160):
        rng = np.random.default_rng(3)
        box = [100.0, 100.0, 10.0, 10.0]
        annotations = truth([(k, 0, box) for k in range(images)], images=images)
        seen = [(k, 0, box, float(rng.uniform(0.5, 1))) for k in range(images) if rng.uniform() < 0.6]
        noise = [(k, 0, [300.0, 300.0, 10.0, 10.0], float(rng.uniform(0, 1))) for k in range(images)]
        row = interval_rows(annotations, found([*seen, *noise]), PROTOCOL, samples=300)[0]
        assert row["low"] <= row["value"] <= row["high"]
        widths.append(row["high"] - row["low"])
    assert widths[1] < widths[0] / 2  # four times the standard error at a sixteenth of the images


def test_same_seed_same_interval() -> None:
    annotations, detections = random_tables(2)
    first, second = (interval_rows(annotations, detections, PROTOCOL, samples=50) for _ in range(2))
    assert first == second


def test_a_run_does_not_differ_from_itself() -> None:
    annotations, detections = random_tables(2)
    row = compare(annotations, detections, detections, PROTOCOL, samples=100)[0]
    assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_significant_and_a_small_one_is_not() -> None:
    box, far = [100.0, 100.0, 10.0, 10.0], [300.0, 300.0, 10.0, 10.0]
    annotations = truth([(k, 0, box) for k in range(60)], images=60)
    good = found([(k, 0, box, 0.9) for k in range(60)])
    poor = found([(k, 0, box if k % 2 else far, 0.9) for k in range(60)])
    row = compare(annotations, good, poor, PROTOCOL, samples=400)[0]
    assert row["low"] > 0
    assert_allclose(row["p_value"], 2 / 401)  # no resample goes the other way; the data themselves count once
    nearly = found([(k, 0, box if k else far, 0.9) for k in range(60)])
    other = found([(k, 0, box if k != 1 else far, 0.9) for k in range(60)])
    assert compare(annotations, nearly, other, PROTOCOL, samples=400)[0]["p_value"] > 0.5


def test_one_image_cannot_be_compared() -> None:
    annotations = truth([(0, 0, [1, 1, 5, 5])])
    with pytest.raises(UserError, match="too few"):
        compare(annotations, found([]), found([]), PROTOCOL)
    assert interval_rows(annotations, found([]), PROTOCOL, samples=20)[0]["low"] is None
