"""What a pre-training learns from: labelled images in memory, or on the disk; one process's share of every batch.

Small sets are in memory, as arrays of one size; their crops are drawn from one generator. Large ones stay files, see
`flyspeck.data.labelled_loading`. Either way, several processes together see the batches that one would see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyspeck.data.classification import LabelledImages
from flyspeck.data.labelled_files import LabelledFiles, square_of
from flyspeck.data.labelled_loading import LabelledLoader
from flyspeck.data.loading import default_workers
from flyspeck.errors import UserError
from flyspeck.train.processes import Processes

Norm = tuple[np.ndarray, np.ndarray]
_VALIDATED = 512
"""Images at a time, of validation."""
_MEASURED = 1000
"""Images on the disk that mean and deviation are taken from."""


class Inputs(Protocol):
    """Batches of training and validation, on this process's device: normalised images `(B, 3, S, S)` and labels `(B,)`."""

    norm: Norm
    """Mean and deviation of each channel."""
    steps: int
    """Of an epoch."""

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches `start`, `start + 1`, … of an epoch of training."""
        ...

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the validation images."""
        ...

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on from here."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        ...

    def digest(self) -> str:
        """The same for the same training images."""
        ...

    def broken(self) -> int:
        """Training images that could not be used so far, of this process."""
        ...

    def close(self) -> None:
        """Ends what still runs."""
        ...


