"""From the annotation table to batches: the data set, the padding, and a loader that gives the same batches again.

A sample depends on (seed, epoch, position in the epoch, image) and on nothing else: not on the number of workers, not
on what was drawn before, not on the global random state. So a run that goes on from a checkpoint sees the same pixels as
one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.broken import BrokenImages
from flyspeck.data.enlarge import Enlarge, enlarged_table, native_sizes, resample
from flyspeck.data.epoch_loader import REPLACEMENT_TRIES, Batching, EpochLoader
from flyspeck.data.images import MAX_PIXELS
from flyspeck.data.padding import padded_side
from flyspeck.data.pixel_cache import LIMIT_BYTES, PixelCache
from flyspeck.data.sampling import Draw, EpochSampler
from flyspeck.data.transforms import Transform
from flyspeck.devices import processors
from flyspeck.errors import UserError, counted
from flyspeck.types import ImageBatch, Sample, Targets


class Batch(NamedTuple):
    """What the loader yields; unpacks as `images, targets, image_ids`."""

    images: ImageBatch
    targets: list[Targets]
    image_ids: list[int | str]


class DetectionDataset(Dataset[Sample]):
    """Images with their boxes as `Sample`s, map-style; index it with a row number or with a sampler's `Draw`.

    `rule` says which bands and values are read; `channels` is short for a rule of so many, None keeps each file's own.
    `transform(sample, rng, another)` is called with a generator seeded by (seed, epoch, position); a plain row number counts as
    epoch 0, position = row.

    `cache="ram"` decodes once, at construction, into memory that workers share; its size is logged, and images
    that would push it beyond `cache_limit_bytes` are decoded from their files each time instead.

    Boxes are clipped to the image; those with nothing left are dropped. Ignored and crowd boxes become ignore regions
    with the label -1. An image that cannot be read, or is not of the size that the annotations state, raises UserError.
    With `enlarge`, images and boxes come out larger; `annotations` is then the enlarged table.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        channels: int | None = None,
        rule: PixelRule | None = None,
        transform: Transform | None = None,
        cache: Literal["none", "ram"] = "none",
        cache_limit_bytes: int = LIMIT_BYTES,
        max_pixels: int | None = MAX_PIXELS,
        enlarge: Enlarge | None = None,
        seed: int = 0,
    ) -> None:
        self.enlarged = enlarge is not None and enlarge.changes
        self._native = native_sizes(annotations) if self.enlarged else annotations.sizes
        self.annotations = annotations if enlarge is None else enlarged_table(annotations, enlarge)
        self.rule, self.transform = rule or PixelRule(channels=channels), transform
        self.max_pixels, self.seed = max_pixels, seed
        self._cache = PixelCache(self._decode, len(annotations), cache_limit_bytes) if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | Draw) -> Sample:
        return self.draw(key if isinstance(key, Draw) else Draw(0, int(key), int(key)))

    def draw(self, draw: Draw, attempt: int = 0) -> Sample:
        """The sample of one draw; another `attempt` gives other random numbers."""
        sample = self.raw(draw.index)
        if self.transform is None:
            return sample
        # Five words of seed: no other stream of the package has as many, so that none can coincide.
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position, 1, attempt])
        return self.transform(sample, rng, self._another)

    def raw(self, index: int) -> Sample:
        """Image `index` before any transform: (C, H, W) uint8, or float32 in [0, 1] of more bits."""
        pixels = self._cache.get(index) if self._cache else None
        if pixels is None:
            pixels = self._decode(index)
        if pixels.dtype == np.uint16:
            tensor = torch.from_numpy(pixels.astype(np.float32) / np.float32(65535))
        else:
            tensor = torch.from_numpy(pixels.copy() if self._cache else pixels)  # a transform may write in place
        height, width = tensor.shape[-2:]
        image_id = self.annotations.image_ids[index]
        return Sample(
            pixels=tensor,
            targets=self._targets(index, height, width),
            image_id=image_id if isinstance(image_id, str) else int(image_id),
        )

    def _another(self, rng: np.random.Generator, index: int | None = None) -> Sample:
        """Image `index`, or one drawn at random: for the transforms that mix images."""
        return self.raw(int(rng.integers(len(self))) if index is None else index)

    def _decode(self, index: int) -> np.ndarray:
        """Pixels (C, H, W) uint8 or uint16 from the file."""
        path = self.annotations.path(index)
        pixels = self.rule.read(path, max_pixels=self.max_pixels)
        stated = tuple(int(side) for side in self._native[index])
        if min(stated) > 0 and stated != pixels.shape[:2]:
            raise UserError(
                f"the image is {pixels.shape[1]} x {pixels.shape[0]} where the annotations say {stated[1]} x {stated[0]}",
                where=path,
                fix="correct the annotations (the size counts after the EXIF orientation is applied)",
            )
        if self.enlarged:
            height, width = self.annotations.sizes[index].tolist()
            pixels = resample(pixels, (height, width))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _targets(self, index: int, height: int, width: int) -> Targets:
        """Ground truth of image `index`, clipped to it."""
        rows = self.annotations.of_image(index)
        clipped = box_algebra.clip(self.annotations.boxes[rows], height, width).astype(np.float32)
        ignore = self.annotations.ignore[rows] | self.annotations.crowd[rows] | (self.annotations.labels[rows] < 0)
        # Judged in float32: what the network sees must have a positive area there.
        keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        labels = np.where(ignore, -1, self.annotations.labels[rows])
        return Targets(
            boxes=torch.from_numpy(clipped[keep]),
            labels=torch.from_numpy(labels[keep].astype(np.int64)),
            ignore=torch.from_numpy(ignore[keep]),
        )


