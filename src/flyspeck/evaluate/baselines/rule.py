"""Logistic regression on few numbers, with their squares and products: how likely something is. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["contrast", "numbers", "products"]
"""What a rule is linear in: the first `CONTRASTS` of the numbers; all; these and their squares and products."""
FORMS: tuple[Form, ...] = ("contrast", "numbers", "products")
CONTRASTS = 2
_RIDGE, _STEPS = 3.0, 9
MOST = 4000
"""Rows of what is not there that are reckoned with: evenly spread ones stand for all."""
_FAR = 4.0
"""Deviations beyond which a number counts as if it were no further off: nothing is reckoned far from what was seen."""


@dataclass(frozen=True)
class Rule:
    """Weights for numbers that are brought to mean 0 and deviation 1 first."""

    form: Form

    mean: np.ndarray
    """(F,)"""
    deviation: np.ndarray
    """(F,)"""
    weights: np.ndarray
    """(T,): of the constant, the numbers, and of the products' form their squares and products."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """`(N,)` in (0, 1) for `(N, F)`."""
        return _sigmoid(_terms(features, self.mean, self.deviation, self.form) @ self.weights)


def fit_rule(features: np.ndarray, positive: np.ndarray, form: Form = "products") -> Rule:
    """The rule of `(N, F)` numbers for `(N,)` bool: the likeliest weights under a normal prior, by Newton's method."""
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    there, absent = np.flatnonzero(positive), np.flatnonzero(~positive)
    few = absent[np.linspace(0, len(absent) - 1, min(MOST, len(absent))).round().astype(np.int64)]
    rows = np.concatenate([there, few])
    counts = np.r_[np.ones(len(there)), np.full(len(few), len(absent) / max(1, len(few)))]
    terms, wanted = _terms(features[rows], mean, deviation, form), positive[rows].astype(np.float64)
    weights = np.zeros(terms.shape[1])
    share = np.clip(positive.mean(), 1e-4, 1 - 1e-4)
    weights[0] = np.log(share / (1 - share))
    prior = np.full(len(weights), _RIDGE)
    prior[0] = 1e-6  # the constant is free
    for _ in range(_STEPS):
        likely = _sigmoid(terms @ weights)
        slope = terms.T @ (counts * (wanted - likely)) - prior * weights
        bend = (terms * (counts * likely * (1 - likely))[:, None]).T @ terms
        bend[np.diag_indices_from(bend)] += prior
        step = np.linalg.solve(bend, slope)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-9))
        if np.abs(step).max() < 1e-3:
            break
    return Rule(form, mean, deviation, weights)


def _terms(features: np.ndarray, mean: np.ndarray, deviation: np.ndarray, form: Form) -> np.ndarray:
    """`(N, T)`: 1, the numbers, and products of any two."""
    z = np.clip((features - mean) / deviation, -_FAR, _FAR)
    if form == "contrast":
        z = z[:, :CONTRASTS]
    if form != "products":
        return np.concatenate([np.ones((len(z), 1)), z], 1)
    first, second = np.triu_indices(z.shape[1])
    return np.concatenate([np.ones((len(z), 1)), z, z[:, first] * z[:, second]], 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
