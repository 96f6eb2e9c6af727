"""Kinds of error on cases made by hand, and the sums that must hold on any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from tables_by_hand import found, random_tables, truth

from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.ap import prepare
from flyspeck.evaluate.errors import KINDS, error_rows
from flyspeck.evaluate.protocols import APProtocol

_FLYSPECK = protocol_named("flyspeck")
assert isinstance(_FLYSPECK, APProtocol)
PROTOCOL = replace(_FLYSPECK, ious=(0.5,))

A, B, C = [100.0, 100.0, 10.0, 10.0], [200.0, 100.0, 10.0, 10.0], [300.0, 100.0, 10.0, 10.0]


def test_one_of_each_kind() -> None:
    """Class 0 is in A, B and C, class 1 in D; a region lies apart. A is found twice, B only by a box 4 px off
    (IoU 60/140 = .43), C not at all, D (class 1) by a detection of class 0, and by a worse one of class 0 5 px off
    (IoU 1/3: near, but of another class); one detection lies on nothing, one under the region.
    """
    d = [400.0, 100.0, 10.0, 10.0]
    annotations = truth([(0, 0, A), (0, 0, B), (0, 0, C), (0, 1, d), (0, -1, [500, 300, 100, 100])], classes=2)
    detections = found(
        [
            (0, 0, A, 0.9),
            (0, 0, A, 0.8),
            (0, 0, [204.0, 100.0, 10.0, 10.0], 0.7),
            (0, 0, d, 0.6),
            (0, 0, [405.0, 100.0, 10.0, 10.0], 0.5),
            (0, 0, [50.0, 400.0, 10.0, 10.0], 0.4),
            (0, 0, [520.0, 320.0, 10.0, 10.0], 0.3),
        ]
    )
    row = error_rows(annotations, detections, PROTOCOL)[0]
    assert {name: row[name] for name in KINDS} == dict.fromkeys(KINDS, 1)
    assert (row["tp"], row["n_gt"], row["hidden"]) == (1, 4, 1)
    # B and D have an error that points at them; only C is really missed.
    assert row["missed"] == 1


def test_what_mending_gains() -> None:
    """A hit, B 4 px off: AP 51/101 (recall .5 at precision 1); with the localisation mended both are hits: AP 1."""
    annotations = truth([(0, 0, A), (0, 0, B)])
    detections = found([(0, 0, A, 0.9), (0, 0, [204.0, 100.0, 10.0, 10.0], 0.7)])
    row = error_rows(annotations, detections, PROTOCOL)[0]
    assert_allclose(row["ap"], 51 / 101)
    assert_allclose(row["delta_ap"]["localisation"], 50 / 101)
    assert_allclose(
        [row["delta_ap"][name] for name in ("class", "both", "duplicate", "background", "missed")], 0, atol=1e-15
    )


def test_missed_and_duplicates_gain() -> None:
    """A found twice before C, B missed. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3: points 0 to .33 give 1, .34 to .66
    give 2/3: (34 + 33 * 2/3) / 101. Without the duplicate 67/101; without the missed one recall is 1/2 and 1: (51 + 50 * 2/3).
    """
    annotations = truth([(0, 0, A), (0, 0, B), (0, 0, C)])
    detections = found([(0, 0, A, 0.9), (0, 0, A, 0.8), (0, 0, C, 0.7)])
    row = error_rows(annotations, detections, PROTOCOL)[0]
    assert_allclose(row["ap"], (34 + 33 * 2 / 3) / 101)
    assert_allclose(row["delta_ap"]["duplicate"], (67 - 34 - 22) / 101)
    assert_allclose(row["delta_ap"]["missed"], (51 + 50 * 2 / 3 - 34 - 22) / 101)


def test_no_ground_truth_at_all() -> None:
    """Every detection is a background error, and nothing has an AP to gain."""
    for row in error_rows(truth([]), found([(0, 0, A, 0.9)]), PROTOCOL)[:1]:
        assert (row["background"], row["n_gt"], row["ap"], row["delta_ap"]) == (1, 0, -1.0, {})


@settings(max_examples=25, deadline=None)
@example(30585)  # no ground truth at all
@given(st.integers(0, 100_000))
def test_parts_add_up(seed: int) -> None:
    """Every false positive has one kind; the missed are at most those that nothing took; mending never hurts."""
    annotations, detections = random_tables(seed)
    inputs = prepare(annotations, detections, PROTOCOL)
    for row in error_rows(annotations, detections, PROTOCOL, inputs=inputs):
        outcome = inputs.outcomes[row["area"], 0.5]
        assert sum(row[name] for name in KINDS) == int((~outcome.hit & ~outcome.ignored).sum())
        assert row["missed"] <= row["n_gt"] - row["tp"]
        for name in ("localisation", "duplicate", "background", "both", "missed"):
            assert not row["delta_ap"] or row["delta_ap"][name] >= -1e-12, (name, row)


@pytest.mark.parametrize("bins", [("tiny1", 6.0), ("tiny3", 14.0)])
def test_errors_stay_in_their_bin(bins: tuple[str, float]) -> None:
    """A background error counts in the bin of its own size."""
    name, side = bins
    annotations = truth([(0, 0, [10, 10, 6, 6]), (0, 0, [50, 10, 14, 14])])
    detections = found([(0, 0, [300.0, 300.0, side, side], 0.5)])
    rows = {row["area"]: row for row in error_rows(annotations, detections, PROTOCOL)}
    assert rows[name]["background"] == 1
    assert sum(row["background"] for area, row in rows.items() if area in ("tiny1", "tiny2", "tiny3", "small")) == 1
