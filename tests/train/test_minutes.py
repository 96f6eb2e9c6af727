"""Runs that the clock ends: on a clock of the tests' own, where a step, an evaluation and a start take what they are told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from test_loop import Line, Lines, batches_of, image
from torch import nn

from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.train.checkpoint import load_state, load_weights
from flyspeck.train.compressing import _shorter
from flyspeck.train.config import Recipe, TrainConfig
from flyspeck.train.distill.stages import _distilling, _finetuning
from flyspeck.train.evaluations import Evaluations
from flyspeck.train.loop import Batch, Progress, fit
from flyspeck.train.optim import lr_factor
from flyspeck.train.plan import ByClock, Watch
from flyspeck.train.progress import Console
from flyspeck.train.run import train


@dataclass
class Course:
    """A run on a clock of its own. All in seconds."""

    step: float = 1.0
    evaluation: float = 3.0
    expected: float | None = None
    """None: what an evaluation takes."""
    cold: float = 0.0
    """What is guessed first, before the machine is warm."""
    start: float = 0.0
    now: float = 0.0
    evaluations: list[float] = field(default_factory=list)
    """When they began."""
    steps: int = 0
    broken: bool = False
    """An evaluation is never done."""

    def run(
        self,
        folder: Path,
        *,
        steps_per_epoch: int = 10,
        resume: bool = False,
        finish: bool = False,
        stop: int = 10**9,
        **config: Any,
    ) -> tuple[Progress, Lines]:
        """The progress and what was reported; `stop` raises after so many steps."""
        lines, line = Lines(), Line()
        watch = Watch(lambda: self.now)
        self.now += self.start

        def batches(epoch: int, skip: int) -> Iterator[Batch]:
            for batch in batches_of([image(1.0 + epoch / 9)] * steps_per_epoch, 1, skip):
                if self.steps == stop:
                    raise Stop
                self.now += self.step
                self.steps += 1
                yield batch

        def measure(model: nn.Module) -> dict[str, float]:
            self.evaluations.append(self.now)
            self.now += self.evaluation
            if self.broken:
                raise Stop
            return {"score": 0.1 * len(self.evaluations)}

        def expect(model: nn.Module) -> float:
            cold, self.cold = self.cold, 0.0
            return cold or (self.evaluation if self.expected is None else self.expected)

        settings = {
            "warmup_steps": 0,
            "schedule": "cosine",
            "final_lr": 0.0,
            "log_every": 1,
            "optimizer": "sgd",
            "lr": 0.01,
            **config,
        }
        progress = fit(
            line,
            detector=line,
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            config=TrainConfig(**settings),
            folder=folder,
            description={},
            reporter=lines,
            accelerator=Accelerator(cpu=True),
            measure=measure,
            expect=expect,
            best="score",
            resume=resume,
            finish=finish,
            watch=watch,
        )
        return progress, lines


class Stop(Exception):
    """In place of a kill."""


def rates(lines: Lines) -> list[float]:
    return [record["lr"] / 0.01 for record in lines.steps]


@pytest.mark.parametrize(
    ("steps_per_epoch", "evaluation", "start", "guess"),
    [
        (3, 0.0, 0.0, 1.0),
        (3, 1.0, 15.0, 0.2),
        (10, 1.0, 0.0, 2.0),
        (10, 6.0, 15.0, 1.0),
        (10, 20.0, 0.0, 1.0),
        (1000, 6.0, 0.0, 0.2),
        (1000, 6.0, 0.0, 2.0),
        (1000, 20.0, 15.0, 1.0),
    ],
)
def test_it_ends_in_time_and_annealed(
    tmp_path: Path, steps_per_epoch: int, evaluation: float, start: float, guess: float
) -> None:
    """Two minutes, whatever the epoch, the evaluations and the start take: late by a part of an evaluation at most, where the
    first guess of what one takes was too low and there was none to correct it.
    """
    course = Course(evaluation=evaluation, expected=guess * evaluation, start=start)
    progress, lines = course.run(tmp_path, steps_per_epoch=steps_per_epoch, minutes=2)
    late = max(0.0, 1 - 1.25 * guess) * evaluation if len(course.evaluations) == 1 else 0.0
    assert course.now <= 120 + late
    assert course.now >= 120 - max(2.0, 0.3 * evaluation, (1.25 * guess - 1) * evaluation + 2)
    assert progress.ended
    found = rates(lines)
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.99
    assert found[-1] < 0.02
    assert course.evaluations[-1] == course.now - evaluation  # the last weights are measured
    assert lines.epochs[-1]["metrics"]
    before_last = evaluation * (len(course.evaluations) - 1)
    assert before_last <= 0.2 * 120
    assert load_weights(tmp_path / "last.safetensors")[1]["metrics"] == lines.epochs[-1]["metrics"]
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == lines.epochs[-1]["epoch"]


def test_a_cold_guess_is_made_anew(tmp_path: Path) -> None:
    """Four minutes for an evaluation of three seconds, in a run of two: a quarter of the way it is seen to be wrong."""
    course = Course(cold=240.0)
    _, lines = course.run(tmp_path, minutes=2, steps_per_epoch=1000)
    assert course.steps >= 110
    assert course.now <= 120
    found = rates(lines)
    assert found == sorted(found, reverse=True)
    assert found[60] > 0.3
    assert found[-1] < 0.02


def test_every_epoch_is_measured_where_that_is_cheap_and_few_where_it_is_not(tmp_path: Path) -> None:
    cheap, dear = Course(evaluation=0.5), Course(evaluation=5)
    for course in (cheap, dear):
        (tmp_path / str(course.evaluation)).mkdir()
        _, lines = course.run(tmp_path / str(course.evaluation), minutes=3)
        assert len(course.evaluations) == len([r for r in lines.epochs if "metrics" in r])
    # An epoch takes 10 s: of 17 epochs the last tenth of the time has none but the last.
    assert len(cheap.evaluations) >= 15
    assert 4 <= len(dear.evaluations) <= 8


def test_at_least_one_step_and_half_the_time_for_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A minute, of which measuring takes 50 s: thirty seconds of steps, and a line that says how late it will be."""
    course = Course(evaluation=50)
    course.run(tmp_path, minutes=1)
    assert 28 <= course.steps <= 30
    assert "train.minutes 1: measuring takes about 1.0 of them, so that the run will take about 0.5 minutes more" in (
        caplog.text
    )
    caplog.clear()
    (late := tmp_path / "late").mkdir()
    slow = Course(start=100, evaluation=0.0)
    progress, _ = slow.run(late, minutes=1)
    assert (slow.steps, progress.ended) == (1, True)
    assert "reading the data took them" not in caplog.text or "0.7 minutes more" in caplog.text


