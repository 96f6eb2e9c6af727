"""What follows training ends in time too, on a clock of the tests own: as slow as the machine is, it is shrunk or left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_sets import SPEEDS, base, like

from flyspeck.errors import UserError
from flyspeck.plan import auto
from flyspeck.plan.begin import Beginning
from flyspeck.plan.budget import FULL_PRECISION, LATE, Budget, image_seconds
from flyspeck.plan.choices import Speed
from flyspeck.plan.halving import LEAST_LEFT
from flyspeck.plan.slowness import BOUNDS, TIMES, Slowness
from flyspeck.plan.state import State
from flyspeck.plan.voice import Voice

FOUND = like(base(), decode_seconds=0.05)
IMAGES = list(range(60))


class Tail:
    """A clock, and all that follows a training on a machine that is `slower` than it was when detectors were timed.

    Everything takes `truth` of what its forecast says: the machine's own work, and images, each by itself. Those to report on
    have `larger` times the pixels of the others.
    """

    def __init__(self, minutes: float, slower: float, speed: Speed, *, truth: float = 1.0, larger: float = 1.0) -> None:
        self.larger = larger
        self.now, self.slowness, self.slower, self.truth, self.speed = 0.0, 1.0, slower, truth, speed
        self.state = State(Path("nowhere"), {}, clock=lambda: self.now)
        self.state.save = lambda: None  # type: ignore[method-assign]
        self.budget = Budget(minutes, self.state, slowness=lambda: self.slowness)
        self.each = image_seconds(speed, FOUND)
        self.done: dict[str, Any] = {}
        self.notes: list[str] = []

    def spend(self, seconds: float) -> None:
        self.now += self.slowness * self.truth * seconds

    def pixels(self, table: list[int]) -> float:
        return 1.0 if table is IMAGES else self.larger

    def settings(self, *args: Any, **options: Any) -> Any:
        limit = args[4]
        begun, count = self.now, 0
        while count == 0 or self.now - begun + self.slowness * self.truth * 12 * self.each < limit:
            self.spend(12 * self.each)
            count += 1
        self.state.done["settings"] = []
        return SimpleNamespace(seconds=self.slowness * self.truth * self.each, setting=None)

    def export(self, winner: Any, path: Path, options: Any, **_: Any) -> Any:
        self.done["export"] = images = options.check_limit
        odd = 36 / self.speed.detect_per_second
        self.spend(self.speed.tracing + Budget.WRITING + FULL_PRECISION * (odd + 2 * images * self.each))
        return SimpleNamespace(path=path)

    def detect(self, model: Any, report: Any, *args: Any, **_: Any) -> Any:
        self.done["report"] = len(report)
        self.spend(len(report) * self.each * self.larger)
        return SimpleNamespace(write_coco=lambda *_: None), 0.0

    def baselines(self, *_: Any, seconds: float) -> tuple[()]:
        self.done["baselines"] = True
        self.now += min(4 * seconds, self.slowness * Budget.BASELINES) * self.truth
        return ()

    def page(self, *_: Any, images: int, **__: Any) -> None:
        self.done["page"] = images
        self.spend(Budget.PAGE * (0.5 + images / 40))

    def run(self, *, jump: bool = False) -> None:
        """From the speeds on; the machine is slower from the first training on, or (`jump`) from its end on."""
        self.budget.larger = {"choose": 1.0, "report": self.larger}
        total = self.budget.for_training(60, 60, FOUND, SPEEDS)
        self.state.done["training"] = total
        self.slowness = 1.0 if jump else self.slower

        def halve(candidates: Any, total: float, choose: Any, voice: Any, *, left: Any, **_: Any) -> Any:
            return candidates[0], []

        def finish(winner: Any, left: float, voice: Any) -> dict[str, float]:
            self.now += max(LEAST_LEFT, min(left, total))
            self.done["trained"] = self.now
            self.slowness = self.slower
            return {}

        winner = SimpleNamespace(name="w", folder=Path("nowhere"), recipe=_Anything())
        plan = SimpleNamespace(value=lambda key: "w", tier=SimpleNamespace(name="t"), speed=self.speed, notes=("",))
        evaluation = SimpleNamespace(write=lambda path: None, protocol=None, table=lambda: "")
        sources = {name: SimpleNamespace(path="x", table=IMAGES) for name in ("train", "choose")}
        sources["report"] = SimpleNamespace(path="x", table=list(IMAGES))
        with pytest.MonkeyPatch.context() as patch:
            for name, fake in {
                "_plans": lambda *_: ([plan], {"t": self.speed}, "cpu"),
                "_candidates": lambda *_: [winner], "_limited": lambda *_: (IMAGES, len(IMAGES)),
                "_pixels": self.pixels, "halve": halve, "finish": finish,
                "_setting": self.settings, "_kept": lambda *_: Path("nowhere"), "export_model": self.export,
                "detect": self.detect, "spread": lambda table, most: table[:most], "measure_baselines": self.baselines,
                "result_of": lambda *_: evaluation, "write_summary": self.page, "progress_of": lambda _: (1.0, 1),
            }.items():  # fmt: skip
                patch.setattr(auto, name, fake)
            quiet = Voice(lambda line: None)
            auto._run(Beginning(self.state, self.budget, sources, FOUND, self.notes, "cpu", quiet))  # type: ignore[arg-type]


class _Anything:
    """Has every attribute."""

    def __getattr__(self, name: str) -> Any:
        return _Anything()


@settings(max_examples=120, deadline=None)
@given(
    minutes=st.floats(3, 90),
    slower=st.sampled_from([0.5, 1.0, 2.0, 5.0, 20.0]),
    truth=st.floats(0.4, 1.0),
    rate=st.sampled_from([200.0, 25.0, 4.0]),
    larger=st.sampled_from([0.2, 1.0, 10.0]),
)
def test_all_ends_in_time_on_a_machine_that_became_slower(
    minutes: float, slower: float, truth: float, rate: float, larger: float
) -> None:
    tail = Tail(minutes, slower, Speed(20.0, 10**9, rate), truth=truth, larger=larger)
    try:
        tail.run()
    except UserError:
        return  # too short, said before any training
    least = LEAST_LEFT + slower * (12 + (LATE + 1) * larger) * tail.each + slower * Budget.PAGE
    if tail.done["trained"] + least > tail.budget.seconds:
        return  # nothing that can be left out would help
    assert tail.now <= tail.budget.seconds * 1.01 + slower * 20 * max(1.0, larger) * tail.each
    if slower <= 1 and tail.budget.images(Budget.REPORTING, tail.speed, FOUND) >= len(IMAGES):
        assert tail.done["export"] == 8
        assert tail.done["report"] == len(IMAGES)
        assert tail.done["baselines"]
        assert tail.done["page"] == 20
        assert tail.notes == []


@settings(max_examples=120, deadline=None)
@given(minutes=st.floats(4, 60), slower=st.sampled_from([2.0, 5.0, 20.0]), rate=st.sampled_from([200.0, 25.0]))
def test_where_it_becomes_slower_after_training_what_can_wait_is_left_out_and_said(
    minutes: float, slower: float, rate: float
) -> None:
    tail = Tail(minutes, slower, Speed(20.0, 10**9, rate))
    try:
        tail.run(jump=True)
    except UserError:
        return
    # Late by no more than what is never left out: a setting, a few images, and the page.
    least = slower * ((12 + 20) * tail.each + 0.6 * Budget.PAGE)
    assert tail.now <= tail.budget.seconds + least + 1.0
    said = " ".join(tail.notes)
    assert ("export" in tail.done) != ("not exported, for lack of time: flyspeck export" in said)
    assert ("baselines" in tail.done) != ("--baselines --train" in said)
    assert (tail.done["report"] == len(IMAGES)) != ("images are reported on" in said)


@pytest.mark.parametrize(
    ("left", "larger", "images"),
    [(200.0, 1.0, 281), (200.0, 4.0, 70), (40.0, 1.0, 48), (34.0, 1.0, 38), (9.0, 1.0, LATE)],
)
def test_more_images_than_planned_are_reported_on_where_all_else_has_its_time(
    left: float, larger: float, images: int
) -> None:
    """50 are planned, at 0.5 s for an image to choose on; baselines take 25 s and the page 6."""
    budget = Budget(10, State(Path("nowhere"), {}, clock=lambda: 600.0 - left))
    budget.state.begun = 0.0
    budget.larger = {"choose": 1.0, "report": larger}
    assert budget.still(0.5, 50) == images


def test_slowness_is_what_the_same_work_takes_and_holds_for_a_while() -> None:
    now, asked, takes = [0.0], [], [0.056]

    def work() -> None:
        asked.append(now[0])
        now[0] += takes[0]

    slow = Slowness(clock=lambda: now[0], work=work, fresh=10.0)
    assert slow() == pytest.approx(2.0)
    assert (slow(), len(asked)) == (pytest.approx(2.0), TIMES)
    now[0] += 11
    takes[0] = 0.168
    assert (slow(), len(asked)) == (pytest.approx(4.0), 2 * TIMES)  # half of it new: 6
    for seconds, bound in ((0.0, BOUNDS[0]), (99.0, BOUNDS[1])):
        clock = iter([0.0, seconds])
        assert Slowness(clock=lambda clock=clock: next(clock), work=lambda: None)() == bound
    assert BOUNDS[0] <= Slowness()() <= BOUNDS[1]  # the real work, whatever it takes here
