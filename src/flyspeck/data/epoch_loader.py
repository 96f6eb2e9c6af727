"""What the loaders share: the batches of an epoch, from any batch on, read by workers that stay from epoch to epoch."""

from __future__ import annotations

import gc
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from flyspeck.data.sampling import Draw, EpochSampler
from flyspeck.data.worker_deaths import forget, told
from flyspeck.errors import UserError

REPLACEMENT_TRIES = 16
"""Images that are drawn in the place of one that cannot be used."""
Fetched = TypeVar("Fetched")
"""A batch as it comes from a worker. Errors travel in it as values: an exception that leaves a worker comes out as the text of
a traceback."""


@dataclass(frozen=True)
class Batching:
    """In which batches, and by whom."""

    sampler: EpochSampler
    """The order, and the share of this process."""
    batch_size: int
    """Images a batch, of this process."""
    drop_last: bool
    """Leave out a last batch that is not full."""
    workers: int = 0
    """Processes that read ahead."""
    seed: int = 0
    pin_memory: bool = False
    """For a quicker way to a GPU."""


class EpochLoader(ABC, Generic[Fetched]):
    """Batches of `items`; a loader says in `_check` which of them are errors.

    Workers stay from epoch to epoch; `close` ends them, an error does too, and the next epoch would start new ones.
    """

    def __init__(self, items: Dataset[Any], collate: Callable[[list[Any]], Fetched], batching: Batching) -> None:
        self.batching, self.sampler = batching, batching.sampler
        self._settings: dict[str, Any] = dict(
            dataset=items,
            batch_sampler=_DrawsInBatches(batching),
            num_workers=batching.workers,
            collate_fn=collate,
            worker_init_fn=_start_worker,
            persistent_workers=batching.workers > 0,
            pin_memory=batching.pin_memory,
            # Its own generator: otherwise every epoch would draw a number from torch's global stream.
            generator=torch.Generator().manual_seed(batching.seed),
        )
        self._loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        draws, size = len(self.sampler), self.batching.batch_size
        return draws // size if self.batching.drop_last else -(-draws // size)

    def close(self) -> None:
        """Ends the workers."""
        self._loader = None
        forget()

    def _fetched(self, epoch: int, start: int) -> Iterator[Fetched]:
        """The batches `start`, `start + 1`, … of an epoch, checked. Raises UserError."""
        self.sampler.load_state({"epoch": epoch, "start": start * self.batching.batch_size})
        if self._loader is None:
            self._loader = DataLoader(**self._settings)
        batches: Iterator[Fetched] | None = None
        try:
            batches = told(partial(iter, self._loader))
            while (fetched := told(partial(next, batches, None))) is not None:
                self._check(fetched)
                yield fetched
        except UserError:
            # At once: workers that wait for the garbage collector hold up the end by seconds.
            batches = None
            self.close()
            raise

    @abstractmethod
    def _check(self, fetched: Fetched) -> None:
        """Notes what could not be read, and raises UserError where the batch cannot be used."""


@dataclass(frozen=True)
class _DrawsInBatches:
    """The sampler's draws in lists of the batch's size."""

    batching: Batching

    def __iter__(self) -> Iterator[list[Draw]]:
        batch: list[Draw] = []
        for draw in self.batching.sampler:
            batch.append(draw)
            if len(batch) == self.batching.batch_size:
                yield batch
                batch = []
        if batch and not self.batching.drop_last:
            yield batch


def _start_worker(worker: int) -> None:
    """One thread per worker; Ctrl-C is the main process's to handle."""
    # What came with the fork is never collected here: a collection writes to every object, and by that copies all of them.
    gc.freeze()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
