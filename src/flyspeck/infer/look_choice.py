"""Which cheap first look decides about skipping tiles: the best one that a model has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyspeck.infer.engines import is_exported
from flyspeck.infer.skip import DetectorLook, SkipRule


def choose_skip_rule(model: Path, network: Any, *, audit: float, score: float, say: Callable[[str], None]) -> SkipRule:
    """The look of the run folder where `flyspeck tune look` left one, else the predictor's statistic branch, else the detector
    itself on a coarse image; `say` is told which.

    `audit` is the share of the empty tiles that is run all the same, `score` from which on a detection counts in it.
    """
    path = (model if model.is_dir() else model.parent) / "look.safetensors"
    if path.is_file():
        from flyspeck.infer.presence import PresenceLook

        look = PresenceLook(path)
        say(
            f"skip: {path.name} at 1/{look.shrink} of the size, threshold {look.threshold:.3f}; in validation it passed over "
            f"{100 * look.calibration['lost']:.1f} % of the objects, each taken alone"
        )
        return SkipRule(look=look, threshold=look.threshold, audit=audit, score=score)
    if not is_exported(model):
        from flyspeck.infer.statistic import StatisticLook, has_statistics

        if has_statistics(network):
            say(
                "skip: tiles in which the factor predictor expects fewer than 0.5 objects; 'flyspeck tune look RUN' trains a "
                "first look that is much cheaper"
            )
            return SkipRule(look=StatisticLook(network), threshold=0.5, audit=audit, score=score)
    say("skip: by the detector itself at 1/4 of the size; 'flyspeck tune look RUN' trains a better first look")
    return SkipRule(look=DetectorLook(network, shrink=4), threshold=0.1, audit=audit, score=score)
