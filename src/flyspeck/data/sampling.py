"""Which image is drawn when: an order per epoch, its split over processes, and how often an image comes. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations


class Draw(NamedTuple):
    """One image to be drawn: all that its augmentation depends on, besides the seed."""

    epoch: int
    position: int
    """Place in the epoch's order over all processes, so that the same image drawn twice is augmented differently."""
    index: int
    """Row of the image in the annotation table."""


BLOCKS_AT_ONCE = 16
"""Shards whose images are mixed: some ten thousand images of shards as they are usual."""


class EpochSampler:
    """The order of an epoch, different for each epoch, split exactly over `world_size` processes.

    Process `rank` draws the positions `rank, rank + world_size, ...`: the first b draws of all W processes are the first
    `W * b` positions, so that W processes with batches of b see the global batches that one process with `W * b` sees.

    `repeats` (num,) says how often each image comes per epoch on average; any positive number. An epoch has
    `round(sum(repeats))` draws, always; an image comes `floor` or `ceil` of its number of times (systematic sampling with
    a random start, which keeps the mean exact).

    With `even` the last `length % world_size` positions of an epoch are left out, so that no process waits for another;
    without it (evaluation) every position is drawn exactly once.

    `blocks` (num,) numbers the file, from 0, that each image lies in with others, as in shards: an epoch then takes the
    files in a new order, `BLOCKS_AT_ONCE` at a time, and shuffles the images of those, so that few files are read from at
    any time.

    `epoch` and `start` (draws of this process to skip) are set before iterating; `state` is what a checkpoint keeps.
    """

    def __init__(
        self,
        num: int,
        *,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        repeats: np.ndarray | None = None,
        even: bool = True,
        blocks: np.ndarray | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        if repeats is not None and (repeats.shape != (num,) or not np.isfinite(repeats).all() or (repeats < 0).any()):
            raise ValueError(f"repeats must be {num} finite numbers of at least 0")
        self.num, self.seed, self.shuffle, self.even = num, seed, shuffle, even
        self.rank, self.world_size, self.repeats, self.blocks = rank, world_size, repeats, blocks
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Draws of this process in a whole epoch."""
        return len(range(self.rank, self._total(), self.world_size))

    def _total(self) -> int:
        """Draws of all processes together in an epoch."""
        length = self.num if self.repeats is None else round(float(self.repeats.sum()))
        return length - length % self.world_size if self.even else length

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's images over all processes, int64; computed from (seed, epoch) alone."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        rows = np.arange(self.num)
        if self.repeats is not None:
            rows = np.repeat(rows, _systematic_counts(self.repeats, rng))
        if self.shuffle:
            rows = rng.permutation(rows)
        if self.shuffle and self.blocks is not None:
            of_row = self.blocks[rows]
            place = rng.permutation(int(self.blocks.max()) + 1)[of_row]
            rows = rows[np.argsort(place // BLOCKS_AT_ONCE, kind="stable")]
        return rows[: self._total()]

    def __iter__(self) -> Iterator[Draw]:
        epoch, order = self.epoch, self.order(self.epoch)
        for position in range(self.rank + self.start * self.world_size, len(order), self.world_size):
            yield Draw(epoch, position, int(order[position]))

    @property
    def state(self) -> dict[str, int]:
        """Where the next iteration begins."""
        return {"epoch": self.epoch, "start": self.start}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken."""
        self.epoch, self.start = int(state["epoch"]), int(state["start"])


def _systematic_counts(repeats: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Integer counts with mean `repeats` and the fixed total `round(sum(repeats))`, (num,)."""
    total = round(float(repeats.sum()))
    if total == 0:
        return np.zeros(len(repeats), np.int64)
    edges = np.cumsum(repeats) * (total / repeats.sum())
    edges[-1] = total  # rounding must not lose the last tick
    ticks = np.floor(edges + rng.random()).astype(np.int64)
    # With the start u in [0, 1) the ticks lie at 1-u, 2-u, ..., total-u: exactly `total` of them below the last edge.
    return np.diff(np.minimum(ticks, total), prepend=0)


def repeat_factors(
    annotations: Annotations,
    *,
    rare_below: float = 0.0,
    tiny_size: float = 12.0,
    tiny_gain: float = 0.0,
    empty: float = 1.0,
) -> np.ndarray:
    """How often to draw each image per epoch, `(I,)` float64, for `EpochSampler(repeats=...)`.

    `rare_below` t in [0, 1]: a class c that is in a share f_c < t of the images asks for sqrt(t / f_c) repeats, and an
    image takes the most that one of its classes asks for (repeat factor sampling: Gupta, Dollar, Girshick, LVIS, 2019,
    sec. 4.2 of arXiv 1908.03195). `tiny_gain` g: an image of whose objects a share s is at most `tiny_size` px (square
    root of the area) asks for `1 + g * s`; the larger of the two counts. `empty`: the factor of images with no object.
    """
    learnt = ~(annotations.ignore | annotations.crowd) & (annotations.labels >= 0)
    image_index, labels = annotations.image_index[learnt], annotations.labels[learnt]
    num_images, num_classes = len(annotations), len(annotations.classes)
    factors = np.ones(num_images)
    if rare_below > 0 and num_classes:
        pairs = np.unique(image_index * num_classes + labels)
        image, label = pairs // num_classes, pairs % num_classes
        share = np.bincount(label, minlength=num_classes) / max(num_images, 1)
        per_class = np.sqrt(rare_below / np.maximum(share, np.finfo(float).tiny)).clip(min=1.0)
        np.maximum.at(factors, image, per_class[label])
    count = np.bincount(image_index, minlength=num_images)
    if tiny_gain > 0:
        tiny = box_algebra.size(annotations.boxes[learnt]) <= tiny_size
        share = np.bincount(image_index, weights=tiny, minlength=num_images) / np.maximum(count, 1)
        factors = np.maximum(factors, 1.0 + tiny_gain * share)
    factors[count == 0] = empty
    return factors
