"""The training loop: one function, in the open. Nothing to subclass.

Methods enter by argument: an `objective` computes the losses of a batch (plain detection, distillation, several
scales), `batches` yields them, `measure` evaluates. Devices and processes are accelerate's business.

Every step seeds torch from (seed, step, process), every sample is seeded by (seed, epoch, image), and the learning rate
is a function of the step: so a run that is resumed goes on bit for bit as if it had never stopped. Where the clock ends the
run (`train.minutes`), the learning rate is a function of the time used: such a run goes on where it stopped, but no two are
bit for bit the same.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from flyspeck.allocator import freed_memory_kept
from flyspeck.errors import UserError
from flyspeck.evaluate.results import goodness
from flyspeck.train.checkpoint import save_state, save_weights
from flyspeck.train.ema import EMA
from flyspeck.train.interrupt import Interrupt
from flyspeck.train.meter import OBSERVED, Meter
from flyspeck.train.optim import build_optimizer, lr_factor, set_lr
from flyspeck.train.plan import Plan, Position, Watch, plan_of
from flyspeck.train.processes import failing_for_all, in_step
from flyspeck.train.progress import Reporter
from flyspeck.train.sections import TrainConfig
from flyspeck.train.seeds import step_seed
from flyspeck.train.state import Progress, restore_run, save_run
from flyspeck.train.stopping import finished, stalled
from flyspeck.types import ImageBatch, Targets

log = logging.getLogger("flyspeck")

Batch = tuple[ImageBatch, Sequence[Targets], Sequence[int | str]]
"""What a loader yields: images, their targets, their ids."""


class DetectionObjective(nn.Module):
    """The plain objective: the detector's own losses."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Named losses whose sum is minimised; those that begin with `OBSERVED` are only logged."""
        return self.detector.losses(images, targets)  # type: ignore[operator]


@freed_memory_kept()
def fit(
    objective: nn.Module,
    *,
    detector: nn.Module,
    batches: Callable[[int, int], Iterable[Batch]],
    steps_per_epoch: int,
    config: TrainConfig,
    folder: Path,
    description: Mapping[str, Any],
    reporter: Reporter,
    accelerator: Accelerator,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
    expect: Callable[[nn.Module], float] = lambda model: 0.0,
    best: str = "",
    is_best: Callable[[], None] = lambda: None,
    resume: bool = False,
    finish: bool = False,
    watch: Watch | None = None,
) -> Progress:
    """Trains `detector` (a part of `objective`) and leaves its best and last weights in `folder`.

    `batches(epoch, skip)` yields this process's share of the epoch's batches from step `skip` on, `config.accumulate` of
    them per step. `measure(model)` returns metrics; `best` names the one that picks the best checkpoint, and `is_best` is
    called where the model that was measured last is it. `expect(model)` says how many seconds `measure` may take, before it
    was ever called; `watch` what of `config.minutes` is used already. With `resume`, the run goes on from
    `folder/state.pt`; with `finish` too, it only brings its learning rate down and ends. Raises UserError where the loss is
    not finite; the batch is saved then.
    """
    watch = watch or Watch()
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    objective.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(objective, config)
    ema = EMA(detector, config.ema) if config.ema and accelerator.is_main_process else None
    progress, losses = Progress(), {}
    if resume:
        progress, losses = restore_run(folder / "state.pt", objective, optimizer, ema, description)
        watch.before = progress.seconds
    meter = Meter(accelerator, losses)
    model, optimizer = accelerator.prepare(objective, optimizer)
    plan = plan_of(
        config,
        steps_per_epoch,
        watch,
        accelerator,
        progress,
        folder,
        expected=lambda: 0.0 if measure is None else expect(_kept_everywhere(detector, ema, config, accelerator)),
    )
    if finish:
        finished(progress, plan, config)

    def save() -> None:
        if accelerator.is_main_process:
            begun, progress.seconds = watch.seconds, watch.seconds
            progress.end, progress.origin, progress.share = plan.end, plan.origin, plan.share
            save_run(folder, objective, detector, optimizer, ema, progress, description, meter.state())
            plan.saved(watch.seconds - begun)

    def evaluate(epoch: int) -> dict[str, float]:
        begun = watch.seconds
        kept = _kept_everywhere(detector, ema, config, accelerator)
        progress.metrics = measure(kept)  # type: ignore[misc]
        if _keep_best(folder, progress, kept, best, description, accelerator, epoch):
            is_best()
        plan.measured(watch.seconds - begun)
        return progress.metrics

    interrupt = Interrupt(alone=accelerator.num_processes == 1)
    step = partial(_train_step, model, optimizer, config, accelerator, folder)
    steps = _Steps(
        step, detector, optimizer, ema, config, accelerator, plan, progress, reporter, save, meter, interrupt
    )
    with _reported(reporter, plan, progress, accelerator), interrupt:
        position = plan.position(progress.step)
        while not progress.ended:
            epoch = progress.epoch
            model.train()
            stream = iter(batches(epoch, progress.step_in_epoch * config.accumulate))
            record, position = steps.of_epoch(stream, steps_per_epoch, position)
            wanted = (epoch + 1) % config.eval_every == 0 and plan.may_measure()
            due = measure is not None and (position.over or wanted)
            if due:
                _write_together(accelerator, save)  # should the evaluation fail, a resumed run goes on with it
            if progress.step_in_epoch == steps_per_epoch:
                progress.epoch, progress.step_in_epoch = epoch + 1, 0
            if due:
                record["metrics"] = evaluate(epoch + 1)
                if not position.over and stalled(progress, config, best):
                    plan.shorten(config, progress.step)
                # By the clock, an evaluation that took all there was left is the last.
                position = plan.position(progress.step)
            record |= {"stopped": progress.stopped} if progress.stopped else {}
            progress.ended = position.over
            meter.next_epoch()
            _write_together(accelerator, partial(reporter.epoch, record), save)
    return progress


