"""Brute force for the fusion factor: short runs of one recipe over a grid of factors (fusion factor paper, Fig. 1).

Every run is an ordinary run folder, so that each can be looked at, and a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flyspeck.errors import UserError
from flyspeck.evaluate.results import goodness
from flyspeck.files import renamed_keys, write_json
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig, Recipe

RunRecipe = Callable[[Recipe, Path], dict[str, float]]
"""A recipe and a folder to the metrics of the best weights, as `flyspeck.train.run.train`."""


@dataclass(frozen=True)
class Trial:
    """One run of the search."""

    fusion: list[float] | str
    """The factors, finest edge first, or `statistic`."""
    seed: int
    metrics: dict[str, float]
    """Of the best weights, by the recipe's protocol."""


def tune_fusion(
    recipe: Recipe,
    folder: Path,
    candidates: Sequence[float | str],
    *,
    run: RunRecipe,
    seeds: Sequence[int] = (0,),
    num_edges: int = 3,
) -> list[Trial]:
    """Trains the recipe once per candidate and seed; a candidate is one factor for all edges, or `statistic`.

    A run that has left `trial.json` in its folder is not repeated; one that was broken off resumes.
    """
    trials = []
    for candidate in candidates:
        fusion = candidate if isinstance(candidate, str) else [float(candidate)] * num_edges
        for seed in seeds:
            name = f"alpha-{candidate if isinstance(candidate, str) else f'{candidate:g}'}-seed-{seed}"
            trials.append(_trial(recipe, folder / name, fusion, seed, run))
    return trials


def count_edges(model: ModelConfig) -> int:
    """Top-down edges of a recipe's pyramid; raises UserError where its neck has no fusion factors."""
    with torch.device("meta"):
        plain = model.model_copy(update={"fusion": None})
        detector = build_detector(plain, classes=("object",), mean=(0.5,), std=(0.5,), load=False)
        edges = len(detector.backbone.features) - 1  # type: ignore[arg-type]
        fused = model.model_copy(update={"fusion": [1.0] * edges})
        build_detector(fused, classes=("object",), mean=(0.5,), std=(0.5,), load=False)
    return edges


def _trial(recipe: Recipe, folder: Path, fusion: list[float] | str, seed: int, run: RunRecipe) -> Trial:
    done = folder / "trial.json"
    if done.is_file():
        return _read(done, fusion, seed)
    model = recipe.model.model_copy(update={"fusion": fusion})
    train = recipe.train.model_copy(update={"seed": seed})
    metrics = run(recipe.model_copy(update={"name": folder.name, "model": model, "train": train}), folder)
    trial = Trial(fusion, seed, metrics)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(done, asdict(trial))
    return trial


def _read(path: Path, fusion: list[float] | str, seed: int) -> Trial:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trial = Trial(content["fusion"], content["seed"], renamed_keys(content)["metrics"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError("not the result of a run", where=path, fix="delete the file to run it again") from None
    if (trial.fusion, trial.seed) != (fusion, seed):
        raise UserError(f"holds the run of {trial.fusion}, seed {trial.seed}", where=path, fix="choose another --out")
    return trial


def mean_by_factor(trials: Sequence[Trial], metric: str) -> dict[float | str, tuple[float, float, float]]:
    """Factor (that of all edges, or `statistic`) to the mean, lowest and highest `metric` over its seeds, in order."""
    values: dict[float | str, list[float]] = {}
    for trial in trials:
        if metric not in trial.metrics:
            known = ", ".join(sorted(trial.metrics))
            raise UserError(f"no metric '{metric}' in the runs", where="--metric", fix=f"known: {known}")
        key = trial.fusion if isinstance(trial.fusion, str) else trial.fusion[0]
        values.setdefault(key, []).append(trial.metrics[metric])
    return {key: (sum(found) / len(found), min(found), max(found)) for key, found in values.items()}


def best_factor(means: dict[float | str, tuple[float, float, float]], metric: str) -> float:
    """The grid's factor with the best mean of `metric`, the highest but of miss rates; the smallest of several."""
    grid = {key: goodness(metric, value[0]) for key, value in means.items() if not isinstance(key, str)}
    return min(grid, key=lambda key: (-grid[key], key))
