"""Processes of a training that share its batches, one of which kills itself. Imported by each, so by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

RANK, STEP, RESUME = "FLYSPECK_TEST_RANK", "FLYSPECK_TEST_STEP", "FLYSPECK_TEST_RESUME"
"""Variables: which process dies, before which step (from 0; `measure`: as it evaluates), and whether a run goes on."""


def work(recipe: Path, folder: Path, rank: int, world: int, port: int, threads: int) -> None:
    """As `launch._work`, whose place it takes."""
    from flyspeck.train import evaluations, launch, loop, run

    step, measure, train, steps = loop._train_step, evaluations.measure, run.train, [0]

    def due(place: str) -> None:
        if os.environ.get(RANK) == str(rank) and os.environ.get(STEP) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(*words: Any) -> Any:
        due(str(steps[0]))
        steps[0] += 1
        return step(*words)

    def measuring(*words: Any, **more: Any) -> Any:
        due("measure")
        return measure(*words, **more)

    def training(recipe: Any, folder: Path) -> Any:
        return train(recipe, folder, resume=RESUME in os.environ and run.begun(folder))

    loop._train_step, evaluations.measure, run.train = stepping, measuring, training
    launch._work(recipe, folder, rank, world, port, threads)
