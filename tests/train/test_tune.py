"""The search for the fusion factor: which runs it makes, what it keeps, what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flyspeck.errors import UserError
from flyspeck.report.alpha import plot_factors
from flyspeck.train.config import ModelConfig, parse_recipe
from flyspeck.train.tune import best_factor, count_edges, mean_by_factor, tune_fusion

RECIPE = parse_recipe({"data": {"train": "a", "val": "b"}, "model": {"name": "fcos:resnet18"}})


class Peak:
    """Stands for training: AP falls with the distance of α from 0.5, and rises a little with the seed."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, recipe, folder):
        self.calls.append((recipe.model.fusion, recipe.train.seed, folder.name))
        fusion = recipe.model.fusion
        alpha = 0.4 if fusion == "statistic" else fusion[0]
        return {"ap50_tiny": 0.5 - abs(alpha - 0.5) + 0.01 * recipe.train.seed}


def test_each_factor_and_seed_is_one_run(tmp_path):
    run = Peak()
    trials = tune_fusion(RECIPE, tmp_path, [0.0, 0.5, "statistic"], run=run, seeds=range(2))
    assert run.calls[:3] == [
        ([0.0] * 3, 0, "alpha-0-seed-0"),
        ([0.0] * 3, 1, "alpha-0-seed-1"),
        ([0.5] * 3, 0, "alpha-0.5-seed-0"),
    ]
    assert run.calls[-1] == ("statistic", 1, "alpha-statistic-seed-1")
    means = mean_by_factor(trials, "ap50_tiny")
    assert means[0.5] == pytest.approx((0.505, 0.5, 0.51))
    assert means["statistic"] == pytest.approx((0.405, 0.4, 0.41))
    assert best_factor(means, "ap50_tiny") == 0.5


def test_a_stopped_search_goes_on(tmp_path):
    first = Peak()
    tune_fusion(RECIPE, tmp_path, [0.0, 0.5], run=first)
    second = Peak()
    trials = tune_fusion(RECIPE, tmp_path, [0.0, 0.5, 1.0], run=second)
    assert [call[2] for call in second.calls] == ["alpha-1-seed-0"]
    assert [trial.fusion[0] for trial in trials] == [0.0, 0.5, 1.0]


def test_the_smaller_of_equal_factors_is_best():
    assert best_factor({1.0: (0.4, 0.4, 0.4), 0.5: (0.4, 0.4, 0.4), "statistic": (0.9, 0.9, 0.9)}, "ap50_tiny") == 0.5


def test_of_miss_rates_the_lowest_is_best():
    means: dict[float | str, tuple[float, float, float]] = {0.5: (0.9, 0.9, 0.9), 1.0: (0.4, 0.4, 0.4)}
    assert (best_factor(means, "mr50_tiny"), best_factor(means, "ap50_tiny")) == (1.0, 0.5)


def test_broken_and_foreign_results_are_named(tmp_path):
    tune_fusion(RECIPE, tmp_path, [0.5], run=Peak())
    result = tmp_path / "alpha-0.5-seed-0" / "trial.json"
    result.write_text("{")
    with pytest.raises(UserError, match=r"trial\.json.*not the result of a run"):
        tune_fusion(RECIPE, tmp_path, [0.5], run=Peak())
    result.write_text(json.dumps({"fusion": [0.1] * 3, "seed": 0, "metrics": {}}))
    with pytest.raises(UserError, match=r"holds the run of \[0\.1"):
        tune_fusion(RECIPE, tmp_path, [0.5], run=Peak())
    trials = tune_fusion(RECIPE, tmp_path / "other", [0.5], run=Peak())
    with pytest.raises(UserError, match=r"no metric 'ap'.*known: ap50_tiny"):
        mean_by_factor(trials, "ap")


def test_edges_of_the_pyramid_and_necks_without_any():
    small = {"width": 0.25, "channels": 16}
    assert count_edges(ModelConfig(name="fcos:resnet18", **small)) == 3
    assert count_edges(ModelConfig(name="fcos:resnet18", levels="3-7", **small)) == 2
    with pytest.raises(UserError, match="sspnet has no top-down fusion factors"):
        count_edges(ModelConfig(name="fcos:resnet18:sspnet", **small))


def test_the_plot_is_a_image(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "alpha.png"
    plot_factors(
        {0.0: (0.3, 0.2, 0.4), 0.5: (0.5, 0.4, 0.6), "statistic": (0.45, 0.45, 0.45)}, path, metric="ap50_tiny"
    )
    from PIL import Image

    with Image.open(path) as image:
        assert image.size == (750, 525)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
