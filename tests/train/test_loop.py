"""The loop itself, on a network of two numbers: what a step sums, divides, seeds and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flyspeck.data.bands import PixelRule
from flyspeck.train import meter
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe, TrainConfig
from flyspeck.train.inputs import read_sets, training_loader
from flyspeck.train.loop import Batch, fit
from flyspeck.train.meter import OBSERVED
from flyspeck.train.seeds import step_seed
from flyspeck.types import ImageBatch, Targets

NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
PLAIN = {"warmup_steps": 0, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "clip_grad": None}


class Line(nn.Module):
    """A straight line through the images' means, and their squared distance from 1 as its loss; it draws a number, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([0.1]))
        self.drawn: list[float] = []

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        self.drawn.append(float(torch.rand(())))
        off = self.weight * images.pixels.mean((1, 2, 3)) + self.bias - 1
        return {"square": off.square().mean(), "half": off.abs().mean() / 2, f"{OBSERVED}mean": off.mean()}


class Lines:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Any]] = []
        self.epochs: list[Mapping[str, Any]] = []

    def start(self, *, total_steps: int, done_steps: int) -> None: ...

    def step(self, record: Mapping[str, Any]) -> None:
        self.steps.append(record)

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.epochs.append(record)

    def close(self) -> None: ...


def image(level: float) -> Tensor:
    return torch.full((3, 2, 2), level)


def batches_of(images: Sequence[Tensor], size: int, skip: int = 0) -> Iterator[Batch]:
    for start in range(skip * size, len(images), size):
        pixels = torch.stack(list(images[start : start + size]))
        yield ImageBatch(pixels, ((2, 2),) * size), [NOTHING] * size, list(range(start, start + size))


def run(
    images: Sequence[Tensor],
    size: int,
    folder: Path,
    *,
    line: Line | None = None,
    measured: Sequence[float] = (),
    metric: str = "score",
    resume: bool = False,
    **config: Any,
) -> tuple[Line, Lines]:
    """`images` in forward passes of `size`, one epoch unless told otherwise; evaluations give what was `measured` in turn."""
    line, lines, values = line or Line(), Lines(), iter(measured)
    settings = TrainConfig(**{**PLAIN, "epochs": 1, "log_every": 1, "optimizer": "sgd", "lr": 0.1, **config})
    fit(
        line,
        detector=line,
        batches=lambda epoch, skip: batches_of(images, size, skip),
        steps_per_epoch=len(images) // size // settings.accumulate,
        config=settings,
        folder=folder,
        description={},
        reporter=lines,
        accelerator=Accelerator(cpu=True),
        measure=(lambda model: {metric: next(values)}) if measured else None,
        best=metric if measured else "",
        resume=resume,
    )
    return line, lines


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(tmp_path: Path, optimizer: str, parts: int) -> None:
    """The step, its size and what is logged of it do not depend on how many forward passes it takes."""
    images = [image(level) for level in torch.linspace(0.1, 2.5, 16).tolist()]
    # No clipping, which would hide a gradient that is too long.
    whole, told = run(images, 8, tmp_path, optimizer=optimizer)
    split, heard = run(images, 8 // parts, tmp_path, optimizer=optimizer, accumulate=parts)
    torch.testing.assert_close(split.weight, whole.weight)
    torch.testing.assert_close(split.bias, whole.bias)
    assert len(heard.steps) == len(told.steps) == 2
    for one, other in zip(told.steps, heard.steps, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert other["observed"] == pytest.approx(one["observed"], rel=1e-5)


def test_a_step_by_hand(tmp_path: Path) -> None:
    """Images of 1 and 3: w x + b - 1 is -0.4 and 0.6 at the start.

    The square's slopes are mean(2 off x) = (-0.8 + 3.6) / 2 = 1.4 and mean(2 off) = 0.2; the half's mean(sign x) / 2 =
    (-1 + 3) / 4 = 0.5 and 0. What is observed is not minimised. With a rate of 0.1 w falls by 0.19 and b by 0.02.
    """
    line, lines = run([image(1.0), image(3.0)], 2, tmp_path)
    torch.testing.assert_close(line.weight.detach(), torch.tensor([0.31]))
    torch.testing.assert_close(line.bias.detach(), torch.tensor([0.08]))
    (record,) = lines.steps
    assert record["losses"] == pytest.approx({"square": (0.16 + 0.36) / 2, "half": 0.25})
    assert record["observed"] == pytest.approx({"mean": 0.1})


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6, None])
def test_a_long_gradient_is_cut_to_its_limit(tmp_path: Path, limit: float | None) -> None:
    """The gradient is (1.9, 0.2), as above, so 1.91 long: the step is a tenth of it, or of what is left of it."""
    line, _ = run([image(1.0), image(3.0)], 2, tmp_path, clip_grad=limit)
    gradient = torch.tensor([1.9, 0.2])
    length = float(gradient.norm())
    expected = gradient * (1.0 if limit is None else min(1.0, limit / length))
    step = torch.stack([0.5 - line.weight.detach()[0], 0.1 - line.bias.detach()[0]])
    torch.testing.assert_close(step, 0.1 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("measured", "best"), [([0.5, 0.5, 0.5], 1), ([0.1, 0.7, 0.7], 2), ([-1.0, -1.0, 0.0], 3)])