@pytest.mark.parametrize("stop", [1, 25, 90])
def test_the_time_used_is_stored(tmp_path: Path, stop: int) -> None:
    """A run of two minutes that is killed after `stop` steps: what it used until its last checkpoint counts, the days that it
    lay there do not, and the learning rate goes on where it was.
    """
    course = Course(evaluation=1.0)
    with pytest.raises(Stop):
        course.run(tmp_path, minutes=2, checkpoint_every=1, stop=stop)
    used = load_state(tmp_path / "state.pt")["progress"]["seconds"]
    assert used == pytest.approx(course.now, abs=1.01)
    course.now += 1e5
    begun = course.now
    steps = load_state(tmp_path / "state.pt")["progress"]["step"]
    progress, lines = course.run(tmp_path, minutes=2, resume=True)
    assert used + course.now - begun == pytest.approx(120, abs=4)
    assert used + course.now - begun <= 120
    assert progress.step == steps + len(lines.steps)
    expected = lr_factor(steps, used / 116.0, TrainConfig(schedule="cosine", final_lr=0.0, warmup_steps=0))
    assert rates(lines)[0] == pytest.approx(expected, abs=0.05)
    assert rates(lines)[-1] < 0.02


def test_an_ended_run_is_not_trained_on(tmp_path: Path) -> None:
    course = Course()
    progress, _ = course.run(tmp_path, minutes=1)
    before = course.steps, len(course.evaluations)
    again, lines = course.run(tmp_path, minutes=1, resume=True)
    assert (course.steps, len(course.evaluations)) == before
    assert (again.step, lines.steps) == (progress.step, [])


