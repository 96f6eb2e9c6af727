"""What pruning and quantising a run share: the run that is asked for, and the recipe that trains on from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flyspeck.errors import UserError
from flyspeck.evaluate import score_curve
from flyspeck.files import write_text
from flyspeck.infer import shown
from flyspeck.models.detector import Detector
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import Recipe, TrainConfig, dump_recipe, load_recipe

RECIPE = "recipe.yaml"
_EXPORTED = (".onnx", ".xml", ".bin", ".tflite")


@dataclass(frozen=True)
class Compressed:
    """A run that is made smaller: its recipe, its detector, and what its file says."""

    run: Path
    recipe: Recipe
    detector: Detector
    description: Mapping[str, Any]


def open_run(run: Path, out: Path, *, verb: str) -> Compressed:
    """The run folder `run`, for `verb` ("pruned", "quantised") and an empty folder `out`.

    Raises UserError for what is no run folder, one of several resolutions or that was trained for INT8, and a folder that holds
    something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("holds something already", where=out, fix="choose another --out")
    if run.suffix.lower() in _EXPORTED and not run.is_dir():
        raise UserError(
            f"an exported file cannot be {verb}: it no longer learns",
            where=run,
            fix="give the run folder it was made of",
        )
    if run.is_file():
        raise UserError("weights without their recipe", where=run, fix="give the run folder that they are in")
    if not (run / RECIPE).is_file():
        raise UserError(
            "no run of flyspeck: it holds no recipe", where=run, fix="give the folder that a training filled"
        )
    recipe = load_recipe(run / RECIPE)
    if recipe.dynamic is not None:
        raise UserError(
            f"a detector of several resolutions has norms for each of them, and cannot be {verb}",
            where=run,
            fix="take one that was trained without the section `dynamic`",
        )
    if recipe.model.quantised:
        raise UserError(
            f"trained for INT8 already, and cannot be {verb}",
            where=run,
            fix="prune before that: flyspeck prune RUN --quantise does both"
            if verb == "pruned"
            else "export it with --int8",
        )
    detector, description = load_described(run)
    return Compressed(run, recipe, detector, description)


def write_start(
    given: Compressed,
    weights: Path,
    *,
    name: str,
    changes: Mapping[str, Any],
    epochs: int | None,
    lr: float,
) -> Path:
    """The detector, changed in place, as `weights`, and beside it the recipe that trains on from there, whose path is returned.

    `changes` are those of the section `model`; `name` is added to the run's. `epochs` None is a quarter of the run's, of a run by
    the clock a quarter of its minutes; `lr` is a factor on its learning rate.
    """
    recipe, description = given.recipe, given.description
    # What was measured holds for the detector as it was, not for this one.
    stale = ("metrics", score_curve.KEY, shown.KEY)
    told = {key: value for key, value in description.items() if key not in stale}
    model = {**description["model"], **changes}
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_weights(weights, dict(given.detector.state_dict()), {**told, "model": model, "metrics": {}})
    start = {"weights": None, "start": str(weights.resolve()), "sigma": None}
    left = recipe.model_copy(
        update={
            "name": f"{recipe.name}_{name}",
            "model": recipe.model.model_copy(update={**changes, **start}),
            "train": _shorter(recipe.train, epochs).model_copy(update={"lr": recipe.train.lr * lr}),
        }
    )
    path = weights.parent / RECIPE
    write_text(path, dump_recipe(left))
    return path


def count_parameters(model: nn.Module) -> int:
    """Of the whole model."""
    return sum(p.numel() for p in model.parameters())


def _shorter(train: TrainConfig, epochs: int | None) -> TrainConfig:
    if epochs is None and train.minutes is not None:
        return train.model_copy(update={"minutes": train.minutes / 4})
    shorter = {"epochs": epochs or max(1, train.epochs // 4), "minutes": None, "schedule": train.whole_schedule}
    return train.model_copy(update=shorter)
