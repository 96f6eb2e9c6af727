"""When a run ends, after so many epochs or by the clock, and how far it has come: what the learning rate follows."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from flyspeck.train.sections import TrainConfig

log = logging.getLogger("flyspeck")


class Watch:
    """Seconds that a run has used: since this object was made, and `before`, when it was broken off."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begun, self.before = clock, clock(), 0.0

    @property
    def seconds(self) -> float:
        """Used so far."""
        return self.before + self.clock() - self.begun


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    share: float
    """Of the run, in [0, 1]."""
    over: bool
    """Whether no further step is to be taken."""
    seconds_left: float | None = None
    """Until the run ends, its last evaluation included; None where steps are counted."""

    def record(self) -> dict[str, float]:
        """For the log: nothing where steps are counted."""
        if self.seconds_left is None:
            return {}
        return {"share": round(self.share, 4), "seconds_left": round(self.seconds_left, 1)}


class Plan(Protocol):
    """How long a run is."""

    total_steps: int
    """0 where the clock ends the run."""
    origin: list[float]
    """Of a run by the clock, for its checkpoints: seconds used where its steps began, and the share of the run done then."""

    def position(self, step: int) -> Position:
        """Where the run stands after `step` steps; called by every process at once, which get the same."""
        ...

    def may_measure(self) -> bool:
        """Whether there is time for an evaluation that is not the last; called by every process at once."""
        ...

    def measured(self, seconds: float) -> None:
        """An evaluation took so long, on this process."""

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long to write, on this process."""


class ByEpochs:
    """So many passes over the training set."""

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self.total_steps, self.origin = epochs * steps_per_epoch, []

    def position(self, step: int) -> Position:
        """See `Plan.position`."""
        return Position(step / max(self.total_steps, 1), step >= self.total_steps)

    def may_measure(self) -> bool:
        """See `Plan.may_measure`."""
        return True

    def measured(self, seconds: float) -> None:
        """See `Plan.measured`."""

    def saved(self, seconds: float) -> None:
        """See `Plan.saved`."""


class ByClock:
    """So many minutes on the clock, from the reading of the data to the last file.

    What the last evaluation and the files will take is kept back, so that steps end in time; an evaluation counts as a quarter
    longer than the last one took. Evaluations before the last take a fifth of the time at most, and none is begun that would
    leave less than a tenth of the time for steps.
    """

    LEAST_STEPS = 0.5
    """Share of the time that steps get, whatever an evaluation takes."""
    MOST_MEASURING = 0.2
    LAST_STEPS = 0.1
    SLOWER = 1.25
    SAVES = 3  # before the last evaluation, of the best weights, and after it

    def __init__(
        self,
        minutes: float,
        watch: Watch,
        *,
        agree: Callable[[Sequence[float]], Sequence[float]] = lambda values: values,
        measuring: float = 0.0,
        last_measured: int = 1,
        origin: Sequence[float] = (),
    ) -> None:
        """`agree` gives all processes the main one's values; `measuring` is what an evaluation will take, in seconds, of which
        there are `last_measured` at the end; `origin` (seconds used, share of the run) where the steps began, empty: now.
        """
        self.total_steps = 0
        self.budget, self.watch, self.agree = 60 * minutes, watch, agree
        self.measuring, self._last_measured, self._saving = measuring, last_measured, 0.0
        self._begun = watch.seconds
        self.origin = list(origin) or [self._begun, 0.0]
        self._spent_measuring = 0.0
        self._steps: deque[float] = deque(maxlen=20)
        self._before: tuple[int, float] | None = None
        self._share = self.origin[1]

    @property
    def kept_back(self) -> float:
        """Seconds for what comes after the last step."""
        return self.SLOWER * self.measuring * self._last_measured + self.SAVES * self._saving

    @property
    def end_of_steps(self) -> float:
        """When the last step should be done, in seconds used."""
        least = self._begun + self.LEAST_STEPS * max(self.budget - self._begun, 0.0)
        return max(self.budget - self.kept_back, least)

    @property
    def overrun(self) -> float:
        """Seconds by which the run will be late, because measuring takes so long."""
        return max(0.0, self.end_of_steps + self.kept_back - self.budget)

    def position(self, step: int) -> Position:
        """See `Plan.position`."""
        now, end = self.watch.seconds, self.end_of_steps
        if self._before is not None and step == self._before[0] + 1:
            self._steps.append(now - self._before[1])
        self._before = step, now
        # The longest of the last steps, not their mean: they come late now and then, and the end is to be kept.
        over = step > 0 and now + max(self._steps, default=0.0) >= end
        begun, share = self.origin
        done = (now - begun) / (end - begun) if end > begun else 1.0
        # An evaluation that was quicker than expected moves the end away: the learning rate does not rise for that.
        self._share = min(1.0, max(self._share, share + (1 - share) * done))
        share, over, left = self.agree((self._share, over, max(0.0, end + self.kept_back - now)))
        return Position(share, bool(over), left)

    def may_measure(self) -> bool:
        """See `Plan.may_measure`."""
        now, takes = self.watch.seconds, self.SLOWER * self.measuring
        steps_left = self.end_of_steps - now - takes
        enough = steps_left >= self.LAST_STEPS * (self.end_of_steps - self._begun)
        little = self._spent_measuring + takes <= self.MOST_MEASURING * (now - self._begun + takes)
        return bool(self.agree((enough and little,))[0])

    def measured(self, seconds: float) -> None:
        """See `Plan.measured`."""
        self.measuring = seconds
        self._spent_measuring += seconds
        self._before = None

    def saved(self, seconds: float) -> None:
        """See `Plan.saved`."""
        self._saving = seconds


def plan_of(
    config: TrainConfig,
    steps_per_epoch: int,
    watch: Watch,
    accelerator: Accelerator,
    *,
    origin: Sequence[float],
    expected: Callable[[], float],
    again: bool,
) -> Plan:
    """The plan that `config` asks for; what it cannot keep is said.

    `origin` is that of a checkpoint, empty for a new run; `expected()` gives the seconds that an evaluation will take, and
    `again` says whether the best weights may be measured once more at the end: those of before a run was broken off.
    """
    if config.minutes is None:
        return ByEpochs(config.epochs, steps_per_epoch)

    def agree(values: Sequence[float]) -> Sequence[float]:
        if accelerator.num_processes == 1:
            return values
        kind = torch.float32 if accelerator.device.type == "mps" else torch.float64
        agreed: Any = broadcast(torch.tensor(list(values), dtype=kind, device=accelerator.device))
        return agreed.tolist()

    plan = ByClock(config.minutes, watch, agree=agree, measuring=expected(), last_measured=1 + again, origin=origin)
    if accelerator.is_main_process and plan.overrun > 0.05 * plan.budget:
        log.warning(
            "train.minutes %g: %s, so that the run will take about %.1f minutes more; %s",
            config.minutes,
            f"measuring takes about {plan.kept_back / 60:.1f} of them"
            if plan.measuring
            else "reading the data took them",
            plan.overrun / 60,
            "data.val_limit measures on fewer images",
        )
    return plan
