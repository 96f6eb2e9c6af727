"""Pre-training: a backbone as a classifier. Ning et al., arXiv:2303.11267, section 4.1.

The point of the paper: images of the size of the objects to be found (CIFAR-100, ImageNet32) suit a backbone for tiny
objects; it compares with ImageNet at 224 pixels. Augmentation as there: random horizontal flip, random crop and resize. The
paper gives no schedule: SGD with momentum and a cosine here.

Small sets are in memory, large ones are read as they are needed (`pretrain_inputs`). Several processes share every batch. A
run that is resumed, in the middle of an epoch too, ends bit for bit where one ends that was never stopped: the learning
rate is a function of the step, torch is seeded by (seed, step, process), and what an epoch draws is stored or follows from
its number.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.allocator import freed_memory_kept
from flyspeck.data.classification import LabelledImages
from flyspeck.data.labelled_files import LabelledFiles
from flyspeck.devices import torch_device
from flyspeck.errors import UserError
from flyspeck.files import UNREADABLE, own_place
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.classifier import Classifier
from flyspeck.models.weights import save_weights
from flyspeck.train.checkpoint import load_state, save_state
from flyspeck.train.interrupt import Interrupt
from flyspeck.train.optim import build_optimizer, lr_factor, set_lr
from flyspeck.train.pretrain_inputs import ImagesInMemory, ImagesOnDisk, Inputs
from flyspeck.train.processes import Alone, Processes, failing_for_all, in_step, join_processes
from flyspeck.train.sections import TrainConfig
from flyspeck.train.seeds import step_seed

log = logging.getLogger(__name__)

STATE = "state.pt"
_FREE = ("workers", "log_every", "checkpoint_every", "checkpoint_minutes", "tensorboard")
"""Fields of the settings that may change when a run goes on."""
_TOLD_AFTER = 60.0
"""Seconds between two lines of the log within an epoch."""


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training gave."""

    top1: float
    """Best share of validation images whose class came first."""
    epoch: int
    """The epoch of it, from 1."""
    weights: Path
    """The backbone's weights of that epoch."""


@dataclass
class _Progress:
    """Where a pre-training stands."""

    epoch: int = 0
    """Epochs done."""
    step_in_epoch: int = 0
    total: float = 0.0
    """Sum of this epoch's losses."""
    top1: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    """Of this epoch, before the run was last begun."""
    rows: list[list[str]] = field(default_factory=list)
    """Of `log.csv`."""


