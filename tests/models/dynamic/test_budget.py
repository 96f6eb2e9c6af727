"""The knob at inference: what a budget, a quality or a factor does, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.budget import Choice, apply_choice, decision_for_budget, factor_times, parse_budget
from flyspeck.models.dynamic.cost import mean_gflops, predictor_gflops, profile_factors
from flyspeck.models.dynamic.pooling import find_switch, pool_dynamically
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter, attach_predictor
from flyspeck.train.dynamic_fit import calibration

FACTORS = (0.5, 0.33, 0.25)
COSTS = [1.0, 0.5, 0.3]
# By hand: threshold 0: all at 0.25, 0.3; at 0.4 half and half of 0.33 and 0.25, 0.4; at 0.6 a third each, 0.6; then 1.
CHOICES = [[0.0, 0, 0, 1], [0.4, 0, 0.5, 0.5], [0.6, 1 / 3, 1 / 3, 1 / 3], [1.001, 1, 0, 0]]


@pytest.mark.parametrize(("budget", "threshold"), [(0.3, 0.0), (0.39, 0.0), (0.4, 0.4), (0.99, 0.6), (5, 1.001)])
def test_the_highest_threshold_within_the_budget(budget: float, threshold: float) -> None:
    found = decision_for_budget(budget, COSTS, CHOICES, unit="GFLOPs", factors=FACTORS)
    assert found == Decision("cheapest", threshold)


def test_a_budget_below_the_cheapest_factor_says_the_least_possible() -> None:
    with pytest.raises(
        UserError, match=r"0\.29 ms is below the least possible, 0\.3 ms \(every image at the factor 0\.25\)"
    ):
        decision_for_budget(0.29, COSTS, CHOICES, unit="ms", factors=FACTORS)


def test_budgets_are_read() -> None:
    assert parse_budget("0.6") == (0.6, "GFLOPs")
    assert parse_budget("12 ms") == (12.0, "ms")
    assert parse_budget("1.5GFLOPs") == (1.5, "GFLOPs")
    for wrong in ("fast", "-1", "3 s", ""):
        with pytest.raises(UserError, match="is no budget"):
            parse_budget(wrong)


def test_calibration_is_what_the_decision_does() -> None:
    p = np.random.default_rng(0).random((40, 3))
    rows = calibration(p)
    assert rows[0] == [0.0, 0.0, 0.0, 1.0]
    assert rows[-1] == [1.001, 1.0, 0.0, 0.0]
    costs = [np.dot(COSTS, row[1:]) for row in rows]
    assert (np.diff(costs) >= -1e-12).all()  # a higher threshold never costs less
    chosen = Decision("cheapest", rows[20][0]).choose(p)
    assert (chosen == 0).mean() == rows[20][1]


@pytest.fixture
def routed(small: Callable[..., Detector]) -> Detector:
    detector = small("retinanet")
    pool_dynamically(detector)
    attach_predictor(detector)
    return detector.eval()


def test_quality_and_budget_move_the_decision(routed: Detector) -> None:
    router = routed.router
    assert isinstance(router, FactorRouter)
    apply_choice(routed, Choice(quality=0.7), {}, size=(96, 128))
    assert router.decision == Decision("cheapest", 0.7)
    apply_choice(routed, Choice(quality=1), {}, size=(96, 128))
    assert router.decision.threshold > 1
    costs = profile_factors(routed, (96, 128))
    middle = mean_gflops(costs, dict(zip(FACTORS, CHOICES[1][1:], strict=True)))
    apply_choice(routed, Choice(budget=f"{middle * 1.0001:.9f}"), {"choices": CHOICES}, size=(96, 128))
    assert router.decision.threshold == 0.4


def test_one_factor_for_all_needs_no_predictor(routed: Detector) -> None:
    found = apply_choice(routed, Choice(factor=0.25), {}, size=(96, 128))
    assert found.router is None
    assert find_switch(found).factors == (0.25,)
    with pytest.raises(UserError, match=r"no down-sampling factor 0\.4"):
        apply_choice(routed, Choice(factor=0.4), {}, size=(96, 128))


def test_what_cannot_be_done_is_refused(small: Callable[..., Detector]) -> None:
    detector = small("retinanet")
    with pytest.raises(UserError, match="no factor predictor"):
        apply_choice(detector, Choice(budget="1"), {}, size=(96, 128))
    with pytest.raises(UserError, match="no dynamic pooling"):
        apply_choice(detector, Choice(factor=0.5), {}, size=(96, 128))
    with pytest.raises(UserError, match="budget and factor exclude each other"):
        Choice(budget="1", factor=0.5)
    with pytest.raises(UserError, match="a quality of 2"):
        Choice(quality=2)
    with pytest.raises(UserError, match="does not say what its choices cost"):
        decision_for_budget(1, COSTS, [], unit="ms", factors=FACTORS)


def test_the_predictor_is_counted_as_a_part(routed: Detector) -> None:
    own = predictor_gflops(routed, (96, 128))
    assert own > 0
    costs = profile_factors(routed, (96, 128))
    assert all(cost.parts["predictor"] == own for cost in costs.values())
    assert sum(costs[0.5].parts.values()) == pytest.approx(costs[0.5].gflops)
    routed.router = None
    assert profile_factors(routed, (96, 128))[0.5].gflops == pytest.approx(costs[0.5].gflops - own)
    assert predictor_gflops(routed, (96, 128)) == 0


def test_times_are_measured_for_every_factor(routed: Detector) -> None:
    found = factor_times(routed, (96, 128), runs=1, warmup=0)
    assert len(found) == 3
    assert min(found) > 0
    assert torch.equal(torch.tensor(routed.router.taken), torch.zeros(3, dtype=torch.int64))  # type: ignore[union-attr]
