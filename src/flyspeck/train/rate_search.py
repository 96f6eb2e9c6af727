"""A learning-rate range test: a short training whose rate rises from step to step, until the loss grows.

Smith, arXiv:1506.01186, section 3.3, with the rate on a logarithmic axis. Where the smoothed loss falls fastest the rate is high
enough to learn and well below where training breaks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flyspeck.errors import UserError
from flyspeck.train.config import Recipe
from flyspeck.train.dynamic import objective_of, optimisation
from flyspeck.train.inputs import training_loader
from flyspeck.train.meter import OBSERVED
from flyspeck.train.optim import build_optimizer, set_lr
from flyspeck.train.processes import join_processes
from flyspeck.train.run import starting_point

SMOOTH = 0.9
"""Of the running mean of the loss, corrected for its beginning."""
BROKEN = 3.0
"""The test ends where the smoothed loss is so many times its lowest."""
SETTLED = 5
"""First steps that are not judged: the running mean has seen too little."""


@dataclass(frozen=True)
class RateSearch:
    """What a range test found."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step."""
    smoothed: tuple[float, ...]
    lr: float
    """Where the smoothed loss falls fastest, to two digits."""
    lowest: float
    """Where it is lowest: from about there on training breaks."""


def find_rate(
    recipe: Recipe,
    *,
    low: float,
    high: float,
    steps: int = 100,
    tell: Callable[[int, float, float], None] = lambda step, rate, loss: None,
) -> RateSearch:
    """Trains `recipe` for at most `steps` steps with rates from `low` to `high`, and judges the losses.

    The recipe's own schedule, warm-up and average play no part; its optimiser, batches and augmentation do. `tell(step, rate,
    loss)` is called after each step. Raises UserError where the loss falls nowhere, and what `train` raises.
    """
    begins = starting_point(recipe)
    config, device = optimisation(begins.recipe.train, begins.recipe.dynamic), join_processes().device
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    objective = objective_of(begins.detector, begins.recipe.dynamic).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(objective, config)
    objective.train()
    rates, losses = [], []
    with contextlib.closing(
        training_loader(
            begins.recipe,
            begins.train_set,
            rule=begins.rule,
            divisor=begins.detector.divisor,
            smallest=begins.detector.smallest_side,
            rank=0,
            world_size=1,
        )
    ) as loader:
        stream = _endless(loader)
        for step, rate in enumerate(np.geomspace(low, high, steps).tolist()):
            torch.manual_seed(config.seed * 1_000_003 + step)
            set_lr(optimizer, rate / config.lr)
            loss = 0.0
            for _ in range(config.accumulate):
                images, targets, _ = next(stream)
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    parts = objective(images.to(device), [t.to(device) for t in targets])
                total = torch.stack([v for name, v in parts.items() if not name.startswith(OBSERVED)]).sum()
                (total / config.accumulate).backward()
                loss += float(total.detach()) / config.accumulate
            if not math.isfinite(loss):
                break
            if config.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rates.append(rate)
            losses.append(loss)
            tell(step + 1, rate, loss)
            course = smoothed(losses)
            if step >= 2 * SETTLED and course[-1] > BROKEN * min(course[SETTLED:]):
                break
    return judged(rates, losses)


def _endless(loader: object) -> Iterator[tuple]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)  # type: ignore[attr-defined]
        epoch += 1


def smoothed(losses: Sequence[float]) -> list[float]:
    """The running mean after each step."""
    found, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        found.append(mean / (1 - SMOOTH**count))
    return found


def judged(rates: Sequence[float], losses: Sequence[float]) -> RateSearch:
    """The rate of the steepest fall, between the settled start and the lowest loss. Raises UserError where it falls nowhere.

    The slope at a step is that of a line through it and its neighbours, three to either side.
    """
    course = smoothed(losses)
    if len(course) < 2 * SETTLED + 1:
        raise UserError(
            f"the loss broke after {len(course)} steps",
            where="tune lr",
            fix="begin with a lower --low, or more --steps",
        )
    bottom = int(np.argmin(course[SETTLED:])) + SETTLED
    # As much as the losses scatter from step to step tells a fall from noise.
    scatter = float(np.abs(np.diff(course[SETTLED:])).mean())
    if bottom <= SETTLED + 1 or course[SETTLED] - course[bottom] <= max(2 * scatter, 0.01 * abs(course[SETTLED])):
        raise UserError(
            f"the loss falls nowhere between {rates[0]:g} and {rates[-1]:g}",
            where="tune lr",
            fix="try another --low and --high, or more --steps",
        )
    at = range(SETTLED, bottom + 1)
    slopes = [_slope(rates, course, place) for place in at]
    best = at[int(np.argmin(slopes))]
    return RateSearch(tuple(rates), tuple(losses), tuple(course), float(f"{rates[best]:.1e}"), rates[bottom])


def _slope(rates: Sequence[float], course: Sequence[float], place: int) -> float:
    window = slice(max(0, place - 3), place + 4)
    return float(np.polyfit(np.log(rates[window]), course[window], 1)[0])