def _write_together(accelerator: Accelerator, *writing: Callable[[], None]) -> None:
    """What the main process writes at a point that all of them have come to."""
    with in_step(accelerator):
        for write in writing if accelerator.is_main_process else ():
            write()


@contextlib.contextmanager
def _reported(reporter: Reporter, plan: Plan, progress: Progress, accelerator: Accelerator) -> Iterator[None]:
    """A run from its first word to its last; one that is interrupted says where it stood."""
    with in_step(accelerator):
        if accelerator.is_main_process:
            reporter.start(total_steps=plan.total_steps, done_steps=progress.step)
    try:
        yield
    except KeyboardInterrupt as stop:  # for `said_how_to_go_on`, where that is asked for
        stop.args = (f"in epoch {progress.epoch + 1} after step {progress.step}",)
        raise
    finally:
        if accelerator.is_main_process:
            reporter.close()


@dataclass
class _Steps:
    """The optimiser's steps of an epoch, from where it stands."""

    step: Callable[[Any], tuple[dict[str, Tensor], int]]
    """Over the next batches of a stream; the losses, and how many images."""
    detector: nn.Module
    optimizer: Any
    ema: EMA | None
    config: TrainConfig
    accelerator: Accelerator
    plan: Plan
    progress: Progress
    reporter: Reporter
    save: Callable[[], None]
    meter: Meter
    interrupt: Interrupt

    def of_epoch(self, stream: Any, number: int, position: Position) -> tuple[dict[str, Any], Position]:
        """Up to the epoch's step `number`, or the end of the run; the epoch's record, and where the run stands then."""
        progress, meter, config = self.progress, self.meter, self.config
        epoch = progress.epoch + 1
        self.interrupt.armed = True
        while progress.step_in_epoch < number and not position.over:
            torch.manual_seed(step_seed(config.seed, progress.step, self.accelerator.process_index))
            set_lr(self.optimizer, lr_factor(progress.step, position.share, config))
            losses, images = self.step(stream)
            if self.ema is not None:
                self.ema.update(self.detector)
            progress.step += 1
            progress.step_in_epoch += 1
            meter.add(losses, images)
            position = self.plan.position(progress.step)
            with failing_for_all(self.accelerator):
                if progress.step % config.log_every == 0:
                    lr = self.optimizer.param_groups[-1]["lr"]
                    record = {"step": progress.step, "epoch": epoch, "lr": lr, **meter.record(), **position.record()}
                    if self.accelerator.is_main_process:
                        self.reporter.step(record)
                if self._checkpoint_due():
                    self.save()
            if self.interrupt.asked:
                self.save()
                raise self.interrupt.error(self.interrupt.asked)
        self.interrupt.armed = False
        with in_step(
            self.accelerator
        ):  # a step that failed on the main process alone, after the last exchange, is told here
            pass
        return {"step": progress.step, "epoch": epoch, **meter.epoch_record()}, position

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every
        counted = every is not None and self.progress.step % every == 0
        return counted or self.plan.watch.seconds - self.progress.seconds >= 60 * self.config.checkpoint_minutes


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    accelerator: Accelerator,
    folder: Path,
    stream: Any,
) -> tuple[dict[str, Tensor], int]:
    """One optimiser step over `accumulate` batches; the mean losses and the number of images of this process."""
    sums: dict[str, Tensor] = {}
    count = 0
    for part in range(config.accumulate):
        with in_step(accelerator):
            images, targets, ids = next(stream)
            images, targets = images.to(accelerator.device), [t.to(accelerator.device) for t in targets]
        last = part == config.accumulate - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                losses = _losses(model, images, targets)
            minimised = [value for name, value in losses.items() if not name.startswith(OBSERVED)]
            total = torch.stack(minimised).sum() / config.accumulate
            with in_step(accelerator):
                if not torch.isfinite(total):
                    _report_non_finite(folder, images, targets, ids, losses)
            accelerator.backward(total)
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() / config.accumulate
        count += len(ids)
    if config.clip_grad is not None:
        accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums, count