def collate(samples: Sequence[Sample], *, divisor: int, smallest: int = 1) -> Batch:
    """Samples padded with 0 at the bottom and the right to one size, see `padded_side`; nothing is resized.

    All samples must have the same number of channels and of bits.
    """
    kinds = {(sample.pixels.shape[0], sample.pixels.dtype) for sample in samples}
    if len(kinds) > 1:
        words = " and ".join(sorted(f"{c} channel(s) of {str(d).removeprefix('torch.')}" for c, d in kinds))
        ids = ", ".join(str(sample.image_id) for sample in samples[:8])
        raise UserError(
            f"images of different kinds in one batch: {words}",
            where=f"images {ids}",
            fix="set data.channels, and keep 8-bit and 16-bit images in separate data sets",
        )
    channels, dtype = next(iter(kinds))
    sizes = tuple((int(s.pixels.shape[1]), int(s.pixels.shape[2])) for s in samples)
    height, width = (padded_side(max(side), divisor=divisor, smallest=smallest) for side in zip(*sizes, strict=True))
    pixels = torch.zeros((len(samples), channels, height, width), dtype=dtype)
    for row, sample, (h, w) in zip(pixels, samples, sizes, strict=True):
        row[:, :h, :w] = sample.pixels
    return Batch(ImageBatch(pixels, sizes), [s.targets for s in samples], [s.image_id for s in samples])


@dataclass(frozen=True)
class _Fetched:
    """A batch on its way from a worker, with the errors met while it was made."""

    batch: Batch | None
    """None if nothing could be put in an image's place, or the images do not go together: `errors[-1]` says why."""
    errors: tuple[UserError, ...]

    def pin_memory(self) -> _Fetched:
        """Called by the loader's pinning thread."""
        if self.batch is None:
            return self
        images = replace(self.batch.images, pixels=self.batch.images.pixels.pin_memory())
        return replace(self, batch=self.batch._replace(images=images))


@dataclass(frozen=True)
class _Fetcher(Dataset[Any]):
    """The data set as workers see it: in the place of an image that fails, another one is drawn.

    It is drawn from the draw's own random numbers: batches stay full on every process, and the same however they are loaded.
    """

    dataset: DetectionDataset

    def __getitem__(self, draw: Draw) -> tuple[Sample | None, tuple[UserError, ...]]:
        errors: list[UserError] = []
        rng = np.random.default_rng([self.dataset.seed, draw.epoch, draw.position, 2])
        for attempt in range(REPLACEMENT_TRIES):
            try:
                return self.dataset.draw(draw, attempt), tuple(errors)
            except UserError as error:
                errors.append(error)
                draw = draw._replace(index=int(rng.integers(len(self.dataset))))
        return None, tuple(errors)


