"""Every image squeezed to one size, and SSD's zooming on the whole image before that.

Liu et al., "SSD: Single Shot MultiBox Detector" (2016, sec. 2.2 and 3.6): windows are cut and resized to the network's size
(zoom in), or the image is laid on a larger canvas first (zoom out), which makes small objects of larger ones.

Deviations: zooming in and out is one factor, log-uniform in a range (theirs: a canvas of up to 16 times the area, and windows
drawn until they overlap an object enough, of several proportions); the canvas has the mean colour of the image (theirs: of
the data set); a box at the cut becomes what the house's one policy says (theirs: kept while its centre is inside).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from flyspeck.data.enlarge import resample
from flyspeck.data.policy import CutPolicy
from flyspeck.data.transforms import Another, RandomScaleCrop, Transform, crop, no_other
from flyspeck.types import Sample


@dataclass(frozen=True)
class RandomZoom:
    """A sample of exactly `size` (H, W) px, proportions not kept, from the whole image at a factor from `scale` (log-uniform).

    At 1 the image is squeezed. Above, a window of 1/factor of its height and width is cut and squeezed; with probability
    `toward_objects` it holds the centre of an object drawn at random. Below, the image is squeezed to factor x `size` and laid
    at a random place on a canvas of its mean colour.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    toward_objects: float = 0.0
    policy: CutPolicy = field(default_factory=CutPolicy)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample of `size`."""
        low, high = self.scale
        factor = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if high > low else low
        if factor > 1:
            height, width = sample.pixels.shape[1:]
            tall, wide = max(1, round(height / factor)), max(1, round(width / factor))
            y, x = RandomScaleCrop(toward_objects=self.toward_objects).place(sample, (tall, wide), rng)
            return squeeze(crop(sample, (x, y, x + wide, y + tall), self.policy), self.size)
        if factor < 1:
            return self._zoomed_out(sample, factor, rng)
        return squeeze(sample, self.size)

    def _zoomed_out(self, sample: Sample, factor: float, rng: np.random.Generator) -> Sample:
        tall, wide = (max(1, round(side * factor)) for side in self.size)
        y, x = (int(rng.integers(side - inner + 1)) for side, inner in zip(self.size, (tall, wide), strict=True))
        small = squeeze(sample, (tall, wide))
        mean = small.pixels.to(torch.float32).mean((1, 2), keepdim=True)
        mean = mean.round() if small.pixels.dtype == torch.uint8 else mean
        canvas = mean.to(small.pixels.dtype).expand(-1, *self.size).clone()
        canvas[:, y : y + tall, x : x + wide] = small.pixels
        shift = torch.tensor([x, y, x, y], dtype=torch.float32)
        return replace(small, pixels=canvas, targets=replace(small.targets, boxes=small.targets.boxes + shift))


@dataclass(frozen=True)
class Squeezed:
    """A step behind the squeeze: images that it mixes in come squeezed too, and what it makes is of `size` (H, W) again."""

    step: Transform
    size: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample of `size`."""

        def squeezed(rng: np.random.Generator, index: int | None = None) -> Sample:
            return squeeze(another(rng, index), self.size)

        return squeeze(self.step(sample, rng, squeezed), self.size)


def squeeze(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resized to `size` (H, W) px by the filter of evaluation and prediction (`enlarge.resample`), its proportions not kept."""
    _, height, width = sample.pixels.shape
    if size == (height, width):
        return sample
    pixels = sample.pixels.numpy().transpose(1, 2, 0)
    if sample.pixels.dtype == torch.uint8:
        resized = torch.from_numpy(np.ascontiguousarray(resample(pixels, size).transpose(2, 0, 1)))
    else:  # of 16 bits, see `DetectionDataset.raw`
        levels = resample(np.rint(pixels * np.float32(65535)).astype(np.uint16), size).transpose(2, 0, 1)
        resized = torch.from_numpy(levels.astype(np.float32) / np.float32(65535))
    ratio = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    boxes = (sample.targets.boxes * ratio).to(torch.float32)
    return replace(sample, pixels=resized, targets=replace(sample.targets, boxes=boxes))
