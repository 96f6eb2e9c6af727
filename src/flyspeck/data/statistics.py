"""A data set's own mean and deviation per channel, for the network's normalisation. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.images import MAX_PIXELS
from flyspeck.errors import UserError


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation over all pixels of the images looked at, per channel, in units of full scale."""

    mean: tuple[float, ...]
    """One per channel, in [0, 1]."""
    std: tuple[float, ...]
    """One per channel, in [0, 0.5]; 0 for a channel that never varies."""
    num_images: int
    """Images that were read."""
    bits: int
    """8, or 16 if any of them has 16, or a range of values."""

    @property
    def channels(self) -> int:
        """Bands."""
        return len(self.mean)


def pixel_statistics(
    annotations: Annotations,
    *,
    rule: PixelRule | None = None,
    num_images: int = 256,
    seed: int = 0,
    max_pixels: int | None = MAX_PIXELS,
) -> PixelStatistics:
    """Statistics over `num_images` images drawn with `seed` (all of them if there are no more).

    `rule` says which bands and values are read (None: each file's own, which must have the same bands); 8-bit values are divided
    by 255, 16-bit values by 65535. Every pixel counts the same, so big images count more. Images that cannot be read are
    passed over here, since the loader counts and reports them; UserError if none can be read.
    """
    rule = rule or PixelRule()
    order = np.random.default_rng(seed).permutation(len(annotations))[:num_images]
    first_error: UserError | None = None
    sums, squares, pixels_seen, images_seen, bits = np.zeros(0), np.zeros(0), 0, 0, 8
    for index in np.sort(order):
        try:
            pixels = rule.read(annotations.path(index), max_pixels=max_pixels)
        except UserError as error:
            first_error = first_error or error
            continue
        if images_seen == 0:
            sums, squares = np.zeros(pixels.shape[2]), np.zeros(pixels.shape[2])
        if len(sums) != pixels.shape[2]:
            raise UserError(
                f"{pixels.shape[2]} bands where others have {len(sums)}",
                where=annotations.path(index),
                fix="give a rule",
            )
        total, total_squares = _moments(pixels)
        sums, squares = sums + total, squares + total_squares
        pixels_seen += pixels.shape[0] * pixels.shape[1]
        images_seen += 1
        bits = max(bits, pixels.dtype.itemsize * 8)
    if images_seen == 0:
        raise first_error or UserError(
            "no image to take mean and deviation from", where=annotations.source or "data set", fix="add images"
        )
    mean = sums / pixels_seen
    std = np.sqrt(np.maximum(squares / pixels_seen - mean**2, 0))
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), images_seen, bits)


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares per channel of `(H, W, C)`, full scale being 1; exact integers until the last division."""
    scale = np.iinfo(pixels.dtype).max
    levels = np.arange(scale + 1, dtype=np.int64)
    counts = [np.bincount(pixels[:, :, c].reshape(-1), minlength=scale + 1) for c in range(pixels.shape[2])]
    first = np.array([(count * levels).sum() for count in counts])
    second = np.array([(count * levels**2).sum() for count in counts])
    return first / scale, second / scale**2
