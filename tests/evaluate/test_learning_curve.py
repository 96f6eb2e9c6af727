"""Curves of known shape, with noise of a seed: what is said of them, and how often something is said of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flyspeck.evaluate.learning_curve import remarks

T = np.linspace(0, 1, 24)
FALLING = 2 * np.exp(-3 * T) + 0.5
FLAT_LOSS = 2 * np.exp(-30 * T) + 0.5


def history(losses: np.ndarray, values: np.ndarray | None, every: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for k, loss in enumerate(losses):
        record: dict[str, Any] = {"epoch": k + 1, "losses": {"cls": 0.7 * loss, "box": 0.3 * loss}}
        if values is not None and (k + 1) % every == 0:
            record["metrics"] = {"ap50_tiny": float(values[k])}
        found.append(record)
    return found


def said(losses: np.ndarray, values: np.ndarray | None, every: int = 1) -> str:
    return " ".join(remarks(history(losses, values, every), "ap50_tiny"))


RISING = 0.5 * T
SATURATED = 0.5 * (1 - np.exp(-12 * T))
OVERFITTED = 0.5 * (1 - np.exp(-12 * T)) - 0.25 * np.maximum(0, T - 0.4)


@pytest.mark.parametrize("noise", [0.0, 0.004, 0.01])
@pytest.mark.parametrize(
    ("losses", "values", "words"),
    [
        (FALLING, RISING, "ap50_tiny was still rising at the end"),
        (FLAT_LOSS, RISING, "ap50_tiny was still rising at the end"),
        (FALLING, SATURATED, ""),  # the loss falls on, which helps nobody: nor does it harm
        (FALLING, OVERFITTED, "over-fitted: ap50_tiny fell from"),
        (FLAT_LOSS, OVERFITTED, ""),  # the loss is as flat: that is something else
        (FALLING, None, "the loss was still falling at the end"),
        (FLAT_LOSS, None, ""),
        (FLAT_LOSS, np.full(24, -1.0), ""),  # nothing of that kind to find: the loss alone speaks
        (FALLING, np.full(24, -1.0), "the loss was still falling"),
    ],
)
def test_curves_of_known_shape(losses: np.ndarray, values: np.ndarray | None, words: str, noise: float) -> None:
    rng = np.random.default_rng(4)
    right = 0
    for _ in range(25):
        noisy = values if values is None or values[0] < 0 else np.clip(values + rng.normal(0, noise, len(values)), 0, 1)
        found = said(losses * (1 + rng.normal(0, noise, len(losses))), noisy)
        right += found.startswith(words) and bool(found) == bool(words)
    assert right >= (25 if noise == 0 else 22), f"{right} of 25"


@pytest.mark.parametrize("count", [4, 6, 12, 40])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_noise_alone_is_seldom_called_a_trend(count: int, noise: float) -> None:
    rng = np.random.default_rng(9)
    losses = np.linspace(1, 0.5, count)
    wrong = sum(bool(said(losses, 0.4 + rng.normal(0, noise, count))) for _ in range(200))
    assert wrong <= 40, f"{wrong} of 200"


def test_the_best_weights_are_named_and_too_little_says_nothing() -> None:
    values = np.array([0.1, 0.3, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25])
    losses = np.linspace(2, 1, 8)
    assert "The best weights are of epoch 3" in said(losses, values)
    assert "fell from 40.0 to 27.5" in said(losses, np.array([0.1, 0.3, 0.4, 0.4, 0.35, 0.3, 0.3, 0.25]))
    for length in range(4):
        assert said(losses[:length], values[:length]) == ""
    # Two evaluations of eight epochs cannot tell: the loss does.
    assert said(losses, values, every=4).startswith("the loss was still falling at the end (21 %")
    assert remarks([{"epoch": k, "losses": {}} for k in range(9)], "ap50_tiny") == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (1 - RISING, "mr50_tiny was still falling at the end (-13.0 points in the last quarter): train longer"),
        (1 - OVERFITTED, "over-fitted: mr50_tiny rose from "),
        (1 - SATURATED, ""),
    ],
)
def test_a_miss_rate_is_better_the_less_it_is(values: np.ndarray, words: str) -> None:
    records = [
        {"epoch": k + 1, "losses": {"cls": float(loss)}, "metrics": {"mr50_tiny": float(value)}}
        for k, (loss, value) in enumerate(zip(FALLING, values, strict=True))
    ]
    found = " ".join(remarks(records, "mr50_tiny"))
    assert found.startswith(words)
    assert bool(found) == bool(words)