class ImagesInMemory:
    """`LabelledImages`, cropped and mirrored as tensors."""

    def __init__(
        self,
        train: LabelledImages,
        val: LabelledImages,
        *,
        batch_size: int,
        seed: int,
        smallest_crop: float,
        processes: Processes,
    ) -> None:
        self.train, self.val, self.batch_size, self.smallest_crop = train, val, batch_size, smallest_crop
        self.processes = processes
        self.norm = pixel_statistics(train.pixels)
        self.steps = max(1, len(train) // batch_size)
        self._generator = torch.Generator().manual_seed(seed)
        self._begun = self._generator.get_state()

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches in a new order; the rest of an epoch that fills no batch is left for another one."""
        now = self._generator.get_state()
        if start:
            self._generator.set_state(self._begun)
        else:
            self._begun = now
        order = torch.randperm(len(self.train), generator=self._generator).numpy()
        if start:
            self._generator.set_state(now)
        size, own = self.train.pixels.shape[1], slice(self.processes.process_index, None, self.processes.num_processes)
        for step in range(start, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            crops = random_crops(len(batch), self._generator, smallest_crop=self.smallest_crop)
            rows = batch[own]
            x = resampled(_normalised(self.train.pixels[rows], self.norm), crops[own], size)
            yield x.to(self.processes.device), torch.from_numpy(self.train.labels[rows]).to(self.processes.device)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """In order."""
        rows = np.arange(self.processes.process_index, len(self.val), self.processes.num_processes)
        for some in (rows[first : first + _VALIDATED] for first in range(0, len(rows), _VALIDATED)):
            x = _normalised(self.val.pixels[some], self.norm).to(self.processes.device)
            yield x, torch.from_numpy(self.val.labels[some]).to(self.processes.device)

    def state(self) -> dict[str, Any]:
        """Of the generator: as it is, and as it was when the epoch began."""
        return {"generator": self._generator.get_state(), "begun": self._begun}

    def load_state(self, state: dict[str, Any]) -> None:
        """Sets the generator."""
        self._generator.set_state(state["generator"])
        self._begun = state["begun"]

    def digest(self) -> str:
        """Of the labels and of every hundredth image."""
        some = self.train.pixels[:: max(1, len(self.train) // 100)]
        text = f"{self.train.pixels.shape} {self.train.classes}".encode()
        return hashlib.sha256(text + self.train.labels.tobytes() + some.tobytes()).hexdigest()

    def broken(self) -> int:
        """None: reading them would have failed."""
        return 0

    def close(self) -> None:
        """Nothing runs."""


class ImagesOnDisk:
    """`LabelledFiles`, cropped by the loader's workers. Nothing of it grows with the number of images but their list."""

    def __init__(
        self,
        train: LabelledFiles,
        val: LabelledFiles,
        *,
        size: int,
        batch_size: int,
        seed: int,
        smallest_crop: float,
        processes: Processes,
        workers: int | None,
        max_broken_share: float,
    ) -> None:
        number, world = processes.process_index, processes.num_processes
        common: dict[str, Any] = dict(
            size=size,
            seed=seed,
            rank=number,
            world_size=world,
            workers=default_workers(world) if workers is None else workers,
            max_broken_share=max_broken_share,
            pin_memory=processes.device.type == "cuda",
        )
        self.processes, self.files = processes, train
        self.norm = file_statistics(train, size)
        own = max(1, min(batch_size, len(train)) // world)
        self._train = LabelledLoader(train, batch_size=own, smallest_crop=smallest_crop, **common)
        # As much memory as a batch of training, at 224 pixels and more.
        at_once = max(1, min(_VALIDATED, own if size > 64 else _VALIDATED))
        self._val = LabelledLoader(val, batch_size=at_once, smallest_crop=None, **common)
        self.steps = len(self._train)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `LabelledLoader.epoch`."""
        for pixels, labels in self._train.epoch(epoch, start=start):
            yield self._placed(pixels, labels)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """In order; images that cannot be used are left out, and said."""
        for pixels, labels in self._val.epoch(0):
            yield self._placed(pixels, labels)

    def _placed(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.processes.device
        x = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in self.norm)
        return (x - mean) / std, labels.to(device, non_blocking=True)

    def state(self) -> dict[str, Any]:
        """None: everything follows from the seed, the epoch and the position."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to set."""

    def digest(self) -> str:
        """Of the list, not of what is in the images."""
        return self.files.digest()

    def broken(self) -> int:
        """Named in the log."""
        return len(self._train.broken.found)

    def close(self) -> None:
        """Ends the workers."""
        self._train.close()
        self._val.close()


def pixel_statistics(pixels: np.ndarray) -> Norm:
    """Mean and deviation of each channel of `(N, H, W, 3)` uint8, in units of [0, 1]; at most 10,000 images are read."""
    some = pixels[:: max(1, len(pixels) // 10_000)].reshape(-1, 3).astype(np.float32) / 255
    return some.mean(0, dtype=np.float64), np.maximum(some.std(0, dtype=np.float64), 1e-3)


def file_statistics(files: LabelledFiles, size: int) -> Norm:
    """The same of the middles of a thousand images on the disk, spread evenly over the list. Raises UserError where none
    can be read.
    """
    rows = np.unique(np.linspace(0, len(files) - 1, min(len(files), _MEASURED)).astype(int))
    total, squares, count, last = np.zeros(3), np.zeros(3), 0, None
    for row in rows.tolist():
        try:
            image = square_of(files, row, min(size, 64), rng=None, smallest=1.0)
        except UserError as error:
            last = error
            continue
        values = image.reshape(-1, 3).astype(np.float64) / 255
        total, squares, count = total + values.sum(0), squares + (values**2).sum(0), count + len(values)
    if count == 0:
        assert last is not None
        raise last
    mean = total / count
    return mean, np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 1e-3)


def _normalised(images: np.ndarray, norm: Norm) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in norm)
    return (x - mean) / std


def random_crops(count: int, generator: torch.Generator, *, smallest_crop: float = 0.5) -> Tensor:
    """Squares to cut, each mirrored half of the time, as affine matrices `(count, 2, 3)` from [-1, 1] to [-1, 1].

    A square keeps between `smallest_crop` and all of the area.
    """
    side = (smallest_crop + (1 - smallest_crop) * torch.rand(count, generator=generator)).sqrt()
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirror, side, shift
    return theta


def resampled(x: Tensor, crops: Tensor, size: int) -> Tensor:
    """`(B, 3, S, S)` cut by `crops` and resized to `size`, by one bilinear resampling."""
    grid = F.affine_grid(crops, [len(x), 3, size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