@dataclass(frozen=True)
class _Collate:
    divisor: int
    smallest: int

    def __call__(self, items: list[tuple[Sample | None, tuple[UserError, ...]]]) -> _Fetched:
        errors = tuple(error for _, found in items for error in found)
        samples = [sample for sample, _ in items if sample is not None]
        if len(samples) < len(items):
            return _Fetched(None, errors)
        try:
            return _Fetched(collate(samples, divisor=self.divisor, smallest=self.smallest), errors)
        except UserError as error:
            return _Fetched(None, (*errors, error))


class Loader(EpochLoader[_Fetched]):
    """Batches of an epoch, from any batch on: `for images, targets, image_ids in loader.epoch(3, start=17)`.

    Images that cannot be used are replaced and counted in `broken` (file -> what is wrong); as soon as their
    share of the data set exceeds `max_broken_share`, UserError names the file. Workers: see `EpochLoader`.
    """

    def __init__(
        self, dataset: DetectionDataset, batching: Batching, *, divisor: int, smallest: int, max_broken_share: float
    ) -> None:
        super().__init__(_Fetcher(dataset), _Collate(divisor, smallest), batching)
        self._broken = BrokenImages(len(dataset), most=max_broken_share)
        self.broken = self._broken.found

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches `start`, `start + 1`, ... of an epoch."""
        for fetched in self._fetched(epoch, start):
            assert fetched.batch is not None
            yield fetched.batch

    def _check(self, fetched: _Fetched) -> None:
        if fetched.batch is None:
            raise fetched.errors[-1]
        for error in fetched.errors:
            self._broken.note(error)


def make_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    sampler: EpochSampler | None = None,
    workers: int | None = None,
    seed: int = 0,
    divisor: int,
    smallest: int = 1,
    drop_last: bool = True,
    max_broken_share: float = 0.0,
    pin_memory: bool = False,
) -> Loader:
    """A loader for training (defaults), or for evaluation with `sampler=in_order(len(dataset))` and `drop_last=False`.

    Args:
        dataset: What is loaded.
        batch_size: Images a batch, of this process.
        sampler: The order; None: shuffled by `seed`, anew in every epoch.
        workers: Processes that read ahead; None takes `default_workers()`.
        seed: Of the order and of the augmentation.
        divisor: What the sides of batches, in pixels, must divide by: the detector's (`Detector.divisor`).
        smallest: What they must have at least (`Detector.smallest_side`).
        drop_last: Leave out a last batch that is not full.
        max_broken_share: Share of images, in [0, 1], that may turn out broken before training stops.
        pin_memory: For a quicker way to a GPU.

    Returns:
        The loader; `epoch(number)` gives batches of images, targets and image ids.

    Raises:
        ValueError: For a sampler of another data set, or a batch size below 1.
    """
    sampler = sampler if sampler is not None else EpochSampler(len(dataset), seed=seed)
    if sampler.num != len(dataset):
        raise ValueError(f"the sampler draws from {sampler.num} images, the data set has {len(dataset)}")
    if batch_size < 1:
        raise UserError(f"a batch of {counted(batch_size, 'image')}", where="batch_size", fix="use 1 or more")
    loader = Loader(
        dataset,
        Batching(sampler, batch_size, drop_last, default_workers() if workers is None else workers, seed, pin_memory),
        divisor=divisor,
        smallest=smallest,
        max_broken_share=max_broken_share,
    )
    if len(loader) == 0:
        raise UserError(
            f"{counted(len(sampler), 'image does', 'images do')} not fill one batch of {batch_size}",
            where=dataset.annotations.source or "data set",
            fix="use a smaller batch_size or more images",
        )
    return loader


def in_order(num: int, *, rank: int = 0, world_size: int = 1) -> EpochSampler:
    """Every image once, in the order of the table: for evaluation."""
    return EpochSampler(num, seed=0, shuffle=False, rank=rank, world_size=world_size, even=False)


def default_workers(processes: int = 1) -> int:
    """Loader workers per process where `processes` train on this machine: one core each is left to the training itself.

    0 on one core, 1 on two, never more than 8.
    """
    return max(0, min(8, processors() // max(processes, 1) - 1))
