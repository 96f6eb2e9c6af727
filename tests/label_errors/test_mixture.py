from __future__ import annotations

import numpy as np
import pytest

from flyspeck.label_errors.mixture import MOST_ERRORS, fit_contrast, fit_curve, logit, sigmoid
from flyspeck.label_errors.ranking import PRIOR, robust_line


def test_sigmoid_and_logit_are_inverse_and_finite() -> None:
    values = np.array([-900, -3, 0, 2, 900.0])
    np.testing.assert_allclose(sigmoid(values), [0, 1 / (1 + np.e**3), 0.5, 1 / (1 + np.e**-2), 1], atol=1e-12)
    np.testing.assert_allclose(logit(sigmoid(np.array([-3, 0, 2.0]))), [-3, 0, 2], atol=1e-9)
    assert np.isfinite(logit(np.array([0, 1.0]))).all()


@pytest.mark.parametrize("errors", [0.05, 0.1, 0.2])
def test_the_ceiling_of_a_curve_is_the_share_without_errors(errors: float) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6000, 2)) * [3, 1]
    truly = rng.uniform(size=6000) < sigmoid(1.5 * features[:, 0] - features[:, 1])
    curve = fit_curve(features, truly & (rng.uniform(size=6000) >= errors), prior=PRIOR)
    assert 1 - curve.ceiling == pytest.approx(errors, abs=0.025)
    np.testing.assert_allclose(curve.inner(features), sigmoid(1.5 * features[:, 0] - features[:, 1]), atol=0.06)


def test_a_curve_of_nothing_or_of_one_outcome() -> None:
    empty = fit_curve(np.zeros((0, 2)), np.zeros(0, bool), prior=PRIOR)
    assert empty.ceiling == pytest.approx(0.96)
    features = np.linspace(-1, 1, 50)[:, None]
    for outcome in (True, False):
        curve = fit_curve(features, np.full(50, outcome), prior=PRIOR)
        assert np.isfinite(curve.inner(features)).all()
        assert 1 - MOST_ERRORS <= curve.ceiling < 1


@pytest.mark.parametrize("errors", [0.02, 0.1, 0.2])
def test_a_contrast_finds_the_share_that_is_like_empty(errors: float) -> None:
    rng = np.random.default_rng(2)
    wrong = rng.uniform(size=4000) < errors
    here = rng.normal(np.where(wrong, -2, 2), 1, 4000)[:, None]
    like, share = fit_contrast(here, rng.normal(-2, 1, (3000, 1)), prior=PRIOR)
    assert share == pytest.approx(errors, abs=0.01)
    assert like[wrong].mean() > 0.8
    assert like[~wrong].mean() < 0.02
    assert np.all(np.diff(like[np.argsort(here[:, 0])]) <= 1e-12)  # the weaker the evidence, the likelier it is empty


def test_a_robust_line_passes_a_fifth_of_far_values_by() -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 4, 500)
    values = 1 + 2 * x + rng.normal(0, 0.2, 500)
    values[::5] += 8
    at = robust_line(np.stack([np.ones(500), x], 1), values)
    np.testing.assert_allclose(at, 1 + 2 * x, atol=0.3)
