"""Training and calibration of the first look: where in a coarse image something may be.

A cell holds an object when an object's centre is nearest to it; its eight neighbours and cells under ignore regions do not count.
Calibration is on images that were not learnt from, and on the objects there that the detector finds: only those can be lost
by skipping. It is cautious: an object counts as seen by the score of its own surroundings alone, as if it were the only one in
its tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge, resample
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable
from flyspeck.models.presence import CELL, PresenceNet
from flyspeck.train.checkpoint import load_weights, save_weights
from flyspeck.train.inputs import spread

LOOK_FILE = "look.safetensors"
_POSITIVE_WEIGHT = 3.0


@dataclass(frozen=True)
class LookSettings:
    """How a first look is trained."""

    shrink: int = 2
    """Pixels of the detector's input for each that the look gets."""
    steps: int = 600
    batch_size: int = 16
    lr: float = 4e-3
    max_images: int = 2000
    """Of each set; held in memory, shrunk."""
    crop: tuple[int, int] = (128, 160)
    """(h, w) in coarse pixels that is learnt from at once."""
    lost: float = 0.05
    """Share of the validation objects, each taken alone, that the threshold may miss."""
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """What a threshold does to images that were not learnt from."""

    threshold: float
    objects: int
    """Validation objects that the detector finds."""
    lost: float
    """Share of objects whose surroundings score below the threshold."""
    empty_kept: float
    """Share of the tile-sized windows without any object that are run all the same; -1 where there was none."""
    empty_windows: int


@dataclass(frozen=True)
class Coarse:
    """Shrunk images with the centres of their objects, and ignore regions, in coarse pixels."""

    pixels: list[np.ndarray]
    centres: list[np.ndarray]
    ignored: list[np.ndarray]
    rows: list[np.ndarray]
    """Of each centre, the row of the table."""


def train_look(
    train: Annotations,
    val: Annotations,
    *,
    mean: list[float],
    std: list[float],
    rule: PixelRule,
    enlarge: Enlarge,
    settings: LookSettings,
    findable: np.ndarray | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[PresenceNet, Calibration]:
    """A network and its threshold. `mean` and `std` per channel in [0, 1], and `rule`, are the detector's.

    `progress(step, loss)` is called every 50 steps.
    `findable` says of each row of `val` whether the detector finds it (`found_objects`); every object counts without it.

    Raises UserError where there are no objects to learn from or to calibrate on.
    """
    learn = shrink_all(spread(train, settings.max_images), enlarge, settings.shrink, rule)
    check = shrink_all(val, enlarge, settings.shrink, rule)
    for part, table in ((learn, train), (check, val)):
        if not any(len(c) for c in part.centres):
            raise UserError("no objects for a first look", where=table.source)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = PresenceNet(mean, std).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        _fit(network, learn, settings, progress)
    network.eval()
    return network, calibrate(network, check, settings, findable)


def shrink_all(table: Annotations, enlarge: Enlarge, shrink: int, rule: PixelRule) -> Coarse:
    """Every image of a table at the size that the look sees."""
    out = Coarse([], [], [], [])
    for row in range(len(table)):
        pixels = rule.read(table.path(row))
        height, width = pixels.shape[:2]
        seen = enlarge.size((height, width))
        coarse = (max(1, round(seen[0] / shrink)), max(1, round(seen[1] / shrink)))
        out.pixels.append(resample(pixels, coarse))
        mine = table.image_index == row
        boxes = table.boxes[mine] * np.array([coarse[1] / width, coarse[0] / height] * 2)
        ignore = table.ignore[mine] | (table.labels[mine] < 0)
        out.centres.append((boxes[~ignore, :2] + boxes[~ignore, 2:]) / 2)
        out.ignored.append(boxes[ignore])
        out.rows.append(np.flatnonzero(mine)[~ignore])
    return out


def cell_targets(size: tuple[int, int], centres: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights `(ceil(h / 8), ceil(w / 8))` float32 of a coarse window of `size` (h, w)."""
    shape = (-(-size[0] // CELL), -(-size[1] // CELL))
    target, weight = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    for x1, y1, x2, y2 in ignored.tolist():
        rows = slice(max(0, int(y1 // CELL)), max(0, int(y2 // CELL) + 2))
        weight[rows, max(0, int(x1 // CELL)) : max(0, int(x2 // CELL) + 2)] = 0
    inside = ((centres >= 0) & (centres < (size[1], size[0]))).all(axis=1)
    i, j = cells_of(centres[inside], shape)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            weight[(i + di).clip(0, shape[0] - 1), (j + dj).clip(0, shape[1] - 1)] = 0
    target[i, j] = weight[i, j] = 1
    return target, weight


def cells_of(centres: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the cell nearest to each of the `(n, 2)` x, y centres in coarse pixels."""
    nearest = np.round(centres / CELL).astype(np.int64)
    return nearest[:, 1].clip(0, shape[0] - 1), nearest[:, 0].clip(0, shape[1] - 1)


def _fit(
    network: PresenceNet, data: Coarse, settings: LookSettings, progress: Callable[[int, float], None] | None
) -> None:
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps)
    network.train()
    for step in range(1, settings.steps + 1):
        pixels, target, weight = _batch(data, settings, rng)
        logits = network(pixels)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, reduction="none", pos_weight=torch.tensor(_POSITIVE_WEIGHT)
        )
        loss = (loss * weight).sum() / weight.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and step % 50 == 0:
            progress(step, float(loss.detach()))


