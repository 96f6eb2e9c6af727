"""When a run ends, after so many epochs or by the clock, and how far it has come: what the learning rate follows."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from flyspeck.errors import UserError, counted
from flyspeck.train.sections import TrainConfig
from flyspeck.train.state import Progress

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

    watch: Watch
    end: float
    """In steps, or by the clock in seconds used."""
    origin: list[float]
    """Steps done (by the clock: seconds used) where the schedule was begun or bent, and the share of it that was done then."""
    share: float
    """Of the schedule, at the last position."""

    @property
    def total_steps(self) -> int:
        """0 where the clock ends the run."""
        ...

    def position(self, step: int) -> Position:
        """Where the run stands after `step` steps; called by every process at once, which get the same."""
        ...

    def done(self, step: int) -> float:
        """Steps, or by the clock seconds used."""
        ...

    def bend(self, done: float, share: float) -> None:
        """From `done` steps (seconds) on, the rest of the schedule, of which `share` is done, fills what is left of the run."""

    def shorten(self, config: TrainConfig, step: int) -> None:
        """Ends the run after `config.anneal` of what was done, with the rest of the schedule; at once where nothing is left."""

    def may_measure(self) -> bool:
        """Whether there is time for an evaluation that is not the last; called by every process at once."""
        ...

    def measured(self, seconds: float) -> None:
        """An evaluation took so long, on this process."""

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long to write, on this process."""


class ByEpochs:
    """So many passes over the training set."""

    def __init__(self, epochs: int, steps_per_epoch: int, watch: Watch) -> None:
        self.watch = watch
        self.end: float = epochs * steps_per_epoch
        self.origin, self.share = [0.0, 0.0], 0.0

    @property
    def total_steps(self) -> int:
        """See `Plan.total_steps`."""
        return int(self.end)

    def position(self, step: int) -> Position:
        """See `Plan.position`."""
        begun, share = self.origin
        self.share = min(1.0, share + (1 - share) * ((step - begun) / max(self.end - begun, 1)))
        return Position(self.share, step >= self.end)

    def done(self, step: int) -> float:
        """See `Plan.done`."""
        return step

    def bend(self, done: float, share: float) -> None:
        """See `Plan.bend`."""
        self.origin = [done, share]

    def shorten(self, config: TrainConfig, step: int) -> None:
        """See `Plan.shorten`."""
        share = self.position(step).share
        self.end = min(self.end, step + _tail(config, step, share, whole=True))
        self.bend(step, share)

    def may_measure(self) -> bool:
        """See `Plan.may_measure`."""
        return True

    def measured(self, seconds: float) -> None:
        """See `Plan.measured`."""

    def saved(self, seconds: float) -> None:
        """See `Plan.saved`."""


