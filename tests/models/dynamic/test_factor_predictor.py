"""The factor predictor: its size, its losses and its decision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.dynamic.predictor import (
    Decision,
    FactorPredictor,
    object_statistics,
    predictor_losses,
    scaled_widths,
)
from flyspeck.types import Targets


def test_parameters_on_a_resnet50() -> None:
    """By hand, convolutions 475,136 + 294,912 + 917,504 + 1,179,648, norms 2 x 1,920, heads (3 + 4) x 257: 2.873 M.

    475,136 = 9 x 256 x 128 + 9 x 128 x 128 + 256 x 128; norms: 3 x 128 + 2 x 128 + 3 x 256 + 2 x 256 channels.
    """
    predictor = FactorPredictor(256, 3)
    assert sum(p.numel() for p in predictor.parameters()) == 2_867_200 + 2 * 1_920 + 7 * 257


def test_widths_follow_the_host() -> None:
    assert scaled_widths(256) == (128, 128, 256, 256)
    assert scaled_widths(128) == (64, 64, 128, 128)
    assert scaled_widths(24) == (32, 32, 64, 64)  # no less than a quarter
    assert scaled_widths(1024) == (128, 128, 256, 256)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (64, 80), (33, 7)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    predictor = FactorPredictor(8, 3).eval()
    logits, statistics = predictor(torch.randn(2, 8, *size))
    assert logits.shape == (2, 3)
    assert statistics.shape == (2, 4)
    assert torch.isfinite(logits).all()


def test_losses_by_hand() -> None:
    """Eq. 5 at p = 0.5: ln 2 for each of three factors. Eq. 6: 0.1 is within 1/9: 0.5 x 0.01 x 9; 1 is not: 1 - 1/18."""
    losses = predictor_losses(
        torch.zeros(1, 3), torch.tensor([[0.1, 1.0, 0, 0]]), torch.tensor([[1.0, 0, 1]]), torch.zeros(1, 4), weight=2.0
    )
    assert_close(losses["factor"], torch.tensor(2 * 3 * math.log(2)))
    assert_close(losses["statistic"], torch.tensor(0.045 + 1 - 1 / 18))


def test_statistics_by_hand() -> None:
    """Objects of 4x4 and 4x16 (size 8); an ignore region does not count."""
    target = Targets(
        torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 16], [0, 0, 50, 50]]),
        torch.tensor([0, 0, -1]),
        torch.tensor([False, False, True]),
    )
    assert_close(object_statistics(target), torch.tensor([2.0, 6, 8, 4]).log1p())
    empty = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    assert_close(object_statistics(empty), torch.zeros(4))


def test_decisions_by_hand() -> None:
    p = np.array([[0.9, 0.8, 0.6], [0.9, 0.8, 0.1], [0.9, 0.1, 0.2], [0.1, 0.4, 0.3]])
    assert_array_equal(Decision("argmax").choose(p), [0, 0, 0, 1])
    assert_array_equal(Decision("cheapest", 0.5).choose(p), [2, 1, 0, 0])  # nothing probable: the largest
    assert_array_equal(Decision("cheapest", 0).choose(p), [2, 2, 2, 2])
    assert_array_equal(Decision("cheapest", 1.01).choose(p), [0, 0, 0, 0])
    with pytest.raises(UserError, match="no rule 'best'"):
        Decision("best")  # type: ignore[arg-type]


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_higher_threshold_never_takes_a_smaller_factor(rows: list[list[float]], a: float, b: float) -> None:
    p = np.array(rows)
    low, high = sorted((a, b))
    assert (Decision("cheapest", high).choose(p) <= Decision("cheapest", low).choose(p)).all()


def test_impossible_predictors_are_refused() -> None:
    with pytest.raises(UserError, match="a predictor of widths"):
        FactorPredictor(8, 3, widths=[])
    with pytest.raises(UserError, match="pooled by 0"):
        FactorPredictor(8, 3, pool=0)


def test_probabilities_are_the_logits_sigmoid() -> None:
    """What a choice runs leaves out the statistics and nothing else."""
    torch.manual_seed(0)
    predictor = FactorPredictor(24, 3).eval()
    x = torch.randn(2, 24, 20, 28)
    with torch.no_grad():
        assert_close(predictor.probabilities(x), predictor(x)[0].sigmoid())
