"""Successive halving on one clock (Jamieson and Talwalkar, 2016): all train a little, the better ones go on, the best to the end.

A candidate is trained by a recipe whose `train.minutes` are those of the winner. It is paused, not ended: its learning rate
stands where that of the whole training would stand, its state is saved, and what is measured is the average of its weights. So
the winner's training is one training that was paused, nothing of it is thrown away, and nothing is trained twice.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import rule_of
from flyspeck.errors import counted
from flyspeck.plan.tried import Candidate, Trial
from flyspeck.plan.voice import Voice
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import load_run_state
from flyspeck.train.measure import measure
from flyspeck.train.processes import join_processes
from flyspeck.train.progress import Fanout, RunFiles, headline
from flyspeck.train.run import STATE, train
from flyspeck.train.viewing import viewing_of

SHARES: Mapping[int, tuple[float, ...]] = {1: (), 2: (0.15,), 3: (0.1, 0.08)}
"""By the number of candidates: of the time for training, what each of those that are left gets in a round."""
LEAST = 10.0
"""Seconds by which a training may end sooner without a word."""
MUCH_MORE = 1.25
"""Times the planned seconds of a training, from which on time that is left is used for it."""
LEAST_LEFT = 3.0
"""Seconds of training that are worth going on for."""
LEAST_PACE = 0.25
"""Share of the planned time of a round from which it is worth holding."""
LATER = "it is later than was planned (the machine is slower than when it was timed, or the run was stopped meanwhile)"
PAUSE_EVERY = 3.0
"""Seconds between two places where a training can be paused."""


def winner_share(count: int) -> float:
    """Of the time for training, the share that the winner of so many candidates gets, its rounds included."""
    left, spent, share = count, 0.0, 1.0
    for given in SHARES[count]:
        spent += given
        share -= spent  # of the one that leaves after this round
        left -= 1
    return share


def halve(
    candidates: Sequence[Candidate],
    seconds: float,
    choose: Annotations,
    voice: Voice,
    *,
    left: Callable[[], float] = lambda: math.inf,
    done: Sequence[Trial] = (),
    note: Callable[[Trial], None] = lambda trial: None,
) -> tuple[Candidate, list[Trial]]:
    """The candidate that goes on to the end, and what all had reached, round by round; the worst of a round leaves.

    `seconds` are those of all training, and `left()` those that are really left for it: where that is less than planned, rounds
    are as much shorter (`pace`), or there are no more of them. `choose` are the images that decide. `done` are trials of before
    an interruption, and `note` is told of each new one.
    """
    trials, racing = list(done), list(candidates)
    shares = SHARES[len(candidates)]
    for number, _ in enumerate(shares):
        before = [trial for trial in trials if trial.round == number]
        until = before[0].until if before else 0.0
        if not until:
            rate = pace(left(), seconds, len(candidates), number)
            if rate < LEAST_PACE:
                voice(f"  there is no time for more trials: {racing[0].name} goes on")
                break
            until = seconds * (sum(shares[:number]) + shares[number] * rate)
        for candidate in racing:
            if any(trial.name == candidate.name for trial in before):
                continue
            with voice.doing(f"round {number + 1}: {candidate.name}, up to {until:.0f} s of training"):
                used, images = train_until(candidate, until, voice)
                value = value_of(candidate, choose)
            trial = Trial(candidate.name, number, round(used, 1), images, value, until)
            trials.append(trial)
            note(trial)
            said = f"{100 * value:.1f} %" if value >= 0 else "none"
            voice(
                f"  {candidate.name}: {candidate.recipe.evaluate.best} {said} after {counted(images, 'image')} in {used:.0f} s"
            )
        reached = {trial.name: trial.value for trial in trials if trial.round == number}
        racing = sorted(racing, key=lambda one: -reached[one.name])[:-1]
        voice(f"  going on: {', '.join(one.name for one in racing)}")
    return racing[0], trials


def pace(left: float, seconds: float, count: int, number: int) -> float:
    """What of its time round `number` (from 0) of `count` candidates can have: 1 where `left` seconds are those planned or more.

    `seconds` are those planned for all training.
    """
    spent = sum(share * (count - place) for place, share in enumerate(SHARES[count][:number]))
    return min(1.0, max(0.0, left / (seconds * (1 - spent))))


def end_of(planned: float, used: float, left: float, *, least: float = LEAST_LEFT) -> float | None:
    """Seconds of training after which the winner ends, of which `used` are over: `planned`, or sooner, so that no more than
    `left` are used. None: at once, as less than `least` would be left. What was not trained at all gets `least`, late or not.
    """
    end = min(planned, used + left)
    if end - used >= least:
        return end
    return None if used else max(end, least)


class _Pause(Exception):
    """Raised where a training is to be left as it was saved last."""


class Teller:
    """A reporter: a line every few seconds, and where `until` seconds of training are used up, `_Pause` once that is saved."""

    def __init__(self, voice: Voice, *, until: float | None = None, every: float = 7.0) -> None:
        self.voice, self.until, self.every = voice, until, every
        self.images = 0.0
        self._begun, self._due, self._before = time.monotonic(), 0.0, 0.0
        self._ripe = False

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """See `Reporter.start`."""

    def step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self.every
            losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
            left = record.get("seconds_left")
            self.voice(
                f"  step {record['step']} {losses} {record['images_per_second']:.1f} images/s"
                + (f", {left:.0f} s left" if left is not None and self.until is None else "")
            )
        if self._ripe:  # the checkpoint of the line before is on disk
            raise _Pause
        self._ripe = self.until is not None and now - self._begun >= self.until

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `Reporter.epoch`."""
        if record.get("metrics"):
            self.voice(f"  epoch {record['epoch']}: {headline(record['metrics'])}")

    def close(self) -> None:
        """See `Reporter.close`."""


