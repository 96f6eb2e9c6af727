"""The evaluations of a run: how it measures itself, and what is kept of the best, which is not measured twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.models.detector import Detector
from flyspeck.train.config import Recipe
from flyspeck.train.inputs import spread
from flyspeck.train.measure import Measurement, measure
from flyspeck.train.measure_factors import measure_factors
from flyspeck.train.progress import Console
from flyspeck.train.viewing import remarks_on, viewing_of

log = logging.getLogger("flyspeck")
QUICK = 0.5
"""Seconds: a trial that took no longer says little."""


class Evaluations:
    """Measures a model, and holds on to what was found by the best so far, which is not measured twice then."""

    def __init__(self, annotations: Annotations, measured: Callable[[nn.Module, Annotations], Measurement]) -> None:
        """`measured` is also called on a few of the `annotations`, to see how long it takes."""
        self.annotations, self._measured = annotations, measured
        self._last: Measurement | None = None
        self.best: Measurement | None = None
        """Of this process; None where the best weights are of before a run was resumed."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the validation set."""
        self._last = self._measured(model, self.annotations)
        return self._last.metrics

    def keep(self) -> None:
        """The model that was measured last is the best."""
        self.best = self._last

    def expected_seconds(self, model: nn.Module, *, processes: int = 1) -> float:
        """What a call will take, from a few images: twice as many each time, until they take long enough to tell.

        The very first call pays for much that is paid once (kernels that are chosen, imports, caches), so that it counts for
        nothing. Several processes, which must do the same, look at four images each. Early weights find less than later ones,
        whose boxes take time too: the plan of a run by the clock asks again, and knows better once it has measured.
        """
        self._timed(model, processes)
        count = processes if processes == 1 else 4 * processes
        while True:
            seconds, share = self._timed(model, count)
            if share == 1 or seconds > QUICK or processes > 1:
                return seconds / share
            count *= 2

    def _timed(self, model: nn.Module, count: int) -> tuple[float, float]:
        """Seconds of a measurement on so many images, and the share of all pixels that these are."""
        some = spread(self.annotations, count)
        begun = time.monotonic()
        self._measured(model, some)
        return time.monotonic() - begun, _pixels(some) / _pixels(self.annotations)


def _pixels(table: Annotations) -> float:
    """Of all images; their number where sizes are not known."""
    areas = table.sizes.astype(np.float64).prod(1)
    return float(areas.sum()) if (areas > 0).all() else float(len(table))


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
    tell = console.evaluating() if accelerator.is_main_process else None

    def measured(model: nn.Module, annotations: Annotations) -> Measurement:
        once = partial(
            measure,
            annotations=annotations,
            protocol=recipe.evaluate.protocol,
            viewing=viewing,
            accelerator=accelerator,
            tell=tell if annotations is val_set else None,
        )
        return once(model) if recipe.dynamic is None else measure_factors(model, measure=once)

    return Evaluations(val_set, measured)
