"""Square crops of several sizes, resized to one: how face detectors see each face at many scales.

PyramidBox (Tang et al., 2018) and TinaFace (Zhu et al., 2020, arXiv:2011.13183): the side is the image's shorter side times
one of 0.3, 0.45, 0.6, 0.8, 1, the square holds the centre of a face, and it is resized to 640 x 640 px.

Deviations: the square is placed around one face drawn at random (theirs is drawn until it holds one); a face at the cut is
kept, ignored or dropped by the house's one policy (theirs keeps those whose centre is inside).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flyspeck.data.policy import CutPolicy
from flyspeck.data.transforms import Another, RandomScaleCrop, crop, no_other, resize
from flyspeck.types import Sample

TINAFACE_SHARES = (0.3, 0.45, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class RandomSquareCrop:
    """Cuts a square of a random one of `shares` of the shorter side around an object and resizes it to `size` px.

    An image without objects gives a square anywhere.
    """

    size: int
    shares: tuple[float, ...] = TINAFACE_SHARES
    policy: CutPolicy = field(default_factory=CutPolicy)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample of `size` x `size`."""
        share = self.shares[int(rng.integers(len(self.shares)))]
        side = max(1, round(min(sample.pixels.shape[1:]) * share))
        y, x = RandomScaleCrop(toward_objects=1.0).place(sample, (side, side), rng)
        return resize(crop(sample, (x, y, x + side, y + side), self.policy), (self.size, self.size))