def train_until(candidate: Candidate, seconds: float, voice: Voice) -> tuple[float, int]:
    """Train until so many seconds are used in all, goes on where it was paused; seconds used and images seen."""
    used, _ = progress_of(candidate)
    settings = candidate.recipe.train
    every = _steps_in(PAUSE_EVERY, saved_progress(candidate), settings.log_every)
    often = settings.model_copy(update={"log_every": every, "checkpoint_every": every})
    recipe = candidate.recipe.model_copy(update={"train": often})
    begun = time.monotonic()
    teller = Teller(voice, until=max(0.0, seconds - used - 2 * PAUSE_EVERY))
    reporter = Fanout([RunFiles(candidate.folder), teller])
    with contextlib.suppress(_Pause):
        train(recipe, candidate.folder, resume=candidate.folder.exists(), reporter=reporter)
    _, images = progress_of(candidate)
    return used + time.monotonic() - begun, images


def _steps_in(seconds: float, progress: Mapping[str, Any], log_every: int) -> int:
    """Steps that take about so long: as the last ones did, be the machine slower now than when it was timed; a first training
    goes by `log_every`, which is about five seconds.
    """
    steps, used = int(progress.get("step", 0)), float(progress.get("seconds", 0.0))
    return max(1, round(seconds * (steps / used if steps and used else log_every / 5)))


def saved_progress(candidate: Candidate) -> Mapping[str, Any]:
    """Where it stood at its last checkpoint (`train.state.Progress`); empty where there is none."""
    path = candidate.folder / STATE
    return load_run_state(path, mapped=True)["progress"] if path.is_file() else {}


def progress_of(candidate: Candidate) -> tuple[float, int]:
    """Seconds used and images seen by its last checkpoint; zeros where there is none."""
    progress = saved_progress(candidate)
    return float(progress.get("seconds", 0.0)), int(progress.get("step", 0)) * candidate.recipe.train.batch_size


def value_of(candidate: Candidate, choose: Annotations) -> float:
    """The metric that decides, of the averaged weights of the last checkpoint."""
    weights = candidate.folder / "last.safetensors"
    detector, description = load_described(weights)
    accelerator = join_processes()
    detector = detector.to(accelerator.device)
    viewing = viewing_of(candidate.recipe, description, detector, rule_of(description))
    found = measure(
        detector, choose, protocol=candidate.recipe.evaluate.protocol, viewing=viewing, accelerator=accelerator
    )
    value = found.metrics[candidate.recipe.evaluate.best]
    return value if value >= 0 else found.metrics["ap50_all"]


def finish(candidate: Candidate, left: float, voice: Voice) -> dict[str, float]:
    """The winner trained to the end, in no more than the `left` seconds; metrics of its best weights on the images to choose on.

    Where that is less than its `train.minutes` still give, the machine was slower than when it was timed: its schedule ends
    sooner, which is said; where it is much more, later. Where nothing is left, it ends as it is.
    """
    progress, settings = saved_progress(candidate), candidate.recipe.train
    used, planned = float(progress.get("seconds", 0.0)), 60 * (settings.minutes or 0.0)
    if not progress.get("ended") and used + left > MUCH_MORE * planned:
        voice(f"  there is more time than was kept back: the training takes {used + left - planned:.0f} s more")
        planned = used + left
        settings = settings.model_copy(update={"minutes": planned / 60})
    end, before = end_of(planned, used, left), dict(progress.get("planned") or {}).get("minutes")
    at_once = end is None and not progress.get("ended")
    if progress.get("ended") or end is None:  # nothing of it changes any more
        minutes = float(before or settings.minutes or 0.0)
    else:
        minutes = settings.minutes if end >= planned else end / 60
    if at_once:
        voice(f"  {LATER}, and no time is left: the training ends as it is")
    elif end is not None and planned - end > 0.02 * used + LEAST:
        voice(f"  {LATER}: the training ends {planned - end:.0f} s sooner, so that all ends in time")
    shortened = settings.model_copy(update={"minutes": minutes} | ({"anneal": 0.0} if at_once else {}))
    recipe = candidate.recipe.model_copy(update={"train": shortened})
    reporter = Fanout([RunFiles(candidate.folder), Teller(voice)])
    return train(recipe, candidate.folder, resume=candidate.folder.exists(), finish=at_once, reporter=reporter)