def test_of_equal_evaluations_the_first_is_the_best(tmp_path: Path, measured: list[float], best: int) -> None:
    run([image(1.0), image(3.0)], 2, tmp_path, epochs=3, measured=measured)
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == best
    assert load_weights(tmp_path / "last.safetensors")[1]["epoch"] == 3


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_run_goes_on_with_the_batch_that_is_next(tmp_path: Path, parts: int, stop: int) -> None:
    """Three steps an epoch, two epochs: with the batches of a step in parts, so many more of them are done."""
    images = [image(level) for level in torch.linspace(0.1, 2.5, 12).tolist()]
    settings = {"accumulate": parts, "epochs": 2, "checkpoint_every": 1, "momentum": 0.5}
    size = 4 // parts
    (tmp_path / "whole").mkdir()
    whole, told = run(images, size, tmp_path / "whole", **settings)

    class Stops(Line):
        def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
            if len(self.drawn) == stop * parts:
                raise Stop
            return super().forward(images, targets)

    (tmp_path / "stopped").mkdir()
    with pytest.raises(Stop):
        run(images, size, tmp_path / "stopped", line=Stops(), **settings)
    again, heard = run(images, size, tmp_path / "stopped", resume=True, **settings)
    assert [record["step"] for record in heard.steps] == list(range(stop + 1, 7))
    assert [r["losses"] for r in heard.steps] == [r["losses"] for r in told.steps[stop:]]
    torch.testing.assert_close([again.weight, again.bias], [whole.weight, whole.bias], rtol=0, atol=0)
    assert again.drawn == whole.drawn[stop * parts :]


def test_speed_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes with 4 images a step, a step every 2 seconds."""

    class Three:
        num_processes = 3

        def reduce(self, values: Tensor, reduction: str) -> Tensor:
            return values

    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    counted = meter.Meter(Three())  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        now[0] += 2
        counted.add({"a": torch.tensor(1.0)}, 4)
    assert counted.record()["images_per_second"] == 6
    now[0] += 4
    counted.add({"a": torch.tensor(4.0)}, 4)
    assert counted.record()["images_per_second"] == 3
    assert counted.epoch_record() == {"losses": {"a": 2.0}, "seconds": 8.0, "images_per_second": 4.5}


def test_the_epoch_s_means_are_over_all_its_steps(tmp_path: Path) -> None:
    images = [image(level) for level in torch.linspace(0.1, 2.5, 12).tolist()]
    _, lines = run(images, 2, tmp_path)
    _, seldom = run(images, 2, tmp_path, log_every=4)  # two steps are left over at the end
    (epoch,), (other,) = lines.epochs, seldom.epochs
    for name in ("square", "half"):
        values = [record["losses"][name] for record in lines.steps]
        assert epoch["losses"][name] == pytest.approx(sum(values) / 6)
        assert other["losses"][name] == pytest.approx(sum(values) / 6)
        assert seldom.steps[0]["losses"][name] == pytest.approx(sum(values[:4]) / 4)


def test_no_two_steps_of_any_process_share_a_seed() -> None:
    seeds = [step_seed(s, step, p) for s in (0, 1, 2, 99) for step in range(300) for p in range(64)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("process", [0, 1, 5])
def test_processes_draw_numbers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: int) -> None:
    """What a head draws at random (samples, dropout) differs from process to process, from step to step and by the seed."""
    images = [image(1.0)] * 4
    alone = run(images, 2, tmp_path)[0].drawn
    assert run(images, 2, tmp_path)[0].drawn == alone
    assert not set(run(images, 2, tmp_path, seed=1)[0].drawn) & set(alone)
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: process))
    drawn = run(images, 2, tmp_path)[0].drawn
    assert len(set(drawn)) == 2
    assert (drawn == alone) == (process == 0)
    assert bool(set(drawn) & set(alone)) == (process == 0)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_batch_of_a_recipe_is_that_of_all_processes_and_parts(
    make_recipe: Any, world: int, accumulate: int
) -> None:
    """Whatever the split, the first step sees the same four images: the learning rate belongs to their number."""
    recipe: Recipe = make_recipe(train={"accumulate": accumulate})
    train_set, _ = read_sets(recipe.data)

    def first_step(rank: int, world: int, parts: int) -> list[Any]:
        split = make_recipe(train={"accumulate": parts})
        loader = training_loader(
            split, train_set, rule=PixelRule(channels=1), divisor=32, rank=rank, world_size=world, pin_memory=False
        )
        assert len(loader) == 3 * parts
        stream = loader.epoch(0)
        ids = [next(stream)[2] for _ in range(parts)]
        loader.close()
        assert {len(part) for part in ids} == {4 // world // parts}
        return [number for part in ids for number in part]

    together = [number for rank in range(world) for number in first_step(rank, world, accumulate)]
    assert sorted(together) == sorted(first_step(0, 1, 1))
