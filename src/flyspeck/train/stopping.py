"""Early stopping: when further training has not helped for a while."""

from __future__ import annotations

import logging

from flyspeck.errors import counted
from flyspeck.evaluate.results import falls, goodness
from flyspeck.train.plan import Plan
from flyspeck.train.sections import TrainConfig
from flyspeck.train.state import Progress

log = logging.getLogger("flyspeck")


def stalled(progress: Progress, config: TrainConfig, best: str) -> bool:
    """Whether the evaluation that was just made is the one that stops the run; counts it, and says why.

    An evaluation gains where the metric `best` is above that of the last gain (a miss rate: below it) by more than
    `config.min_gain`; after `config.patience` evaluations in a row without, training stops. The first evaluation always gains.
    """
    value = progress.metrics.get(best)
    if config.patience is None or value is None or progress.stopped:
        return False
    if goodness(best, value) > goodness(best, progress.mark) + config.min_gain:
        progress.mark, progress.stale = value, 0
        return False
    progress.stale += 1
    if progress.stale < config.patience:
        return False
    gain = f" by more than {100 * config.min_gain:g} points" if config.min_gain else ""
    progress.stopped = (
        f"{best} has not {'fallen' if falls(best) else 'risen'}{gain} in {counted(progress.stale, 'evaluation')}: "
        f"{100 * value:.1f} after {100 * progress.mark:.1f}"
    )
    log.info("early stopping: %s", progress.stopped)
    return True


def finished(progress: Progress, plan: Plan, config: TrainConfig) -> None:
    """Ends a run that was stopped, unless it is done, or about to be: only the rest of its schedule is left to go through."""
    if not progress.ended and not progress.stopped:
        progress.stopped = "finished before its time"
        plan.shorten(config, progress.step)