@freed_memory_kept()
def pretrain(
    backbone: StagedBackbone,
    train: LabelledImages | LabelledFiles,
    val: LabelledImages | LabelledFiles,
    config: TrainConfig,
    out: Path,
    *,
    name: str = "",
    smallest_crop: float = 0.5,
    device: str = "auto",
    size: int = 32,
    max_broken_share: float = 0.01,
    resume: bool = False,
) -> Pretrained:
    """Trains `backbone` with a linear classifier on `train`, in place, and writes to the folder `out`.

    `backbone.safetensors` holds the weights of the best epoch by top-1 on `val`, with name, metrics and pixel statistics
    as metadata; `log.csv` one line per epoch; `state.pt` what `resume` goes on from. Started by `torchrun`, the processes
    share each batch of `config.batch_size`.

    Args:
        backbone: What learns; on the processes of a run all the same.
        train: Images in memory, or a list of files.
        val: The same of other images, with the same classes.
        config: The optimisation; its `workers` and checkpoints too.
        out: Folder.
        name: Of the backbone, for the metadata.
        smallest_crop: Smallest share of the area that a crop keeps.
        device: Of a single process.
        size: Side in pixels to which files are resized; images in memory have one.
        max_broken_share: Share of the files that may turn out unreadable; others stand in for them, and each is named.
        resume: Go on from `state.pt`, or begin where there is none.

    Returns:
        The best top-1, its epoch and its weights.

    Raises:
        UserError: For sets that do not go together, a folder that holds a run, a state of another run, and a loss that is
            not finite.
    """
    if train.classes != val.classes:
        raise UserError("training and validation images have different classes", where=val.source)
    processes = join_processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone(torch_device(device))
    if config.batch_size % processes.num_processes:
        fix = f"give a multiple of {processes.num_processes}"
        raise UserError(f"a batch of {config.batch_size} images for so many processes", where="batch_size", fix=fix)
    _claim(out, processes, resume=resume)
    torch.manual_seed(config.seed)
    model = Classifier(backbone, num_classes=len(train.classes)).to(processes.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with closing(_inputs(train, val, config, processes, size, smallest_crop, max_broken_share)) as inputs:
        facts = {
            "backbone": name,
            "smallest_crop": smallest_crop,
            "size": train.pixels.shape[1] if isinstance(train, LabelledImages) else size,
            "data": inputs.digest(),
            "train": config.model_dump(mode="json", exclude=set(_FREE)),
        }
        about = {"backbone": name, "data": train.source, "classes": str(len(train.classes))}
        return _Run(model, inputs, config, out, processes, facts, about).to_the_end(resume=resume)


def _inputs(
    train: LabelledImages | LabelledFiles,
    val: LabelledImages | LabelledFiles,
    config: TrainConfig,
    processes: Processes,
    size: int,
    smallest_crop: float,
    max_broken_share: float,
) -> Inputs:
    common: dict[str, Any] = dict(
        batch_size=config.batch_size, seed=config.seed, smallest_crop=smallest_crop, processes=processes
    )
    if isinstance(train, LabelledImages) and isinstance(val, LabelledImages):
        return ImagesInMemory(train, val, **common)
    if isinstance(train, LabelledFiles) and isinstance(val, LabelledFiles):
        return ImagesOnDisk(train, val, size=size, workers=config.workers, max_broken_share=max_broken_share, **common)
    raise ValueError("both sets in memory, or both on the disk")


def _claim(out: Path, processes: Processes, *, resume: bool) -> None:
    with in_step(processes):
        if (out / STATE).exists() and not resume:
            raise UserError(
                "holds a pre-training already", where=out, fix="choose another --out, or go on with --resume"
            )
        if resume and not out.exists():
            raise UserError("nothing to resume", where=out, fix="leave out --resume to start the run")
    if processes.process_index == 0:
        out.mkdir(parents=True, exist_ok=True)


@dataclass
class _Run:
    model: Classifier
    inputs: Inputs
    config: TrainConfig
    out: Path
    processes: Processes
    facts: dict[str, Any]
    """What a run that goes on must share."""
    about: dict[str, str]
    """Metadata of the weights."""

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.model, self.config)
        self.progress = _Progress()
        self.trained: nn.Module = self.model
        self.main = self.processes.process_index == 0
        self.saved = self.told = self.begun = time.monotonic()

    def to_the_end(self, *, resume: bool) -> Pretrained:
        """All epochs that are left."""
        if resume and (self.out / STATE).exists():
            self._restore()
        elif resume and self.main:
            log.warning("%s: stopped before its first checkpoint, so it begins anew", self.out)
        if self.processes.num_processes > 1:
            self.trained = join_processes().prepare(self.model)
        self._write_log()
        while self.progress.epoch < self.config.epochs:
            self.begun = time.monotonic()
            self._epoch()
            self._measure()
        weights = self.out / "backbone.safetensors"
        return Pretrained(self.progress.top1, self.progress.best_epoch, weights)

    def _epoch(self) -> None:
        """The steps of an epoch that are left."""
        progress, config, steps = self.progress, self.config, self.inputs.steps
        self.model.train()
        interrupt = Interrupt(alone=self.processes.num_processes == 1)
        batches = self.inputs.epoch(progress.epoch, progress.step_in_epoch)
        with interrupt:
            while progress.step_in_epoch < steps:
                done = progress.epoch * steps + progress.step_in_epoch
                with in_step(self.processes):
                    x, labels = next(batches)
                torch.manual_seed(step_seed(config.seed, done, self.processes.process_index))
                set_lr(self.optimizer, lr_factor(done, done / max(config.epochs * steps, 1), config))
                interrupt.armed = True
                progress.total += self._step(x, labels)
                progress.step_in_epoch += 1
                self._between_steps(interrupt)
                interrupt.armed = False

    def _step(self, x: Tensor, labels: Tensor) -> float:
        """One update; returns the loss over the whole batch."""
        config = self.config
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self.trained(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        # Of all processes: what is stored of an epoch under way has to be the same on each.
        value = _sum([float(loss.detach())], self.processes)[0] / self.processes.num_processes
        if not math.isfinite(value):
            where = f"epoch {self.progress.epoch + 1}"
            raise UserError(f"the loss is {value}", where=where, fix="lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimizer.step()
        return value

    def _between_steps(self, interrupt: Interrupt) -> None:
        """A checkpoint where one is due, and a line where none came for a minute."""
        progress, config, now = self.progress, self.config, time.monotonic()
        done = progress.epoch * self.inputs.steps + progress.step_in_epoch
        counted = config.checkpoint_every is not None and done % config.checkpoint_every == 0
        with failing_for_all(self.processes):
            if counted or now - self.saved >= 60 * config.checkpoint_minutes or interrupt.asked:
                self._save()
        if interrupt.asked:
            log.warning("interrupted in epoch %d; --resume goes on from here (%s)", progress.epoch + 1, self.out)
            raise interrupt.error(interrupt.asked)
        if self.main and now - self.told >= _TOLD_AFTER:
            self.told = now
            mean = progress.total / progress.step_in_epoch
            log.info(
                "epoch %d: %d of %d steps  loss %.3f",
                progress.epoch + 1,
                progress.step_in_epoch,
                self.inputs.steps,
                mean,
            )

    def _measure(self) -> None:
        """Top-1 of the epoch's weights, its line, and its checkpoint."""
        progress, steps = self.progress, self.inputs.steps
        _share_weights(self.model, self.processes)
        mean = progress.total / steps
        with in_step(self.processes):
            right, seen = top1_counts(self.model, self.inputs.validation())
        right, seen = _sum([right, seen], self.processes)
        if seen == 0:
            raise UserError("no validation image can be used", where=self.about["data"])
        top1, broken = right / seen, int(_sum([self.inputs.broken()], self.processes)[0])
        seconds = time.monotonic() - self.begun + progress.seconds
        rate = f"{self.optimizer.param_groups[-1]['lr']:.6g}"
        row = [str(progress.epoch + 1), f"{mean:.4f}", f"{top1:.4f}", rate, f"{seconds:.1f}"]
        progress.rows.append(row)
        best = top1 > progress.top1
        progress.epoch, progress.step_in_epoch, progress.total, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
        if best:
            progress.top1, progress.best_epoch = top1, progress.epoch
        self.begun = time.monotonic()
        with in_step(self.processes):
            if self.main:
                words = (progress.epoch, self.config.epochs, mean, 100 * top1, seconds)
                log.info("epoch %d/%d  loss %.3f  top-1 %.2f %%  %.0f s", *words)
                if broken:
                    log.warning("%d training images could not be used so far; others stand in for them", broken)
                if best:
                    save_weights(self.model.backbone, self.out / "backbone.safetensors", about=self._told(broken))
                self._write_log()
                self._save()

    def _told(self, broken: int) -> dict[str, str]:
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in self.inputs.norm)
        best = {"top1": f"{self.progress.top1:.4f}", "epoch": str(self.progress.best_epoch), "mean": mean, "std": std}
        return {**self.about, **best, **({"broken": str(broken)} if broken else {})}

    def _write_log(self) -> None:
        if not self.main:
            return
        with own_place(self.out / "log.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["epoch", "loss", "top1", "lr", "seconds"])
            table.writerows(self.progress.rows)

    def _save(self) -> None:
        if not self.main:
            return
        progress = replace(self.progress, seconds=time.monotonic() - self.begun + self.progress.seconds)
        state = {
            "pretraining": self.facts,
            "progress": asdict(progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "inputs": self.inputs.state(),
        }
        save_state(self.out / STATE, state)
        self.saved = time.monotonic()

    def _restore(self) -> None:
        path = self.out / STATE
        state = load_state(path)
        facts = state.get("pretraining")
        if not isinstance(facts, dict):
            raise UserError("not the state of a pre-training", where=path, fix="choose another --out")
        differing = [key for key, value in self.facts.items() if key != "train" and facts.get(key) != value]
        old, new = facts.get("train", {}), self.facts["train"]
        differing += [key for key in new if old.get(key, new[key]) != new[key]]
        if differing:
            fix = "resume with the same, or choose another --out"
            raise UserError(f"this run was started with another {', '.join(differing)}", where=path, fix=fix)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = _Progress(**state["progress"])
            self.inputs.load_state(state["inputs"])
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"not the state of this run ({reason})", where=path, fix="start a new run") from None


def _share_weights(model: nn.Module, processes: Processes) -> None:
    """Norm statistics are each process's own: those of the first are measured, and kept."""
    if processes.num_processes > 1:
        for value in model.buffers():
            torch.distributed.broadcast(value, 0)


def _sum(values: list[float], processes: Processes) -> list[float]:
    """The sums over all processes."""
    if processes.num_processes == 1:
        return values
    kind = torch.float32 if processes.device.type == "mps" else torch.float64
    together = torch.tensor(values, dtype=kind, device=processes.device)
    torch.distributed.all_reduce(together)
    return together.tolist()


@torch.no_grad()
def top1_counts(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    """Of images `(B, 3, S, S)` with their labels: how many have their class as the largest logit, and how many there are."""
    model.eval()
    right = seen = 0
    for x, labels in batches:
        logits = model(x.contiguous(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return right, seen
