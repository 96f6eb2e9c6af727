"""Pre-training on small images: a backbone as a classifier. Ning et al., arXiv:2303.11267, section 4.1.

The point of the paper: images of the size of the objects to be found (CIFAR-100, ImageNet32) suit a backbone for tiny
objects. Augmentation as there: random horizontal flip, random crop and resize. The paper gives no schedule: SGD with
momentum and a cosine here.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyspeck.allocator import freed_memory_kept
from flyspeck.data.classification import LabelledImages
from flyspeck.devices import torch_device
from flyspeck.errors import UserError
from flyspeck.files import own_place
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.classifier import Classifier
from flyspeck.models.weights import save_weights
from flyspeck.train.optim import build_optimizer, lr_factor, set_lr
from flyspeck.train.sections import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training gave."""

    top1: float
    """Best share of validation images whose class came first."""
    epoch: int
    """The epoch of it, from 1."""
    weights: Path
    """The backbone's weights of that epoch."""


@freed_memory_kept()
def pretrain(
    backbone: StagedBackbone,
    train: LabelledImages,
    val: LabelledImages,
    config: TrainConfig,
    out: Path,
    *,
    name: str = "",
    smallest_crop: float = 0.5,
    device: str = "auto",
) -> Pretrained:
    """Trains `backbone` with a linear classifier on `train`, in place, and writes to the folder `out`.

    `backbone.safetensors` holds the weights of the best epoch by top-1 on `val`, with name, metrics and pixel statistics
    as metadata; `log.csv` one line per epoch. `smallest_crop` is the smallest share of the area that a crop keeps.
    """
    place = torch_device(device)
    if train.classes != val.classes:
        raise UserError("training and validation images have different classes", where=val.source)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    mean, std = pixel_statistics(train.pixels)
    model = Classifier(backbone, num_classes=len(train.classes)).to(place)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, config)
    size, norm = train.pixels.shape[1], (mean, std)
    steps = max(1, len(train) // config.batch_size)
    best = Pretrained(-1.0, 0, out / "backbone.safetensors")
    with own_place(out / "log.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "loss", "top1", "lr", "seconds"])
        for epoch in range(config.epochs):
            started, total = time.perf_counter(), 0.0
            model.train()
            for step, (images, labels) in enumerate(_batches(train, config.batch_size, generator)):
                done = epoch * steps + step
                factor = lr_factor(done, done / max(config.epochs * steps, 1), config)
                set_lr(optimizer, factor)
                x = crop_and_flip(_normalised(images, norm), size, generator, smallest_crop=smallest_crop)
                total += _step(model, optimizer, x.to(place), labels.to(place), config)
            if not math.isfinite(total):
                raise UserError(
                    f"the loss is {total / steps}", where=f"epoch {epoch + 1}", fix="lower the learning rate"
                )
            top1 = top1_accuracy(model, val, norm, device=device)
            seconds = time.perf_counter() - started
            table.writerow(
                [epoch + 1, f"{total / steps:.4f}", f"{top1:.4f}", f"{config.lr * factor:.6g}", f"{seconds:.1f}"]
            )
            file.flush()
            log.info(
                "epoch %d/%d  loss %.3f  top-1 %.2f %%  %.0f s",
                epoch + 1,
                config.epochs,
                total / steps,
                100 * top1,
                seconds,
            )
            if top1 > best.top1:
                best = Pretrained(top1, epoch + 1, best.weights)
                save_weights(backbone, best.weights, about=_about(name, train, best, norm))
    return best


def _step(model: Classifier, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, config: TrainConfig) -> float:
    """One update; returns the loss."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(x.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip_grad is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    optimizer.step()
    return float(loss.detach())


def _about(name: str, train: LabelledImages, best: Pretrained, norm: tuple[np.ndarray, np.ndarray]) -> dict[str, str]:
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in norm)
    return {
        "backbone": name,
        "data": train.source,
        "classes": str(len(train.classes)),
        "top1": f"{best.top1:.4f}",
        "epoch": str(best.epoch),
        "mean": mean,
        "std": std,
    }


def pixel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of `(N, H, W, 3)` uint8, in units of [0, 1]; at most 10,000 images are read."""
    some = pixels[:: max(1, len(pixels) // 10_000)].reshape(-1, 3).astype(np.float32) / 255
    return some.mean(0, dtype=np.float64), np.maximum(some.std(0, dtype=np.float64), 1e-3)


def _normalised(images: np.ndarray, norm: tuple[np.ndarray, np.ndarray]) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in norm)
    return (x - mean) / std


def _batches(data: LabelledImages, batch_size: int, generator: torch.Generator) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Whole batches in a new order; the rest of an epoch that fills no batch is left for another one."""
    order = torch.randperm(len(data), generator=generator).numpy()
    stop = len(order) - len(order) % batch_size or len(order)
    for start in range(0, stop, batch_size):
        rows = order[start : start + batch_size]
        yield data.pixels[rows], torch.from_numpy(data.labels[rows])


def crop_and_flip(x: Tensor, size: int, generator: torch.Generator, *, smallest_crop: float = 0.5) -> Tensor:
    """A random square of each image `(B, 3, S, S)`, resized to `size`, mirrored half of the time.

    The square keeps between `smallest_crop` and all of the area. One bilinear resampling does all of it.
    """
    count = len(x)
    side = (smallest_crop + (1 - smallest_crop) * torch.rand(count, generator=generator)).sqrt()
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirror, side, shift
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@torch.no_grad()
def top1_accuracy(
    model: Classifier,
    data: LabelledImages,
    norm: tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int = 512,
    device: str = "auto",
) -> float:
    """Share of images whose class has the largest logit."""
    place = torch_device(device)
    model.eval()
    right = 0
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        x = _normalised(data.pixels[rows], norm).to(place, memory_format=torch.channels_last)
        right += int((model(x).argmax(1).cpu().numpy() == data.labels[rows]).sum())
    return right / len(data)
