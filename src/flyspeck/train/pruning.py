"""A trained detector to a pruned one, and to the recipe that trains what is left (`models.prune` says what is cut)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.evaluate import score_curve
from flyspeck.files import write_text
from flyspeck.infer import shown
from flyspeck.models.detector import Detector
from flyspeck.models.fold import probe_images
from flyspeck.models.prune import prune_channels
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import TrainConfig, dump_recipe, load_recipe

WEIGHTS = "pruned.safetensors"
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Pruned:
    """What `prune_run` wrote, and what it made smaller."""

    weights: Path
    recipe: Path
    distills: bool
    """Whether the recipe goes on learning from a teacher (`flyspeck distill`), or from the ground truth (`flyspeck train`)."""
    channels: tuple[int, int]
    """Inner channels that could be cut: before and after."""
    parameters: tuple[int, int]
    """Of the whole detector: before and after."""


def prune_run(
    run: Path, out: Path, *, share: float, multiple: int = 4, epochs: int | None = None, lr: float = 0.1
) -> Pruned:
    """Cuts `share` of the inner channels of a trained detector, and writes its weights and a recipe into the folder `out`.

    Args:
        run: A run folder.
        out: A folder that holds nothing yet.
        share: Of the channels that only two layers see, above 0 and below 1: those with the lowest norm scales go.
        multiple: Of which the widths that are left are multiples.
        epochs: Of the recipe; None is a quarter of the run's, of a run by the clock a quarter of its minutes.
        lr: Factor on the run's learning rate.

    Raises:
        UserError: For a folder that holds something, a detector of several resolutions, or one without anything to cut.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("holds something already", where=out, fix="choose another --out")
    recipe = load_recipe(run / RECIPE)
    if recipe.dynamic is not None:
        raise UserError(
            "a detector of several resolutions has norms for each of them, and cannot be pruned",
            where=run,
            fix="prune one that was trained without the section `dynamic`",
        )
    detector, description = load_described(run)
    before = _count(detector)
    side = max(64, detector.divisor, detector.smallest_side)
    probe = probe_images(len(description["mean"]), side)

    def shown_maps(model: torch.nn.Module) -> object:
        assert isinstance(model, Detector)
        maps = model.pyramid(probe)
        return [*maps, model.head.dense_part()(maps)]

    done = prune_channels(detector, shown_maps, share=share, multiple=multiple)
    pruned = {**(recipe.model.pruned or {}), **done.kept}
    # What was measured holds for the whole detector, not for this one.
    stale = ("metrics", score_curve.KEY, shown.KEY)
    told = {key: value for key, value in description.items() if key not in stale}
    model = {**description["model"], "pruned": pruned}
    weights, plan = out / WEIGHTS, out / RECIPE
    out.mkdir(parents=True, exist_ok=True)
    save_weights(weights, _state(detector), {**told, "model": model, "metrics": {}})
    left = recipe.model_copy(
        update={
            "name": f"{recipe.name}_pruned",
            "model": recipe.model.model_copy(
                update={"pruned": pruned, "weights": None, "start": str(weights.resolve()), "sigma": None}
            ),
            "train": _shorter(recipe.train, epochs).model_copy(update={"lr": recipe.train.lr * lr}),
        }
    )
    write_text(plan, dump_recipe(left))
    return Pruned(weights, plan, recipe.distill is not None, (done.before, done.after), (before, _count(detector)))


def _shorter(train: TrainConfig, epochs: int | None) -> TrainConfig:
    if epochs is None and train.minutes is not None:
        return train.model_copy(update={"minutes": train.minutes / 4})
    return train.model_copy(update={"epochs": epochs or max(1, train.epochs // 4), "minutes": None})


def _count(detector: Detector) -> int:
    return sum(p.numel() for p in detector.parameters())


def _state(detector: Detector) -> dict[str, Tensor]:
    return dict(detector.state_dict())
