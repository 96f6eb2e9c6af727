"""Batches of labelled images that are read from the disk as they are needed: the same ones again, from any batch on.

What is drawn depends on (seed, epoch, position in the epoch) alone, as in `loading`: so a run that goes on in the middle of
an epoch sees the pixels that it would have seen, with any number of workers, and so do several processes together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from flyspeck.data.broken import BrokenImages
from flyspeck.data.epoch_loader import REPLACEMENT_TRIES, Batching, EpochLoader
from flyspeck.data.labelled_files import LabelledFiles, ShardGone, square_of
from flyspeck.data.sampling import Draw, EpochSampler
from flyspeck.errors import UserError

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Fetched:
    """A batch on its way from a worker, with the errors met while it was made."""

    pixels: torch.Tensor
    """(B, S, S, 3) uint8."""
    labels: torch.Tensor
    """(B,) int64."""
    errors: tuple[UserError, ...]
    fatal: UserError | None = None

    def pin_memory(self) -> _Fetched:
        """Called by the loader's pinning thread."""
        return _Fetched(self.pixels.pin_memory(), self.labels.pin_memory(), self.errors, self.fatal)


@dataclass(frozen=True)
class _Fetcher(Dataset[Any]):
    """One image as a worker reads it. In training, another one stands in for an image that cannot be used."""

    files: LabelledFiles
    size: int
    seed: int
    smallest_crop: float | None
    """None takes the middle of every image, and nothing in the place of a broken one."""

    def __getitem__(self, draw: Draw) -> tuple[np.ndarray | None, int, list[UserError]]:
        training, errors, index = self.smallest_crop is not None, [], draw.index
        # Six words of seed: no other stream of the package has as many, so that none can coincide.
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position, 3, 0, 0]) if training else None
        for _ in range(REPLACEMENT_TRIES if training else 1):
            try:
                pixels = square_of(self.files, index, self.size, rng=rng, smallest=self.smallest_crop or 1.0)
                return pixels, int(self.files.labels[index]), errors
            except UserError as error:
                errors.append(error)
                if isinstance(error, ShardGone) or rng is None:
                    break
                index = int(rng.integers(len(self.files)))
        return None, -1, errors


@dataclass(frozen=True)
class _Collate:
    size: int
    whole: bool
    """Whether a batch has to be full."""

    def __call__(self, items: list[tuple[np.ndarray | None, int, list[UserError]]]) -> _Fetched:
        errors = tuple(error for _, _, found in items for error in found)
        good = [(pixels, label) for pixels, label, _ in items if pixels is not None]
        gone = next((error for error in errors if isinstance(error, ShardGone)), None)
        fatal = gone or (errors[-1] if self.whole and len(good) < len(items) else None)
        pixels = torch.empty((len(good), self.size, self.size, 3), dtype=torch.uint8)
        for row, (image, _) in zip(pixels.numpy(), good, strict=True):
            row[:] = image
        return _Fetched(pixels, torch.tensor([label for _, label in good], dtype=torch.int64), errors, fatal)


class LabelledLoader(EpochLoader[_Fetched]):
    """Batches `(pixels (B, S, S, 3) uint8, labels (B,))` of this process, from any batch of an epoch on.

    Images that cannot be used are named once, and counted in `broken`; more than a share of `max_broken_share` of all is an
    error. Workers: see `EpochLoader`.
    """

    def __init__(
        self,
        files: LabelledFiles,
        *,
        size: int,
        batch_size: int,
        smallest_crop: float | None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        max_broken_share: float = 0.0,
        pin_memory: bool = False,
    ) -> None:
        """`smallest_crop`: share of the area that a random crop keeps at least; None: for evaluation, the middles of all
        images in order, the last batch as large as it comes.
        """
        training = smallest_crop is not None
        self.broken = BrokenImages(len(files), most=max_broken_share)
        sampler = EpochSampler(
            len(files),
            seed=seed,
            shuffle=training,
            rank=rank,
            world_size=world_size,
            even=training,
            blocks=files.shard_of,
        )
        super().__init__(
            _Fetcher(files, size, seed, smallest_crop),
            _Collate(size, training),
            Batching(sampler, batch_size, training, workers, seed, pin_memory),
        )

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Pair]:
        """The batches `start`, `start + 1`, … of an epoch. Raises UserError."""
        for fetched in self._fetched(epoch, start):
            if len(fetched.labels):
                yield fetched.pixels, fetched.labels

    def _check(self, fetched: _Fetched) -> None:
        for error in fetched.errors:
            if not isinstance(error, ShardGone):
                self.broken.note(error)
        if fetched.fatal is not None:
            raise fetched.fatal
