"""Enlarging: tiny objects survive the strides of a network better in a larger image (DPNet, sec. I and III).

The network learns from and looks at enlarged images; annotations, results and size bins stay those of the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_size
from flyspeck.errors import UserError


@dataclass(frozen=True)
class Enlarge:
    """By a factor, or to a length of the shorter side; 1 and None leave images as they are."""

    factor: float = 1.0
    short_side: int | None = None
    """Pixels; takes the place of `factor`."""

    def __post_init__(self) -> None:
        if not 0 < self.factor < np.inf:
            raise UserError(f"an enlargement by {self.factor:g}", where="data.enlarge", fix="give a number above 0")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"a short side of {self.short_side}", where="data.short_side", fix="give pixels, 1 or more")

    @property
    def changes(self) -> bool:
        """Whether any image could come out at another size."""
        return self.factor != 1 or self.short_side is not None

    def scale(self, size: tuple[int, int]) -> float:
        """Enlarged pixels per pixel of an image of `size` (H, W)."""
        return self.factor if self.short_side is None else self.short_side / max(1, min(size))

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the enlarged image, at least 1 each."""
        scale = self.scale(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def enlarged_table(annotations: Annotations, rule: Enlarge) -> Annotations:
    """The same table in enlarged pixels: `sizes`, `boxes` and `area`; sizes that it does not say are read from the files.

    The true ratio of each side counts, since sides are rounded to whole pixels.
    """
    if not rule.changes:
        return annotations
    before = native_sizes(annotations)
    after = np.array([rule.size((int(h), int(w))) for h, w in before], np.int64).reshape(-1, 2)
    ratio = (after / before)[annotations.image_index]
    return replace(
        annotations,
        sizes=after,
        boxes=annotations.boxes * ratio[:, [1, 0, 1, 0]],
        area=annotations.area * ratio.prod(1),
    )


def native_sizes(annotations: Annotations) -> np.ndarray:
    """(I, 2) int64 (height, width) of the files, read from them where the table does not say."""
    sizes = annotations.sizes.copy()
    for row in np.flatnonzero((sizes <= 0).any(1)):
        sizes[row] = read_size(annotations.path(int(row)))
    return sizes


def _whole(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.round(values).clip(limits.min, limits.max).astype(dtype)


def resample(pixels: np.ndarray, out: tuple[int, int] | None) -> np.ndarray:
    """`(h, w, C)` pixels at the size `out` (h, w): bilinear, antialiased when shrinking. Of any type."""
    if out is None or out == pixels.shape[:2]:
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:  # the same numbers in half the time
        whole = Image.fromarray(np.ascontiguousarray(pixels))
        return np.array(whole.resize((out[1], out[0]), Image.Resampling.BILINEAR))
    planes = []
    for channel in np.moveaxis(pixels, 2, 0):
        # Pillow has no filter for 16-bit grey; floats hold 16 bits exactly.
        plane = Image.fromarray(channel if pixels.dtype == np.uint8 else channel.astype(np.float32))
        resized = np.asarray(plane.resize((out[1], out[0]), Image.Resampling.BILINEAR))
        planes.append(
            resized if pixels.dtype.kind == "f" or pixels.dtype == np.uint8 else _whole(resized, pixels.dtype)
        )
    return np.stack(planes, axis=2)
