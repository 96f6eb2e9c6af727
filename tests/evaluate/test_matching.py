"""The matcher against the references' own loops, written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from tables_by_hand import found, random_tables, truth

from flyspeck.evaluate import PROTOCOLS
from flyspeck.evaluate.matching import MatchRule, SecondPass, overlapping_pairs
from flyspeck.evaluate.protocols import CALTECH_RULE, COCO_RULE
from flyspeck.evaluate.tables import RankedDetections, TruthTable, matcher, ranked, truth_table

RULES = {
    "coco": COCO_RULE,
    "tiny": MatchRule(second_pass=SecondPass("iou")),
    "huicv": MatchRule(second_pass=SecondPass("harmonic")),
    "caltech": CALTECH_RULE,
    "tiny_mr": MatchRule(
        iod_for="ignored", ignored_choice="first", unlimited="ignored", second_pass=SecondPass("half")
    ),
    "flyspeck": MatchRule(iod_for="flagged", unlimited="flagged"),
    "voc": MatchRule(strict=True, pixel=1.0, candidates="best", iod_for="never", unlimited="ignored"),
}


def plain_overlaps(dets: RankedDetections, truths: TruthTable, ignored: np.ndarray, rule: MatchRule) -> np.ndarray:
    """(N, M) overlap under the rule, 0 between groups."""
    table = np.zeros((len(dets), len(truths.row)))
    by_iod = {"crowd": truths.crowd, "flagged": truths.flagged, "ignored": ignored, "never": ignored & False}
    for i in range(len(dets)):
        for j in range(len(truths.row)):
            if dets.image[i] != truths.image[j] or dets.label[i] != truths.label[j]:
                continue
            side = np.minimum(dets.boxes[i, 2:], truths.boxes[j, 2:]) - np.maximum(
                dets.boxes[i, :2], truths.boxes[j, :2]
            )
            side = side + rule.pixel
            if (side <= 0).any():
                continue
            own, other = np.prod(dets.sides[i] + rule.pixel), np.prod(truths.sides[j] + rule.pixel)
            shared = side[0] * side[1]
            table[i, j] = shared / own if by_iod[rule.iod_for][j] else shared / (own + other - shared)
    return table


def plain_match(
    dets: RankedDetections, truths: TruthTable, ignored: np.ndarray, rule: MatchRule, threshold: float
) -> list[int]:
    """One detection after another, as pycocotools, TinyBenchmark and the CityPersons script do it."""
    overlap = plain_overlaps(dets, truths, ignored, rule)
    bound = threshold if rule.strict else min(threshold, 1 - 1e-10)
    endless = {"crowd": truths.crowd, "flagged": truths.flagged, "ignored": ignored}[rule.unlimited]
    used = np.zeros(len(truths.row), bool)
    taken = []
    for i in range(len(dets)):
        mine = [
            j for j in range(len(truths.row)) if dets.image[i] == truths.image[j] and dets.label[i] == truths.label[j]
        ]
        order = [j for j in mine if not ignored[j]] + [j for j in mine if ignored[j]]
        if rule.candidates == "best":
            best = max(mine, key=lambda j: (overlap[i, j], -j), default=None)
            order = [] if best is None else [best]
        held, value = -1, bound
        for j in order:
            if used[j] and not endless[j]:
                continue
            if held >= 0 and ignored[j] and (not ignored[held] or rule.ignored_choice == "first"):
                break
            enough = overlap[i, j] > value if rule.strict else overlap[i, j] >= value
            if overlap[i, j] > 0 and enough:
                held, value = j, overlap[i, j]
        if held < 0 and rule.second_pass is not None:
            held = plain_second(i, [j for j in order if ignored[j]], overlap, dets, truths, rule.second_pass, bound)
        if held >= 0:
            used[held] = True
        taken.append(held)
    return taken


def plain_second(i: int, hidden: list[int], overlap, dets, truths, second: SecondPass, bound: float) -> int:
    ratios = [overlap[i, j] / (1 + overlap[i, j]) * (1 + truths.area[j] / dets.area[i]) for j in hidden]
    if not ratios:
        return -1
    best = int(np.argmax(ratios))
    enough = {
        "half": ratios[best] > 0.5,
        "iou": ratios[best] >= bound,
        "harmonic": ratios[best] >= 2 * bound / (1 + bound),
    }[second.threshold]
    return hidden[best] if enough else -1


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000), threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]), low=st.integers(0, 30))
def test_agrees_with_the_plain_loop(name: str, seed: int, threshold: float, low: int) -> None:
    annotations, detections = random_tables(seed)
    dets = ranked(detections, annotations, None)
    truths = truth_table(annotations, ("crowd", "ignore", "uncertain"))
    ignored = truths.flagged | (truths.area < low)
    (matching,) = matcher(dets, truths, RULES[name]).at(ignored, (threshold,))
    assert_array_equal(matching.truth, plain_match(dets, truths, ignored, RULES[name], threshold))
    assert_array_equal(matching.ignored, [j >= 0 and bool(ignored[j]) for j in matching.truth])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_pairs_are_all_pairs_that_overlap(seed: int) -> None:
    """Wide and narrow boxes, equal edges, far-off coordinates: the search along x loses none."""
    rng = np.random.default_rng(seed)
    boxes = (
        np.cumsum(rng.integers(0, 9, (20, 2, 2)) * rng.choice([1, 30], (20, 1, 1)), 1).transpose(0, 1, 2).reshape(20, 4)
    )
    others = np.cumsum(rng.integers(0, 9, (15, 2, 2)) * rng.choice([1, 200], (15, 1, 1)), 1).reshape(15, 4)
    shift = rng.choice([0.0, 1e5, -300.0])
    boxes, others = boxes + shift, others + shift
    group, other_group = rng.integers(0, 4, 20) * 1000, rng.integers(0, 5, 15) * 1000
    pairs = overlapping_pairs(boxes, group, others, other_group)
    expected = []
    for i in range(20):
        for j in range(15):
            side = np.minimum(boxes[i, 2:], others[j, 2:]) - np.maximum(boxes[i, :2], others[j, :2])
            if group[i] == other_group[j] and (side > 0).all():
                expected.append((i, j, side.prod() / np.prod(boxes[i, 2:] - boxes[i, :2])))
    assert_array_equal(pairs.detection, [i for i, _, _ in expected])
    assert_array_equal(pairs.truth, [j for _, j, _ in expected])
    assert_allclose(pairs.iod, [v for _, _, v in expected])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, detections = random_tables(7, images=2)
    dets, truths = ranked(detections, annotations, None), truth_table(annotations, ("crowd",))
    whole = matcher(dets, truths, COCO_RULE).pairs
    monkeypatch.setattr("flyspeck.evaluate.matching.CHUNK", 3)
    parts = matcher(dets, truths, COCO_RULE).pairs
    assert len(whole.truth) > 10
    assert_array_equal(whole.detection, parts.detection)
    assert_array_equal(whole.truth, parts.truth)


def test_a_displaced_detection_moves_on() -> None:
    """Best scores first: A takes truth 0, so B, whose best is truth 0 too, takes truth 1, and C is left with none."""
    annotations = truth([(0, 0, [0, 0, 10, 10]), (0, 0, [3, 0, 10, 10])])
    detections = found([(0, 0, [1, 0, 10, 10], 0.5), (0, 0, [0, 0, 10, 10], 0.9), (0, 0, [2, 0, 10, 10], 0.4)])
    dets, truths = ranked(detections, annotations, None), truth_table(annotations, ())
    (matching,) = matcher(dets, truths, COCO_RULE).at(np.zeros(2, bool), (0.5,))
    assert dict(zip(dets.row.tolist(), matching.truth.tolist(), strict=True)) == {1: 0, 0: 1, 2: -1}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_protocols_describe_themselves(name: str) -> None:
    assert PROTOCOLS[name].text.startswith(f"{name}: ")
    assert PROTOCOLS[name].source
