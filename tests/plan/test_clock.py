"""The clock of `auto`, on a clock of the tests' own: whatever the machine does, trainings leave what follows them its time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_sets import SPEEDS, base, like

from flyspeck.plan import halving
from flyspeck.plan.budget import Budget, looked_at
from flyspeck.plan.choices import Speed
from flyspeck.plan.halving import LEAST_LEFT, LEAST_PACE, SHARES, end_of, pace, winner_share
from flyspeck.plan.state import State
from flyspeck.plan.tried import Candidate, Trial
from flyspeck.plan.voice import Voice
from flyspeck.train.config import Recipe, parse_recipe

RECIPE = parse_recipe({"data": {"train": "t.json", "val": "v.json"}, "train": {"minutes": 10}})
FOUND = like(base(), decode_seconds=0.05)
seconds = st.floats(0.1, 1e5)


@given(planned=seconds, used=st.floats(0, 1e5), left=st.floats(-1e5, 1e5))
def test_no_training_uses_more_than_is_left(planned: float, used: float, left: float) -> None:
    end = end_of(planned, used, left)
    if end is None:
        assert used > 0
        assert min(planned - used, left) < LEAST_LEFT * (1 + 1e-9)
    elif used == 0:
        assert end <= max(left, LEAST_LEFT)
    else:
        assert end - used <= left + 1e-6
        assert used + LEAST_LEFT <= end + 1e-6
    assert end is None or end <= max(planned, LEAST_LEFT)


@given(count=st.sampled_from([2, 3]), planned=seconds, number=st.integers(0, 1), late=st.floats(0, 2))
def test_a_round_is_shortened_by_as_much_as_there_is_too_little(
    count: int, planned: float, number: int, late: float
) -> None:
    number = min(number, len(SHARES[count]) - 1)
    spent = sum(share * (count - place) for place, share in enumerate(SHARES[count][:number]))
    on_time = planned * (1 - spent)
    assert pace(on_time, planned, count, number) == pytest.approx(1)
    assert pace(late * on_time, planned, count, number) == pytest.approx(min(1.0, late), abs=1e-9)
    assert pace(-1.0, planned, count, number) == 0


class Machine:
    """A clock, and trainings and measurements that take their time on it."""

    def __init__(self, slower: float, measuring: float, late: float) -> None:
        self.now, self.slower, self.measuring, self.late = 0.0, slower, measuring, late
        self.used: dict[str, float] = {}
        self.finished: tuple[float, bool] | None = None

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def progress(self, candidate: Candidate) -> Mapping[str, Any]:
        used = self.used.get(candidate.name, 0.0)
        return {"seconds": used, "step": int(used * 3), "planned": {"minutes": 10.0}} if used else {}

    def train_until(self, candidate: Candidate, until: float, voice: Voice) -> tuple[float, int]:
        """By the clock, and then up to the next place where it can be paused: later on a slower machine."""
        before = self.used.get(candidate.name, 0.0)
        self.used[candidate.name] = max(before, until) + self.late * self.slower
        self.spend(self.used[candidate.name] - before)
        return self.used[candidate.name], 100

    def value_of(self, candidate: Candidate, choose: Any) -> float:
        self.spend(self.measuring * self.slower)
        return 0.1 * len(candidate.name)

    def train(self, recipe: Recipe, folder: Path, *, resume: bool, finish: bool, reporter: Any) -> dict[str, float]:
        """By the clock to its minutes; where it is to finish, at once."""
        assert recipe.train.minutes is not None
        used = self.used.get(folder.name, 0.0)
        if finish:
            assert used  # there is something to finish
            assert recipe.train.anneal == 0
        else:
            assert 60 * recipe.train.minutes > used  # or it would be refused: nothing of them is left
            self.spend(60 * recipe.train.minutes - used)
        self.finished = 60 * recipe.train.minutes, finish
        return {}


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 3),
    minutes=st.floats(2, 120),
    looking=st.floats(0, 60),
    slower=st.sampled_from([0.3, 1.0, 2.0, 40.0]),
    measuring=st.floats(0, 20),
    late=st.floats(0, 3),
)
def test_a_late_winner_leaves_what_follows_its_time(
    count: int, minutes: float, looking: float, slower: float, measuring: float, late: float
) -> None:
    machine = Machine(slower, measuring, late)
    budget = Budget(minutes, State(Path("nowhere"), {}, clock=lambda: machine.now))
    machine.spend(looking)
    planned = budget.left - budget.kept_back(50, 50, FOUND, SPEEDS["small"])
    if planned < Budget.LEAST_TRAINING:
        return  # refused before any training
    own = RECIPE.train.model_copy(update={"minutes": planned * winner_share(count) / 60})
    recipe = RECIPE.model_copy(update={"train": own})
    racing = [Candidate("abc"[:n], recipe, Path("nowhere") / "abc"[:n]) for n in range(1, count + 1)]
    kept = budget.kept_back(50, 50, FOUND, SPEEDS["small"], candidates=1)
    rounds: list[tuple[float, int]] = []

    def left() -> float:
        return budget.left - kept

    def note(trial: Trial) -> None:
        rounds.append((left(), trial.round))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_until", "value_of", "train"):
            patch.setattr(halving, name, getattr(machine, name))
        patch.setattr(halving, "saved_progress", machine.progress)
        quiet = Voice(lambda line: None)
        winner, _ = halving.halve(racing, planned, None, quiet, left=left, note=note)  # type: ignore[arg-type]
        before = machine.now
        halving.finish(winner, left(), quiet)
    # What no plan helps against: a pause and a measurement of a round that was begun in good time.
    assert machine.now <= max(budget.seconds - kept, before + LEAST_LEFT) + 1e-6
    for (now, number), (_, after) in pairwise(rounds):
        assert after == number or now >= LEAST_PACE**2 * planned  # no round is begun in the last moment
    if slower <= 1 and measuring == 0 and late == 0:
        assert own.minutes is not None
        assert machine.finished is not None
        ended, at_once = machine.finished
        assert not at_once
        # What trials took less than was kept back for them is used, where it is much.
        assert ended >= 60 * own.minutes * (1 - 1e-6)
        assert machine.now <= budget.seconds - kept + 1e-6


def test_an_ended_winner_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float | None, bool]] = []
    ended = {"seconds": 400.0, "step": 10, "ended": True, "planned": {"minutes": 6.7}}
    monkeypatch.setattr(halving, "saved_progress", lambda _: ended)
    monkeypatch.setattr(halving, "train", lambda r, *_, finish, **__: seen.append((r.train.minutes, finish)) or {})
    for left in (-50.0, 0.0, 1000.0):
        halving.finish(Candidate("a", RECIPE, Path("nowhere")), left, Voice(lambda line: None))
    assert seen == [(6.7, False)] * 3


@pytest.mark.parametrize(
    ("images", "minutes", "asked"), [(10, 1.0, None), (30, 0.1, 20), (10**6, 10.0, 375), (50, 10, None)]
)
def test_a_set_that_is_too_large_to_be_measured_whole_is_measured_in_part(
    images: int, minutes: float, asked: int | None
) -> None:
    # A twentieth of 600 s, at 0.08 s an image of 320x256 as the network sees it.
    assert looked_at(Speed(10.0, 0, 12.5), base(), minutes, images) == asked
