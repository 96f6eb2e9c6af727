"""How large the network sees an image.

Enlarging: tiny objects survive the strides of a network better in a larger image (DPNet, sec. I and III). Squeezing: every
image at one size, whatever that does to its proportions (Liu et al., "SSD: Single Shot MultiBox Detector", 2016).

The network learns from and looks at such images; annotations, results and size bins stay those of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_size
from flyspeck.errors import UserError, brief


@dataclass(frozen=True)
class Enlarge:
    """By a factor, to a length of the shorter side (and at most one of the longer), or to one size; 1 and None leave images as
    they are.
    """

    factor: float = 1.0
    short_side: int | None = None
    """Pixels; takes the place of `factor`."""
    squeeze: tuple[int, int] | None = None
    """(height, width) in pixels of every image; takes the place of both."""
    long_side: int | None = None
    """With `short_side`: pixels that the longer side may have; where it would have more, it gets these."""

    def __post_init__(self) -> None:
        if not 0 < self.factor < np.inf:
            raise UserError(f"an enlargement by {self.factor:g}", where="data.enlarge", fix="give a number above 0")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"a short side of {self.short_side}", where="data.short_side", fix="give pixels, 1 or more")
        if self.long_side is not None and (self.short_side is None or self.long_side < self.short_side):
            raise UserError(
                f"a long side of {self.long_side} beside a short side of {self.short_side}",
                where="long_side",
                fix="give a short_side that is no longer",
            )
        if self.squeeze is not None and min(self.squeeze) < 1:
            raise UserError(
                f"a squeeze to {self.squeeze[0]}x{self.squeeze[1]}", where="data.squeeze", fix="give pixels, 1 or more"
            )

    @property
    def changes(self) -> bool:
        """Whether any image could come out at another size."""
        return self.factor != 1 or self.short_side is not None or self.squeeze is not None

    def scale(self, size: tuple[int, int]) -> float:
        """Enlarged pixels per pixel of an image of `size` (H, W); of a squeeze, which has two, the smaller one."""
        if self.squeeze is not None:
            return min(self.squeeze[0] / max(1, size[0]), self.squeeze[1] / max(1, size[1]))
        if self.short_side is None:
            return self.factor
        scale = self.short_side / max(1, min(size))
        return scale if self.long_side is None else min(scale, self.long_side / max(1, *size))

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the image as the network sees it, at least 1 each."""
        if self.squeeze is not None:
            return self.squeeze
        scale = self.scale(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def words(self) -> str:
        """For people: `scale 2`, `shorter side 800 px`, `squeezed to 300x300`."""
        if self.squeeze is not None:
            return f"squeezed to {self.squeeze[0]}x{self.squeeze[1]}"
        if self.short_side is None:
            return f"scale {self.factor:g}"
        most = "" if self.long_side is None else f" (longer at most {self.long_side})"
        return f"shorter side {self.short_side} px{most}"

    def scaled(self, scale: float) -> Enlarge:
        """The rule by which images come out `scale` times as large as by this one."""
        if self.squeeze is not None:
            return Enlarge(squeeze=(max(1, round(self.squeeze[0] * scale)), max(1, round(self.squeeze[1] * scale))))
        if self.short_side is not None:
            sides = (self.short_side, self.long_side)
            short, long = (None if side is None else max(1, round(side * scale)) for side in sides)
            return Enlarge(short_side=short, long_side=long)
        return Enlarge(self.factor * scale)

    def described(self) -> dict[str, Any]:
        """Plain values for a checkpoint or an exported file; `described_enlargement` reads them."""
        told: dict[str, Any] = {"factor": self.factor, "short_side": self.short_side}
        told |= {} if self.long_side is None else {"long_side": self.long_side}
        return told | {"squeeze": None if self.squeeze is None else list(self.squeeze)}


def described_enlargement(description: Mapping[str, Any], *, scale: float | None = None) -> Enlarge:
    """The rule of a trained model, from what its file says of itself; `scale` takes its place.

    Raises UserError for a `scale` of a model that squeezes its images: it has seen no other size.
    """
    rule = _told(description.get("enlarge", {}))
    if scale is None:
        return rule
    if rule.squeeze is not None:
        raise UserError(
            f"the model sees every image {rule.words()}: no scale of its own",
            where="scale",
            fix="leave it out; give a tile to see parts of an image larger",
        )
    return Enlarge(scale)


def _told(said: Any) -> Enlarge:
    """What `Enlarge.described` wrote. Raises UserError for anything else."""
    try:
        told = dict(said)
        squeeze: Sequence[int] | None = told.pop("squeeze", None)
        numbers = [value for value in (*told.values(), *(squeeze or ())) if value is not None]
        if not all(0 < float(value) < 2**31 for value in numbers):
            raise ValueError("no size")
        return Enlarge(**told, squeeze=None if squeeze is None else (int(squeeze[0]), int(squeeze[1])))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise UserError(
            f"the model's file says that images are enlarged by {brief(said)}",
            where="enlarge",
            fix="copy it again, or train or export it again",
        ) from None


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
        return np.array(_resized(Image.fromarray(np.ascontiguousarray(pixels)), out))
    planes = []
    for channel in np.moveaxis(pixels, 2, 0):
        # Pillow has no filter for 16-bit grey; floats hold 16 bits exactly.
        plane = Image.fromarray(channel if pixels.dtype == np.uint8 else channel.astype(np.float32))
        resized = np.asarray(_resized(plane, out))
        planes.append(
            resized if pixels.dtype.kind == "f" or pixels.dtype == np.uint8 else _whole(resized, pixels.dtype)
        )
    return np.stack(planes, axis=2)


def _resized(image: Image.Image, out: tuple[int, int]) -> Image.Image:
    """Rows first. Pillow rounds 8-bit pixels between the two steps, and from version 13 on begins with the cheaper one."""
    for size in ((out[1], image.height), (out[1], out[0])):
        image = image.resize(size, Image.Resampling.BILINEAR) if size != image.size else image
    return image
