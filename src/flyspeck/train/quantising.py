"""A trained detector to one that trains for INT8, and to its recipe (`models.fake_quantised` says what is rounded)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flyspeck.models.fake_quantised import fake_quantise
from flyspeck.train.compressing import Compressed, open_run, write_start

WEIGHTS = "quantised.safetensors"


@dataclass(frozen=True)
class Quantised:
    """What `quantise_run` wrote."""

    weights: Path
    recipe: Path
    distills: bool
    """Whether the recipe goes on learning from a teacher (`flyspeck distill`), or from the ground truth (`flyspeck train`)."""
    layers: int
    """How many round what they take and their weights."""


def quantise_run(run: Path, out: Path, *, epochs: int | None = None, lr: float = 0.1) -> Quantised:
    """Writes the weights of a trained detector and a recipe that trains them for INT8 into the folder `out`.

    Args:
        run: A run folder.
        out: A folder that holds nothing yet.
        epochs: Of the recipe; None is a quarter of the run's, of a run by the clock a quarter of its minutes.
        lr: Factor on the run's learning rate.

    Raises:
        UserError: For a folder that holds something, for what is no run folder, and for a detector that cannot be exported,
            has several resolutions, or was trained for INT8 already.
    """
    given = open_run(run, out, verb="quantised")
    layers = quantise(given)
    recipe = write_start(given, out / WEIGHTS, name="int8", changes={"quantised": True}, epochs=epochs, lr=lr)
    return Quantised(out / WEIGHTS, recipe, given.recipe.distill is not None, layers)


def quantise(given: Compressed) -> int:
    """Lets the detector round, in place; returns how many layers do. Raises UserError for one that no file can hold."""
    head = given.detector.head
    if not head.implements("decode_batch"):
        raise head.lacks("decode_batch", "be exported, which INT8 is for")
    return fake_quantise(given.detector)
