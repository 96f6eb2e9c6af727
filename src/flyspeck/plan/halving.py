"""Successive halving on one clock (Jamieson and Talwalkar, 2016): all train a little, the better ones go on, the best to the end.

A candidate is trained by a recipe whose `train.minutes` are those of the winner. It is paused, not ended: its learning rate
stands where that of the whole training would stand, its state is saved, and what is measured is the average of its weights. So
the winner's training is one training that was paused, nothing of it is thrown away, and nothing is trained twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import rule_of
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
"""Seconds by which a training may be late without a word."""
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
    done: Sequence[Trial] = (),
    note: Callable[[Trial], None] = lambda trial: None,
) -> tuple[Candidate, list[Trial]]:
    """The candidate that goes on to the end, and what all had reached, round by round; the worst of a round leaves.

    `seconds` are those of all training. `choose` are the images that decide. `done` are trials of before an interruption, and
    `note` is told of each new one.
    """
    trials, left = list(done), list(candidates)
    shares = SHARES[len(candidates)]
    for number, _ in enumerate(shares):
        until = seconds * sum(shares[: number + 1])
        for candidate in left:
            if any(trial.name == candidate.name and trial.round == number for trial in trials):
                continue
            with voice.doing(f"round {number + 1}: {candidate.name}, up to {until:.0f} s of training"):
                used, images = train_until(candidate, until, voice)
                value = value_of(candidate, choose)
            trial = Trial(candidate.name, number, round(used, 1), images, value)
            trials.append(trial)
            note(trial)
            said = f"{100 * value:.1f} %" if value >= 0 else "none"
            voice(f"  {candidate.name}: {candidate.recipe.evaluate.best} {said} after {images} images in {used:.0f} s")
        reached = {trial.name: trial.value for trial in trials if trial.round == number}
        left = sorted(left, key=lambda one: -reached[one.name])[:-1]
        voice(f"  going on: {', '.join(one.name for one in left)}")
    return left[0], trials


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
    every = max(1, round(settings.log_every * PAUSE_EVERY / 5))  # `log_every` is about five seconds
    often = settings.model_copy(update={"log_every": every, "checkpoint_every": every})
    recipe = candidate.recipe.model_copy(update={"train": often})
    begun = time.monotonic()
    teller = Teller(voice, until=max(0.0, seconds - used - 2 * PAUSE_EVERY))
    reporter = Fanout([RunFiles(candidate.folder), teller])
    with contextlib.suppress(_Pause):
        train(recipe, candidate.folder, resume=candidate.folder.exists(), reporter=reporter)
    _, images = progress_of(candidate)
    return used + time.monotonic() - begun, images


def progress_of(candidate: Candidate) -> tuple[float, int]:
    """Seconds used and images seen by its last checkpoint; zeros where there is none."""
    path = candidate.folder / STATE
    if not path.is_file():
        return 0.0, 0
    progress = load_run_state(path, mapped=True)["progress"]
    return float(progress.get("seconds", 0.0)), int(progress["step"]) * candidate.recipe.train.batch_size


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
    """The winner trained to the end; metrics of its best weights on the images to choose on.

    Where fewer seconds are `left` than its `train.minutes` still give, the machine was slower than when it was timed: it is said.
    """
    used, _ = progress_of(candidate)
    late = 60 * (candidate.recipe.train.minutes or 0) - used - left
    if late > 0.02 * used + LEAST:
        voice(f"  the machine is slower than when it was timed: all will end about {late:.0f} s late")
    reporter = Fanout([RunFiles(candidate.folder), Teller(voice)])
    return train(candidate.recipe, candidate.folder, resume=candidate.folder.exists(), reporter=reporter)
