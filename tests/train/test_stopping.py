"""Runs that end before their time, go on for longer or shorter, or are interrupted: on a network of two numbers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Line, Lines, image, run
from test_minutes import Course, Stop, rates
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.train.checkpoint import load_state, load_weights, save_state
from flyspeck.train.interrupt import Interrupt, said_how_to_go_on
from flyspeck.train.loop import Progress
from flyspeck.types import ImageBatch, Targets

IMAGES = [image(level) for level in torch.linspace(0.1, 2.5, 8).tolist()]
COSINE = {"schedule": "cosine", "final_lr": 0.0, "momentum": 0.9, "log_every": 1, "optimizer": "sgd", "lr": 0.01}


def trained(
    folder: Path, *, measured: Sequence[float] = (), metric: str = "score", line: Line | None = None, **config: Any
) -> Lines:
    """Four steps an epoch."""
    folder.mkdir(exist_ok=True)
    return run(IMAGES, 2, folder, measured=measured, metric=metric, line=line, **{**COSINE, **config})[1]


def progress(folder: Path) -> dict[str, Any]:
    return load_state(folder / "state.pt")["progress"]


class Stops(Line):
    """Is sent Ctrl-C in the step with this number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        if len(self.drawn) == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(images, targets)


def stopped_at(folder: Path, step: int, **config: Any) -> None:
    """A run that Ctrl-C stops in step `step`, which is finished and saved."""
    with pytest.raises(KeyboardInterrupt):
        trained(folder, line=Stops(step), **config)
    assert progress(folder)["step"] == step


