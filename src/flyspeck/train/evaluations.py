"""The evaluations of a run: how it measures itself, and what is kept of the best, which is not measured twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.models.detector import Detector
from flyspeck.train.config import Recipe
from flyspeck.train.measure import Measurement, measure
from flyspeck.train.measure_factors import measure_factors
from flyspeck.train.progress import Console
from flyspeck.train.viewing import remarks_on, viewing_of

log = logging.getLogger("flyspeck")


class Evaluations:
    """Measures a model, and holds on to what was found by the best so far, which is not measured twice then."""

    def __init__(self, annotations: Annotations, measured: Callable[[nn.Module], Measurement]) -> None:
        self.annotations, self._measured = annotations, measured
        self._last: Measurement | None = None
        self.best: Measurement | None = None
        """Of this process; None where the best weights are of before a run was resumed."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the validation set."""
        self._last = self._measured(model)
        return self._last.metrics

    def keep(self) -> None:
        """The model that was measured last is the best."""
        self.best = self._last


def evaluations_of(
    recipe: Recipe,
    description: Mapping[str, Any],
    detector: Detector,
    val_set: Annotations,
    rule: PixelRule,
    accelerator: Accelerator,
    console: Console,
) -> Evaluations:
    """How the run measures itself; what is unusual about it is said once."""
    viewing = viewing_of(recipe, description, detector, rule)
    if accelerator.is_main_process:
        for line in remarks_on(viewing, val_set, detector):
            log.info(line)
    measured = partial(
        measure,
        annotations=val_set,
        protocol=recipe.evaluate.protocol,
        viewing=viewing,
        accelerator=accelerator,
        tell=console.evaluating() if accelerator.is_main_process else None,
    )
    return Evaluations(val_set, measured if recipe.dynamic is None else partial(measure_factors, measure=measured))
