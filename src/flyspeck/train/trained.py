"""`train`: a recipe to a finished run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyspeck.files import local_output
from flyspeck.plain_yaml import Places, set_value
from flyspeck.train.config import Recipe, load_recipe, parse_recipe, resolve_paths
from flyspeck.train.interrupt import said_how_to_go_on
from flyspeck.train.progress import Reporter, read_records
from flyspeck.train.run import train as run_recipe


@dataclass(frozen=True)
class TrainedRun(os.PathLike[str]):
    """A finished run. It can be given wherever a run folder is asked for."""

    folder: Path
    """`recipe.yaml`, `environment.json`, `metrics.jsonl`, `metrics.csv`, `curves.html`, weights, and of the best weights
    `detections.json` and `evaluation.json`."""
    recipe: Recipe
    """As it was asked for; the complete one, with what was taken from the training set, is `recipe.yaml`."""
    metrics: Mapping[str, float]
    """Of the best weights on the validation set, under the recipe's protocol: shares from 0 to 1, -1 where there is no ground
    truth."""

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def weights(self) -> Path:
        """The best weights."""
        return self.folder / "best.safetensors"

    @property
    def detections(self) -> Path:
        """What the best weights find in the validation set, as COCO results."""
        return self.folder / "detections.json"

    @property
    def history(self) -> list[dict[str, Any]]:
        """A record for each epoch: `epoch`, `seconds`, `losses` (name to mean), `metrics` (name to value)."""
        return [record for record in read_records(self.folder / "metrics.jsonl") if record.get("kind") == "epoch"]


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    changes: Sequence[str] = (),
    resume: bool = False,
    finish: bool = False,
    reporter: Reporter | None = None,
) -> TrainedRun:
    """Train a detector as a recipe says.

    Args:
        recipe: A YAML file, a run folder to go on with, a mapping of the same sections, or a `Recipe`. Paths in a file are
            relative to it, in a mapping to the working directory.
        out: The run folder; None: the run folder given, or `runs/NAME`.
        changes: Fields to change, as in `["train.epochs=3"]`; values are YAML, paths relative to the working directory. Not
            for a `Recipe`.
        resume: Go on from the run's last checkpoint, also for more or fewer epochs or minutes than before.
        finish: End a run that was stopped: its learning rate is brought down from the last checkpoint on (`train.anneal`).
        reporter: Told what happens; None: the run's files, and the console.

    Returns:
        The run with the metrics of its best weights.

    Raises:
        UserError: For a recipe with an unknown or impossible field, a data set that cannot be read, a folder that holds a run
            already (without `resume`), a recipe with a section `distill` (which takes a teacher: `flyspeck distill`).
    """
    wanted, folder = read_recipe(recipe, changes)
    where = local_output(out) if out is not None else folder or Path("runs") / wanted.name
    with said_how_to_go_on(where, finish=True):
        metrics = run_recipe(wanted, where, resume=resume or finish, finish=finish, reporter=reporter)
    return TrainedRun(where, wanted, metrics)


def read_recipe(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, changes: Sequence[str] = ()
) -> tuple[Recipe, Path | None]:
    """The checked recipe that `train` is given, and the run folder where that is what names it."""
    if isinstance(recipe, Recipe):
        if changes:
            raise ValueError("changes to a Recipe: use its model_copy")
        return recipe, None
    if isinstance(recipe, Mapping):
        content, places = _plain(recipe), Places("recipe")
        for change in changes:
            set_value(content, places, change)
        return resolve_paths(parse_recipe(content, locate=places), Path.cwd()), None
    path = Path(recipe)
    folder = path if path.is_dir() else None
    return load_recipe(path / "recipe.yaml" if folder else path, list(changes)), folder


def _plain(value: Any) -> Any:
    """Mappings and sequences copied, paths as text: what a YAML file would hold."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