def _batch(
    data: Coarse, settings: LookSettings, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random windows with targets and weights; half are mirrored, brightness varies, what lacks is black and not learnt."""
    high, wide = settings.crop
    windows, targets, weights = [], [], []
    for row in rng.integers(0, len(data.pixels), settings.batch_size):
        pixels = data.pixels[row]
        y = int(rng.integers(0, max(0, pixels.shape[0] - high) + 1))
        x = int(rng.integers(0, max(0, pixels.shape[1] - wide) + 1))
        part = pixels[y : y + high, x : x + wide].astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535)
        window = np.zeros((high, wide, pixels.shape[2]), np.float32)
        window[: part.shape[0], : part.shape[1]] = part * rng.uniform(0.8, 1.2)
        shift = np.array([x, y])
        target, weight = cell_targets((high, wide), data.centres[row] - shift, data.ignored[row] - np.tile(shift, 2))
        weight[-(-part.shape[0] // CELL) :] = 0
        weight[:, -(-part.shape[1] // CELL) :] = 0
        if rng.random() < 0.5:
            # Cells are centred on multiples of 8 px: mirroring about the last of them keeps them in place.
            edge = (target.shape[1] - 1) * CELL
            window[:, : edge + 1] = window[:, : edge + 1][:, ::-1].copy()
            window[:, edge + 1 :] = 0
            target, weight = target[:, ::-1].copy(), weight[:, ::-1].copy()
        windows.append(window)
        targets.append(target)
        weights.append(weight)
    stack = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2)
    return stack, torch.from_numpy(np.stack(targets)), torch.from_numpy(np.stack(weights))


@torch.inference_mode()
def calibrate(
    network: PresenceNet, data: Coarse, settings: LookSettings, findable: np.ndarray | None = None
) -> Calibration:
    """The highest threshold that loses at most `settings.lost` of the objects, and what it does to empty windows."""
    own, empty = [], []
    for pixels, centres, ignored, rows in zip(data.pixels, data.centres, data.ignored, data.rows, strict=True):
        heat = presence(network, [pixels])[0]
        near = F.max_pool2d(torch.from_numpy(heat)[None, None], 3, 1, 1)[0, 0].numpy()
        i, j = cells_of(centres, heat.shape)  # pyright: ignore[reportArgumentType]
        own.append(near[i, j] if findable is None else near[i, j][findable[rows]])
        high, wide = (max(1, s // CELL) for s in settings.crop)
        for top in range(0, max(1, heat.shape[0] - high + 1), high):
            for left in range(0, max(1, heat.shape[1] - wide + 1), wide):
                frame = np.array([left, top, left + wide, top + high]) * CELL
                if not _touches(frame, centres, ignored):
                    empty.append(heat[top : top + high, left : left + wide].max())
    scores, empties = np.sort(np.concatenate(own)), np.array(empty)
    if not len(scores):
        raise UserError("the detector finds no validation object to calibrate on", fix="train it longer")
    allowed = int(settings.lost * len(scores))
    threshold = float(scores[allowed])
    kept = float((empties >= threshold).mean()) if len(empties) else -1.0
    return Calibration(threshold, len(scores), float((scores < threshold).mean()), kept, len(empties))


def found_objects(val: Annotations, detections: DetectionTable, *, score: float = 0.3, iou: float = 0.5) -> np.ndarray:
    """Which rows of `val` a detection of at least `score` covers with at least `iou`, of whatever class: bool `(N,)`."""
    strong = detections.scores >= score
    boxes, images = detections.boxes[strong], detections.image_index[strong]
    found = np.zeros(len(val.boxes), bool)
    for row in range(len(val)):
        mine, theirs = np.flatnonzero(val.image_index == row), boxes[images == row]
        if len(mine) and len(theirs):
            found[mine] = box_algebra.iou(val.boxes[mine], theirs).max(axis=1) >= iou
    return found


def _touches(frame: np.ndarray, centres: np.ndarray, ignored: np.ndarray) -> bool:
    inside = ((centres >= frame[:2] - CELL) & (centres < frame[2:] + CELL)).all(axis=1)
    under = ((ignored[:, 2:] > frame[:2]) & (ignored[:, :2] < frame[2:])).all(axis=1)
    return bool(inside.any() or under.any())


@torch.inference_mode()
def presence(network: PresenceNet, windows: list[np.ndarray]) -> np.ndarray:
    """Windows (h, w, C) uint8 or uint16 of one size to `(B, ceil(h / 8), ceil(w / 8))` float32 in [0, 1]."""
    stack = np.stack(windows)
    if stack.dtype == np.uint16:
        stack = stack.astype(np.float32) / np.float32(65535)
    return network(torch.from_numpy(stack).permute(0, 3, 1, 2)).sigmoid().numpy()


def save_look(path: Path, network: PresenceNet, settings: LookSettings, calibration: Calibration) -> None:
    """Weights with what is needed to use them, as safetensors."""
    description: dict[str, Any] = {
        "kind": "first look",
        "shrink": settings.shrink,
        "width": network.width,
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "calibration": asdict(calibration),
    }
    save_weights(path, network.state_dict(), description)


def load_look(path: Path) -> tuple[PresenceNet, dict[str, Any]]:
    """The network and description that `save_look` wrote."""
    state, description = load_weights(path)
    if description.get("kind") != "first look":
        raise UserError("not a first look", where=path, fix="make one with flyspeck tune look RUN")
    network = PresenceNet(description["mean"], description["std"], width=description["width"])
    network.load_state_dict(state)
    return network, description
