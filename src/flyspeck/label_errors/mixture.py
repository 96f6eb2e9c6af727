"""Logistic regressions on data that are themselves partly wrong: with a ceiling, and against empty places. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 200
_STEPS = 3  # Newton steps of one round
_RIDGE = 1.0  # prior on the weights but the first, in standardised features
LEAST_ERRORS, MOST_ERRORS = 0.002, 0.4
"""Shares of errors that are believed."""
SURE_WEIGHT = 0.1
"""Weight of a place where a curve is believed to say yes, in observations."""


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-values)), elementwise."""
    return 0.5 * (1 + np.tanh(values / 2))


def logit(shares: np.ndarray, least: float = 1e-3) -> np.ndarray:
    """log(p / (1 - p)) of shares kept `least` away from 0 and 1."""
    kept = np.clip(shares, least, 1 - least)
    return np.log(kept / (1 - kept))


@dataclass(frozen=True)
class Curve:
    """P(yes | features) = ceiling * sigmoid(weights . features)."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    ceiling: float

    def inner(self, features: np.ndarray) -> np.ndarray:
        """(N,) the curve without its ceiling, of features (N, F)."""
        return sigmoid(self.standard(features) @ self.weights)

    def standard(self, features: np.ndarray) -> np.ndarray:
        """(N, 1 + F) features as the weights take them: a column of ones, and mean 0 and deviation 1 where it was fitted."""
        standard = (features - self.mean) / self.scale
        return np.concatenate([np.ones((len(features), 1)), standard], 1)


def fit_curve(
    features: np.ndarray, yes: np.ndarray, *, prior: tuple[float, float], sure: np.ndarray | None = None
) -> Curve:
    """The most likely curve of features (N, F) and outcomes (N,) bool, found by expectation maximisation.

    A "yes" needs two things: that the curve says so, and that nobody made an error; where the outcome is "no", the one or the
    other was amiss. `prior` is a beta distribution of the share of errors, in observations (errors, none). `sure` (E, F) are
    features at which the curve is believed to say yes, each with the weight of `SURE_WEIGHT` observations: without them a curve
    that levels off below 1 may be taken for doubt as well as for errors.
    This is learning from positive and unlabelled examples (Elkan and Noto, 2008, Learning Classifiers from Only Positive and
    Unlabeled Data), with their constant c, the ceiling, and the curve fitted together.
    """
    if not len(features):
        flat = np.zeros(features.shape[1])
        return Curve(flat, flat + 1, np.zeros(features.shape[1] + 1), 1 - prior[0] / sum(prior))
    deviation = features.std(0)
    mean, scale = features.mean(0), np.where(deviation > 1e-9, deviation, 1.0)
    curve = Curve(mean, scale, np.zeros(features.shape[1] + 1), 1.0)
    own, count = curve.standard(features), len(features)
    sure = features[:0] if sure is None else sure
    inputs = np.concatenate([own, curve.standard(sure)])
    target = np.concatenate([yes, np.ones(len(sure))])
    importance = np.concatenate([np.ones(count), np.full(len(sure), SURE_WEIGHT)])
    weights, top = curve.weights, 1 - prior[0] / sum(prior)
    for _ in range(_ROUNDS):
        inner = sigmoid(own @ weights)
        truly = np.where(yes, 1.0, (1 - top) * inner / np.maximum(1 - top * inner, 1e-12))
        target[:count] = truly
        weights = _regress(inputs, target, weights, importance, _STEPS)
        before = top
        errors = (truly * ~yes).sum() + prior[0]
        top = 1 - float(np.clip(errors / (truly.sum() + sum(prior)), LEAST_ERRORS, MOST_ERRORS))
        if abs(top - before) < 1e-5:
            break
    return Curve(mean, scale, weights, top)


def fit_contrast(here: np.ndarray, empty: np.ndarray, *, prior: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Which rows of `here` (N, F) are like those of `empty` (E, F): (N,) P(like empty), and the share of such rows.

    `empty` is known to hold nothing; `here` holds something but for an unknown share of its rows. A logistic regression that
    tells the two apart gives the ratio of their densities; it and the share are fitted together, by expectation maximisation.
    """
    both = np.concatenate([here, empty])
    deviation = both.std(0)
    inputs = (both - both.mean(0)) / np.where(deviation > 1e-9, deviation, 1.0)
    inputs = np.concatenate([np.ones((len(both), 1)), inputs], 1)
    count, nothing = len(here), np.zeros(len(empty))
    rate, weights = prior[0] / sum(prior), np.zeros(inputs.shape[1])
    like = np.full(count, rate)
    for _ in range(_ROUNDS):
        weights = _regress(inputs, np.concatenate([1 - like, nothing]), weights, np.ones(len(both)), _STEPS)
        # odds of "something" in the mixture of both sets: from them the ratio of the two densities
        ratio = np.exp(np.minimum(inputs[:count] @ weights, 500)) * (len(empty) + count * rate) / (count * (1 - rate))
        like = rate / (rate + (1 - rate) * ratio)
        before, rate = rate, float((like.sum() + prior[0]) / (count + sum(prior)))
        rate = min(max(rate, LEAST_ERRORS), MOST_ERRORS)
        if abs(rate - before) < 1e-5:
            break
    return like, rate


def _regress(
    inputs: np.ndarray, target: np.ndarray, weights: np.ndarray, importance: np.ndarray, steps: int
) -> np.ndarray:
    """Newton steps of ridge logistic regression towards `target` (N,) in [0, 1], halved until the loss falls."""
    ridge = np.full(inputs.shape[1], _RIDGE)
    ridge[0] = 1e-3

    def loss_of(weights: np.ndarray) -> float:
        at = inputs @ weights
        return float((importance * (np.logaddexp(0, at) - target * at)).sum() + 0.5 * (ridge * weights**2).sum())

    loss = loss_of(weights)
    for _ in range(steps):
        chance = sigmoid(inputs @ weights)
        slope = inputs.T @ (importance * (chance - target)) + ridge * weights
        curvature = (inputs * (importance * chance * (1 - chance))[:, None]).T @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        for _ in range(10):
            further, new = weights - step, loss_of(weights - step)
            if new <= loss:
                break
            step = step / 2
        else:
            return weights
        weights, gain, loss = further, loss - new, new
        if gain < 1e-9 * (1 + abs(loss)):
            break
    return weights