def test_a_kill_in_the_last_evaluation_costs_only_that(tmp_path: Path) -> None:
    course = Course(broken=True)
    with pytest.raises(Stop):
        course.run(tmp_path, minutes=1, steps_per_epoch=1000)
    assert not load_state(tmp_path / "state.pt")["progress"]["ended"]
    course.broken, steps = False, course.steps
    progress, lines = course.run(tmp_path, minutes=1, steps_per_epoch=1000, resume=True)
    assert (len(course.evaluations), progress.ended) == (2, True)
    assert course.steps <= steps + 1
    assert lines.epochs[-1]["metrics"] == {"score": 0.2}


def test_the_warm_up_takes_a_tenth_of_the_time_at_most(tmp_path: Path) -> None:
    _, lines = Course(evaluation=0.0).run(tmp_path, minutes=2, warmup_steps=1000, schedule="constant")
    found = rates(lines)
    assert found[5] < 0.6
    assert found[12:] == [1.0] * len(found[12:])


def test_steps_of_a_schedule_are_shares_of_the_time(tmp_path: Path) -> None:
    _, lines = Course(evaluation=0.0).run(tmp_path, minutes=2, schedule="step")
    found = rates(lines)
    assert [round(rate, 6) for rate in (found[78], found[81], found[108], found[111])] == [1, 0.1, 0.1, 0.01]


def test_all_processes_take_the_main_one_s_word() -> None:
    """Another process's clock is late, and it has seen another evaluation: it still stops at the same step."""
    said: list[Any] = []
    main_now, other_now = [0.0], [0.0]
    plan = ByClock(1, Watch(lambda: main_now[0]), agree=lambda values: said.append(tuple(values)) or values)
    other = ByClock(1, Watch(lambda: other_now[0]), agree=lambda values: said[-1])
    for step in range(70):
        main_now[0], other_now[0] = float(step), 0.3 * step
        assert plan.position(step) == other.position(step)
        assert plan.may_measure() == other.may_measure()
    assert plan.position(70).over