@pytest.mark.parametrize(
    ("measured", "settings", "at"),
    [
        # Evaluation by evaluation: the first gains, the third is the second in a row without.
        ([0.5, 0.4, 0.4, 0.9, 0.9], {"patience": 2}, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.4, 0.5], {"patience": 1}, 5),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"patience": 1}, None),
        # From 0.1 on a gain of 0.15 is wanted: 0.2 is none, 0.27 is one against 0.1, and 0.3 and 0.4 are none against it.
        ([0.1, 0.2, 0.27, 0.3, 0.4, 0.9], {"patience": 2, "min_gain": 0.15}, 5),
        ([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0], {"patience": 3}, 4),
        ([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], {}, None),
    ],
)
def test_early_stopping(
    tmp_path: Path, measured: list[float], settings: dict[str, Any], at: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flyspeck")
    lines = trained(tmp_path, measured=measured, epochs=6, anneal=0.0, **settings)
    assert len(lines.epochs) == (at or 6)
    assert progress(tmp_path)["ended"]
    said = [text for text in caplog.messages if text.startswith("early stopping: score has not risen")]
    assert len(said) == (at is not None)
    assert ("stopped" in lines.epochs[-1]) == (at is not None)


@pytest.mark.parametrize(
    ("metric", "measured", "best"),
    [
        ("ap50_tiny", [0.2, 0.6, 0.4], 2),
        ("mr50_tiny", [0.9, 0.4, 0.6], 2),  # a miss rate: less is better
        ("mr50_tiny", [-1.0, 0.9, -1.0], 2),  # -1: there was nothing to find
        ("ap50_all", [float("nan"), 0.2, 0.1], 2),  # WIDER FACE's, where nothing was proposed at first
        ("mr50_tiny", [-1.0, -1.0, -1.0], 1),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_metric(
    tmp_path: Path, metric: str, measured: list[float], best: int
) -> None:
    trained(tmp_path, measured=measured, metric=metric, epochs=3)
    assert progress(tmp_path)["best_epoch"] == best
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == best


def test_a_miss_rate_that_no_longer_falls_stops_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flyspeck")
    lines = trained(tmp_path, measured=[0.9, 0.7, 0.5, 0.6, 0.5], metric="mr50_tiny", epochs=9, patience=2, anneal=0.0)
    assert len(lines.epochs) == 5
    (said,) = [text for text in caplog.messages if text.startswith("early stopping")]
    assert said == "early stopping: mr50_tiny has not fallen in 2 evaluations: 50.0 after 50.0"


def test_an_early_stop_is_annealed(tmp_path: Path) -> None:
    """Two of twenty epochs, then a quarter more: eight steps and two, in which the rate goes from where it is to nothing."""
    lines = trained(tmp_path, measured=[0.5, 0.4, 0.6], epochs=20, patience=1, anneal=0.25)
    assert [record["step"] for record in lines.epochs] == [4, 8, 10]
    found = rates(lines)
    assert found[7] > 0.7
    assert found[8] == pytest.approx(found[7], abs=0.06)
    assert found[9] < 0.5 * found[8]
    assert lines.epochs[-1]["metrics"] == {"score": 0.6}
    assert "has not risen in 1 evaluation: 40.0 after 50.0" in lines.epochs[-1]["stopped"]
    again = trained(tmp_path, measured=[0.1], epochs=20, patience=1, anneal=0.25, resume=True)
    assert (again.steps, again.epochs) == ([], [])


def test_a_kill_in_the_tail_goes_on_in_the_tail(tmp_path: Path) -> None:
    settings = {"epochs": 20, "patience": 1, "anneal": 0.5}
    whole = trained(tmp_path / "whole", measured=[0.5, 0.4, 0.6], **settings)
    assert whole.steps[-1]["step"] == 12
    stopped_at(tmp_path / "killed", 10, measured=[0.5, 0.4], **settings)
    again = trained(tmp_path / "killed", measured=[0.6], resume=True, **settings)
    assert [(r["step"], r["lr"], r["losses"]) for r in again.steps] == [
        (r["step"], r["lr"], r["losses"]) for r in whole.steps[10:]
    ]
    assert again.epochs[-1]["metrics"] == {"score": 0.6}


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_ctrl_c_finishes_its_step_and_costs_nothing(tmp_path: Path, step: int) -> None:
    """What follows, the epoch's mean of the losses too, is bit for bit that of the run that nobody stopped."""
    whole = trained(tmp_path / "whole", epochs=3)
    stopped_at(tmp_path / "stopped", step, epochs=3)
    again = trained(tmp_path / "stopped", epochs=3, resume=True)
    for one, other in zip(again.steps, whole.steps[step:], strict=True):
        assert (one["step"], one["lr"], one["losses"]) == (other["step"], other["lr"], other["losses"])
    assert [r["losses"] for r in again.epochs] == [r["losses"] for r in whole.epochs[-len(again.epochs) :]]
    assert again.epochs[0]["observed"] == whole.epochs[-len(again.epochs)]["observed"]


@pytest.mark.parametrize("every", [2, 3])
def test_a_line_of_the_log_counts_the_steps_before_the_stop(tmp_path: Path, every: int) -> None:
    whole = trained(tmp_path / "whole", epochs=3, log_every=every)
    stopped_at(tmp_path / "stopped", 5, epochs=3, log_every=every)
    again = trained(tmp_path / "stopped", epochs=3, log_every=every, resume=True)
    assert [r["losses"] for r in again.steps] == [r["losses"] for r in whole.steps if r["step"] > 5]


def test_signals_outside_a_step_act_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit) as left, Interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143
    with Interrupt() as interrupt:
        interrupt.armed = True
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with Interrupt(alone=False):  # of several processes: as it was
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("finish", [True, False])
def test_a_stopped_run_says_how_it_goes_on_by_what_its_command_has(
    tmp_path: Path, finish: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        trained(tmp_path, line=Stops(1), epochs=3)
    assert "--resume" not in caplog.text  # the training does not know what command it is a part of
    with pytest.raises(KeyboardInterrupt), said_how_to_go_on(tmp_path, finish=finish):
        raise stop.value
    assert "interrupted in epoch 1 after step 1; --resume goes on from its last checkpoint" in caplog.messages[-1]
    assert ("--finish" in caplog.messages[-1]) is finish
    caplog.clear()
    with pytest.raises(KeyboardInterrupt), said_how_to_go_on(tmp_path, finish=finish):
        raise KeyboardInterrupt  # before it trained: there is nothing to resume
    assert caplog.messages == []


def test_a_long_epoch_is_saved_every_ten_minutes(tmp_path: Path) -> None:
    """A step takes four minutes; it is killed in the sixth."""
    with pytest.raises(Stop):
        Course(step=240).run(tmp_path, epochs=1, stop=5)
    assert progress(tmp_path)["step"] == 3


@pytest.mark.parametrize(
    ("schedule", "epochs", "more"),
    [
        ({"schedule": "constant"}, 2, 3),
        ({"schedule": "constant"}, 4, 2),
        ({"schedule": "cosine_restarts", "restart_epochs": 2}, 2, 4),
        ({"schedule": "step", "milestones": [0.75]}, 4, 8),
        ({"schedule": "step", "milestones": [0.75]}, 8, 4),
    ],
)
def test_another_length_is_as_if_it_had_been_so_from_the_start(
    tmp_path: Path, schedule: dict[str, Any], epochs: int, more: int
) -> None:
    """Where the learning rates of the first five steps are the same anyway: bit for bit."""
    whole = trained(tmp_path / "whole", epochs=more, **schedule)
    stopped_at(tmp_path / "run", 5, epochs=epochs, **schedule)
    again = trained(tmp_path / "run", epochs=more, resume=True, **schedule)
    assert [(r["step"], r["lr"], r["losses"]) for r in again.steps] == [
        (r["step"], r["lr"], r["losses"]) for r in whole.steps[5:]
    ]


@pytest.mark.parametrize("more", [2, 3, 8])
def test_a_cosine_is_bent_to_another_length(tmp_path: Path, more: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flyspeck")
    stopped_at(tmp_path, 6, epochs=4)
    before = progress(tmp_path)["share"]
    assert before == 6 / 16
    lines = trained(tmp_path, epochs=more, resume=True)
    found = rates(lines)
    assert lines.steps[-1]["step"] == 4 * more
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(0.691, abs=0.001)  # (1 + cos(pi 6/16)) / 2: where it was
    assert found[-1] < 0.25
    assert f"the rest of its schedule (62 %) now ends with {more} epochs" in caplog.text


def test_more_after_the_end_begins_the_schedule_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, epochs=2)
    lines = trained(tmp_path, epochs=4, resume=True)
    assert [round(rate, 3) for rate in rates(lines)] == [1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    assert (
        "had gone through its schedule after 2 epochs; it begins it again for what is left of 4 epochs" in caplog.text
    )
    assert progress(tmp_path)["ended"]
    # And a kill in there goes on in there.
    again = trained(tmp_path, epochs=4, resume=True)
    assert again.steps == []


def test_no_less_than_what_is_done(tmp_path: Path) -> None:
    stopped_at(tmp_path, 6, epochs=4)
    with pytest.raises(UserError, match=r"has 1\.5 epochs behind it, so that nothing of 1 epoch is left.*--finish"):
        trained(tmp_path, epochs=1, resume=True)


def test_minutes_for_epochs_and_more_minutes(tmp_path: Path) -> None:
    """Six of forty epochs are done in a minute: three minutes in all end it two minutes later, and five go on from there."""
    course = Course(evaluation=0.0)
    with pytest.raises(Stop):
        course.run(tmp_path, epochs=40, checkpoint_every=1, stop=60)
    _, lines = course.run(tmp_path, minutes=3, resume=True)
    found = rates(lines)
    assert found[0] == pytest.approx(0.946, abs=0.01)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01
    assert course.now == pytest.approx(180, abs=3)
    _, lines = course.run(tmp_path, minutes=5, resume=True)
    assert rates(lines)[0] > 0.99
    assert rates(lines)[-1] < 0.01
    assert course.now == pytest.approx(300, abs=4)
    with pytest.raises(UserError, match="minutes behind it, so that nothing of 2 minutes is left"):
        course.run(tmp_path, minutes=2, resume=True)


@pytest.mark.parametrize("by", [{"epochs": 100}, {"minutes": 60}])
def test_finish_brings_the_rate_down(tmp_path: Path, by: dict[str, Any]) -> None:
    """A hundred steps of a thousand (by the clock: a hundred seconds of an hour), then ten more, and the end."""
    course = Course(evaluation=0.0)
    with pytest.raises(Stop):
        course.run(tmp_path, checkpoint_every=1, stop=100, **by)
    ended, lines = course.run(tmp_path, resume=True, finish=True, **by)
    found = rates(lines)
    assert 8 <= len(found) <= 11
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9
    assert found[-1] < 0.1
    assert ended.ended
    assert lines.epochs[-1]["stopped"] == "finished before its time"
    assert lines.epochs[-1]["metrics"]


def test_a_checkpoint_of_a_version_that_could_not_change_its_length(tmp_path: Path) -> None:
    """It knew its epochs only by the recipe in its description."""
    stopped_at(tmp_path, 6, epochs=4)
    state = load_state(tmp_path / "state.pt")
    old = {"epoch", "step_in_epoch", "step", "best", "best_epoch", "metrics"}
    state["progress"] = {name: value for name, value in state["progress"].items() if name in old}
    state["description"] = {"recipe": {"train": {"epochs": 4}}}
    del state["losses"]
    save_state(tmp_path / "state.pt", state)
    lines = trained(tmp_path, epochs=8, resume=True)
    assert rates(lines)[0] == pytest.approx(0.691, abs=0.001)
    assert lines.steps[-1]["step"] == 32
    assert Progress().planned == {}