def _losses(model: nn.Module, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """The objective's losses. Raises UserError where a norm layer has nothing to take a mean over."""
    try:
        return model(images, targets)
    except ValueError as error:
        if "Expected more than 1" not in str(error):  # torch's words for a channel, or a map, of one value
            raise
        height, width = images.pixels.shape[-2:]
        raise UserError(
            f"batch norm has one value a channel for its mean ({len(images.pixels)} image of {height}x{width} at a time)",
            where="model.norm",
            fix="give train.batch_size 2 or more for each pass, larger images or crops, or take model.norm gn",
        ) from None


def _report_non_finite(
    folder: Path, images: ImageBatch, targets: Sequence[Targets], ids: Sequence[Any], losses: Mapping[str, Tensor]
) -> None:
    path = folder / "non_finite_batch.pt"
    content = {
        "pixels": images.pixels.cpu(),
        "sizes": list(images.sizes),
        "ids": list(ids),
        "targets": [{"boxes": t.boxes.cpu(), "labels": t.labels.cpu(), "ignore": t.ignore.cpu()} for t in targets],
        "losses": {name: float(value.detach()) for name, value in losses.items()},
    }
    save_state(path, content)
    named = ", ".join(f"{name} {value:g}" for name, value in content["losses"].items())
    raise UserError(
        f"the loss is not finite ({named}) on images {', '.join(map(str, ids))}",
        where=folder,
        fix=f"the batch is saved in {path.name}; try a lower train.lr, more train.warmup_steps or train.precision fp32",
    )


def _keep_best(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    best: str,
    description: Mapping[str, Any],
    accelerator: Accelerator,
    epoch: int,
) -> bool:
    """Saves the model where it is the best so far; whether it is. `epoch` counts from 1, one that was not finished too."""
    if not best:
        return False
    if best not in progress.metrics:
        raise UserError(f"no metric '{best}' to pick the best checkpoint by", where="evaluate.best",
                        fix=f"known: {', '.join(progress.metrics)}")  # fmt: skip
    value = progress.metrics[best]
    # The first evaluation is kept whatever it says, -1 (no ground truth of that kind) included.
    if progress.best_epoch and goodness(best, value) <= goodness(best, progress.best):
        return False
    progress.best, progress.best_epoch = value, epoch
    with in_step(accelerator):
        if accelerator.is_main_process:
            told = {**description, "epoch": epoch, "metrics": progress.metrics}
            save_weights(folder / "best.safetensors", model.state_dict(), told)
    return True


@torch.no_grad()
def _kept_everywhere(detector: nn.Module, ema: EMA | None, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """The weights that are kept, on every process: the main one alone averages them, and each has norm statistics of its own."""
    kept = detector if ema is None else ema.model
    if accelerator.num_processes == 1:
        return kept
    if config.ema and ema is None:
        kept = copy.deepcopy(detector)
    for value in kept.state_dict().values():
        same = value.contiguous()
        broadcast(same)
        value.copy_(same)
    return kept