def test_a_run_in_minutes_from_the_command_line(
    tiny_set: Path, make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fiftieth of a minute: steps, an evaluation, all files, and a card, a report and a second command that know of it."""
    folder = tmp_path / "run"
    recipe = make_recipe(train={"epochs": 10**6, "minutes": 1 / 50, "schedule": "cosine"})
    metrics = train(recipe, folder)
    state = load_state(folder / "state.pt")["progress"]
    assert state["ended"]
    assert state["step"] > 0
    assert "ap50_tiny" in metrics
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert 0 <= steps[-1]["share"] <= 1
    assert steps[-1]["seconds_left"] >= 0
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert "0.02 minutes, batch 4" in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert main(["train", str(folder), "--minutes", "3", "--print-config"]) == 0
    assert "\n  minutes: 3.0" in capsys.readouterr().out


def test_minutes_that_cannot_be(make_recipe: Callable[..., Recipe]) -> None:
    for given, said in (
        ({"minutes": 0}, "greater than 0"),
        ({"minutes": -3}, "greater than 0"),
        ({"minutes": float("inf")}, "finite"),
        ({"minutes": True}, "should be a number"),
        ({"minutes": 5, "schedule": "cosine_restarts"}, "take schedule cosine"),
    ):
        with pytest.raises(UserError, match=said):
            make_recipe(train=given)


@pytest.mark.parametrize(
    ("each", "processes", "tried"),
    [(2.0, 1, [1, 1]), (0.2, 1, [1, 1, 2, 4]), (0.01, 1, [1, 1, 2, 4, 6]), (2.0, 2, [2, 6])],
)
def test_an_evaluation_is_guessed_from_a_few_images(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch, each: float, processes: int, tried: list[int]
) -> None:
    """Of six images, `each` in so many seconds; the first call takes a minute more, as on a machine that is cold."""
    table = read_annotations(tiny_set / "val.json")
    now, counts = [0.0], []

    def measured(model: nn.Module, some: Any) -> Any:
        now[0] += each * len(some) + (60 if not counts else 0)
        counts.append(len(some))

    monkeypatch.setattr("flyspeck.train.evaluations.time.monotonic", lambda: now[0])
    found = Evaluations(table, measured).expected_seconds(nn.Identity(), processes=processes)
    assert found == pytest.approx(6 * each)
    assert counts == tried


def test_the_stages_of_a_distillation_share_the_minutes(make_recipe: Callable[..., Recipe]) -> None:
    """Of 20 minutes, 8 epochs and 2 of fine-tuning: 16 and 4."""
    recipe = make_recipe(train={"epochs": 8, "minutes": 20}, distill={"teacher": "t.yaml", "finetune": {"epochs": 2}})
    assert recipe.distill is not None
    assert _distilling(recipe, recipe.distill).train.minutes == pytest.approx(16)
    assert _finetuning(recipe, recipe.distill).train.minutes == pytest.approx(4)
    plain = make_recipe(train={"epochs": 8}, distill={"teacher": "t.yaml", "finetune": {"epochs": 2}})
    assert plain.distill is not None
    assert _finetuning(plain, plain.distill).train.minutes is None


@pytest.mark.parametrize("schedule", ["cosine_restarts", "step", "constant"])
def test_a_shorter_run_ends_at_the_end_of_its_schedule(make_recipe: Callable[..., Recipe], schedule: str) -> None:
    """Two epochs of cosines of 30 would stop near the full rate."""
    recipe = make_recipe(
        train={"epochs": 90, "schedule": schedule, "restart_epochs": 30},
        distill={"teacher": "t.yaml", "finetune": {"epochs": 2}},
    )
    assert recipe.distill is not None
    for shorter in (_finetuning(recipe, recipe.distill).train, _shorter(recipe.train, None)):
        assert shorter.schedule == ("cosine" if schedule == "cosine_restarts" else schedule)
    last = _finetuning(recipe, recipe.distill).train.model_copy(update={"warmup_steps": 0})
    assert schedule == "constant" or lr_factor(99, 0.99, last) <= 0.02


def test_the_console_says_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    console = Console()
    console.start(total_steps=0, done_steps=0)
    record = {"epoch": 2, "step": 30, "losses": {"cls": 0.5}, "images_per_second": 4.0}
    with caplog.at_level("INFO", logger="flyspeck"):
        console.step({**record, "share": 0.34, "seconds_left": 192.4})
    assert caplog.messages == ["epoch 2 step 30 (34%) cls 0.500 4.0 images/s, 0:03:12 left"]


@pytest.mark.parametrize("evaluation", [0.5, 8.0])
@pytest.mark.parametrize(("stop", "left"), [(40, 30.0), (40, 4.0), (40, 200.0), (100, 9.0)])
def test_a_run_that_goes_on_for_less_ends_in_time(tmp_path: Path, evaluation: float, stop: int, left: float) -> None:
    """A run of three minutes is stopped, and goes on for so many seconds: it is late by its last evaluations at most."""
    course = Course(evaluation=evaluation)
    with pytest.raises(Stop):
        course.run(tmp_path, minutes=3, checkpoint_every=1, steps_per_epoch=1000, stop=stop)
    used = load_state(tmp_path / "state.pt")["progress"]["seconds"]
    begun, before = course.now, len(course.evaluations)
    course.run(tmp_path, minutes=(used + left) / 60, steps_per_epoch=1000, resume=True)
    assert course.now - begun <= max(left, 0.5 * left + 1 + 2 * evaluation) + 1e-6
    assert len(course.evaluations) > before


def test_a_run_without_any_time_left_ends_at_once(tmp_path: Path) -> None:
    course = Course(evaluation=1.0)
    with pytest.raises(Stop):
        course.run(tmp_path, minutes=3, checkpoint_every=1, steps_per_epoch=1000, stop=60)
    steps, begun = course.steps, course.now
    progress, _ = course.run(tmp_path, minutes=3, steps_per_epoch=1000, resume=True, finish=True, anneal=0.0)
    assert progress.ended
    assert course.steps == steps
    assert course.now - begun <= 2.0
