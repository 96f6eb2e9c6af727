"""A trained detector to a pruned one, and to the recipe that trains what is left (`models.prune` says what is cut)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flyspeck.models.detector import Detector
from flyspeck.models.fold import probe_images
from flyspeck.models.prune import prune_channels
from flyspeck.train.compressing import count_parameters, open_run, write_start
from flyspeck.train.quantising import quantise as let_round

WEIGHTS = "pruned.safetensors"


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
    quantised: int = 0
    """Layers that round for INT8 while what is left is trained."""


def prune_run(
    run: Path,
    out: Path,
    *,
    share: float,
    multiple: int = 4,
    epochs: int | None = None,
    lr: float = 0.1,
    quantise: bool = False,
) -> Pruned:
    """Cuts `share` of the inner channels of a trained detector, and writes its weights and a recipe into the folder `out`.

    Args:
        run: A run folder.
        out: A folder that holds nothing yet.
        share: Of the channels that only two layers see, above 0 and below 1: those with the lowest norm scales go.
        multiple: Of which the widths that are left are multiples.
        epochs: Of the recipe; None is a quarter of the run's, of a run by the clock a quarter of its minutes.
        lr: Factor on the run's learning rate.
        quantise: Train what is left for INT8 at once (`quantising.quantise_run`).

    Raises:
        UserError: For a folder that holds something, what is no run folder, a detector of several resolutions or trained for
            INT8, or one without anything to cut.
    """
    given = open_run(run, out, verb="pruned")
    detector = given.detector
    before = count_parameters(detector)
    side = max(64, detector.divisor, detector.smallest_side)
    probe = probe_images(len(given.description["mean"]), side)

    def shown_maps(model: torch.nn.Module) -> object:
        assert isinstance(model, Detector)
        maps = model.pyramid(probe)
        return [*maps, model.head.dense_part()(maps)]

    done = prune_channels(detector, shown_maps, share=share, multiple=multiple)
    after = count_parameters(detector)
    layers = let_round(given) if quantise else 0
    recipe = write_start(
        given,
        out / WEIGHTS,
        name="pruned_int8" if quantise else "pruned",
        changes={
            "pruned": {**(given.recipe.model.pruned or {}), **done.kept},
            **({"quantised": True} if quantise else {}),
        },
        epochs=epochs,
        lr=lr,
    )
    distills = given.recipe.distill is not None
    return Pruned(out / WEIGHTS, recipe, distills, (done.before, done.after), (before, after), layers)