def _tail(config: TrainConfig, done: float, share: float, *, whole: bool = False) -> float:
    """How much more is trained where a run is to end: nothing where its learning rate is down, or never goes down."""
    if config.schedule in ("constant", "cosine_restarts") or share >= 1:
        return 0.0
    return math.ceil(config.anneal * done) if whole else config.anneal * done


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
    ASK_AGAIN = 0.25
    """Share of the steps after which a guess that no evaluation has corrected is made anew: by then the machine is warm."""
    SAVES = 3  # before the last evaluation, of the best weights, and after it

    def __init__(
        self,
        minutes: float,
        watch: Watch,
        *,
        agree: Callable[[Sequence[float]], Sequence[float]] = lambda values: values,
        measuring: float = 0.0,
        last_measured: int = 1,
        ask: Callable[[], float] | None = None,
    ) -> None:
        """`agree` gives all processes the main one's values; `measuring` is what an evaluation will take, in seconds, of which
        there are `last_measured` at the end; `ask()`, called by all processes, guesses it anew.
        """
        self.total_steps = 0
        self.end, self.watch, self.agree = 60 * minutes, watch, agree
        self.measuring, self._last_measured, self._saving = measuring, last_measured, 0.0
        self._begun = watch.seconds
        self.origin, self.share = [self._begun, 0.0], 0.0
        self._spent_measuring, self._least = 0.0, self.LEAST_STEPS
        self._steps: deque[float] = deque(maxlen=20)
        self._before: tuple[int, float] | None = None
        self._ask = ask
        self._first: float | None = None

    @property
    def kept_back(self) -> float:
        """Seconds for what comes after the last step."""
        return self.SLOWER * self.measuring * self._last_measured + self.SAVES * self._saving

    @property
    def end_of_steps(self) -> float:
        """When the last step should be done, in seconds used."""
        least = self._begun + self._least * max(self.end - self._begun, 0.0)
        return max(self.end - self.kept_back, least)

    @property
    def overrun(self) -> float:
        """Seconds by which the run will be late, because measuring takes so long."""
        return max(0.0, self.end_of_steps + self.kept_back - self.end)

    def position(self, step: int) -> Position:
        """See `Plan.position`."""
        now, end = self.watch.seconds, self.end_of_steps
        if self._before is not None and step == self._before[0] + 1:
            self._steps.append(now - self._before[1])
        self._before = step, now
        # The longest of the last steps, not their mean: they come late now and then, and the end is to be kept.
        over = step > 0 and now + max(self._steps, default=0.0) >= end
        begun, share = self.origin
        done = max(0.0, now - begun) / (end - begun) if end > begun else 1.0
        # An evaluation that was quicker than expected moves the end away: the learning rate does not rise for that.
        self.share = min(1.0, max(self.share, share + (1 - share) * done))
        share, over, left = self.agree((self.share, over, max(0.0, end + self.kept_back - now)))
        self._first = share if self._first is None else self._first
        if self._ask is not None and share >= self._first + self.ASK_AGAIN * (1 - self._first):
            ask, self._ask = self._ask, None
            if self._spent_measuring == 0:
                self.measuring, self._before = ask(), None
                return self.position(step)
        return Position(share, bool(over), left)

    def done(self, step: int) -> float:
        """See `Plan.done`."""
        return self.watch.seconds

    def bend(self, done: float, share: float) -> None:
        """See `Plan.bend`."""
        self.origin, self.share = [done, share], share

    def shorten(self, config: TrainConfig, step: int) -> None:
        """See `Plan.shorten`."""
        share, now = self.position(step).share, self.watch.seconds
        self.end = min(self.end, now + _tail(config, now, share) + self.kept_back)
        self._begun, self._least = now, 0.0
        self.bend(now, share)

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
    progress: Progress,
    folder: Path,
    *,
    expected: Callable[[], float],
) -> Plan:
    """The plan that `config` asks for, from where `progress` stands; what it cannot keep is said.

    `expected()` gives the seconds that an evaluation will take. A run that goes on with another length than it was begun with
    bends its schedule, see `_changed`. Raises UserError where nothing of the new length is left.
    """
    wanted: dict[str, float | None] = {"epochs": config.epochs, "minutes": config.minutes}
    plan: Plan
    if config.minutes is None:
        plan = ByEpochs(config.epochs, steps_per_epoch, watch)
    else:
        plan = _by_clock(config.minutes, watch, accelerator, expected, again=progress.best_epoch > 0)
    before = progress.planned
    same = before.get("minutes") == config.minutes and (config.minutes or before.get("epochs") == config.epochs)
    if progress.step and not same:
        if not progress.share and before.get("epochs"):  # a state of a version that did not note it
            progress.share = progress.step / (before["epochs"] * steps_per_epoch)  # type: ignore[operator]
        _changed(plan, progress, config, steps_per_epoch, folder)
        progress.ended, progress.stopped, progress.stale = False, "", 0
    elif progress.origin:
        plan.end = progress.end
        plan.bend(*progress.origin)
    progress.planned = wanted
    return plan


def _changed(plan: Plan, progress: Progress, config: TrainConfig, steps_per_epoch: int, folder: Path) -> None:
    """A run that goes on for longer, or not so long, as it was begun for.

    Where its learning rates so far are those of the new length too (a constant one, restarts that count epochs, a step schedule
    before its first step) nothing changes of them. Else the rest of the schedule fills what is left; a run that was through
    with it begins it again, which is said: the rate rises once more.
    """
    done = plan.done(progress.step)
    by_steps = config.minutes is None
    was = f"{done / steps_per_epoch:.3g} epochs" if by_steps else f"{done / 60:.3g} minutes"
    wanted = counted(config.epochs, "epoch") if config.minutes is None else counted(config.minutes, "minute")
    if done >= plan.end:
        raise UserError(
            f"has {was} behind it, so that nothing of {wanted} is left",
            where=folder,
            fix="give more, or --finish with its first length: it brings the learning rate down and ends",
        )
    first = min(config.milestones, default=1.0)
    if config.schedule in ("constant", "cosine_restarts") or (
        config.schedule == "step" and by_steps and max(progress.share, done / plan.end) < first
    ):
        return
    if progress.ended or progress.share >= 1:
        log.warning(
            "%s: had gone through its schedule after %s; it begins it again for what is left of %s, its learning rate rises: "
            "not what so much at once would have given",
            folder,
            was,
            wanted,
        )
        plan.bend(done, 0.0)
    else:
        log.info("%s: the rest of its schedule (%.0f %%) now ends with %s", folder, 100 * (1 - progress.share), wanted)
        plan.bend(done, progress.share)


def _by_clock(
    minutes: float, watch: Watch, accelerator: Accelerator, expected: Callable[[], float], *, again: bool
) -> ByClock:
    """`again` says whether the best weights may be measured once more at the end: those of before a run was broken off."""

    def agree(values: Sequence[float]) -> Sequence[float]:
        if accelerator.num_processes == 1:
            return values
        kind = torch.float32 if accelerator.device.type == "mps" else torch.float64
        agreed: Any = broadcast(torch.tensor(list(values), dtype=kind, device=accelerator.device))
        return agreed.tolist()

    measuring = expected()
    plan = ByClock(minutes, watch, agree=agree, measuring=measuring, last_measured=1 + again, ask=expected)
    if accelerator.is_main_process and plan.overrun > 0.05 * plan.end:
        log.warning(
            "train.minutes %g: %s, so that the run will take about %.1f minutes more; %s",
            minutes,
            f"measuring takes about {plan.kept_back / 60:.1f} of them" if measuring else "reading the data took them",
            plan.overrun / 60,
            "data.val_limit measures on fewer images",
        )
    return plan
