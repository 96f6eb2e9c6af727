"""What training does to an image: plain functions on `Sample`, and frozen callables that draw their numbers from a `rng`.

Every transform is `transform(sample, rng, another) -> Sample`. All randomness comes from `rng`; `another(rng)` gives a
second image to those that mix images. Samples are never changed in place. Boxes follow the pixels exactly, in half-open
pixel coordinates: flips and turns keep them bit for bit (whole numbers), a resize multiplies by the true ratio of the
sizes, and a cut goes through the one policy of `flyspeck.data.policy`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from flyspeck.data.policy import CutPolicy, cut_boxes
from flyspeck.errors import UserError, nearest
from flyspeck.plugins import UnknownPart, with_installed
from flyspeck.types import Sample, Targets


class Another(Protocol):
    """Gives an image before any transform: the one of row `index`, or one drawn with `rng`."""

    def __call__(self, rng: np.random.Generator, index: int | None = None) -> Sample:
        """See the class."""
        ...


def no_other(rng: np.random.Generator, index: int | None = None) -> Sample:
    """The `Another` of an image that stands alone."""
    raise RuntimeError("this transform mixes images: it needs a data set to take another one from")


class Transform(Protocol):
    """One step of augmentation.

    One that has a true `colour_only` is left out of trainings on other than three bands, and one that names a `colour_part` does
    without that there.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """See the class."""
        ...


# --- exact moves -----------------------------------------------------------------------------------------------------


def flip_horizontal(sample: Sample) -> Sample:
    """Left and right exchanged."""
    width = sample.pixels.shape[2]
    x1, y1, x2, y2 = sample.targets.boxes.unbind(-1)
    return _with(sample, sample.pixels.flip(2), torch.stack([width - x2, y1, width - x1, y2], -1))


def flip_vertical(sample: Sample) -> Sample:
    """Top and bottom exchanged."""
    height = sample.pixels.shape[1]
    x1, y1, x2, y2 = sample.targets.boxes.unbind(-1)
    return _with(sample, sample.pixels.flip(1), torch.stack([x1, height - y2, x2, height - y1], -1))


def turn(sample: Sample, quarters: int) -> Sample:
    """Turned counter-clockwise by `quarters` quarter turns; height and width change places for odd ones."""
    _, height, width = sample.pixels.shape
    x1, y1, x2, y2 = sample.targets.boxes.unbind(-1)
    quarters %= 4
    if quarters == 0:
        return sample
    if quarters == 1:  # (x, y) -> (y, W - x)
        corners = [y1, width - x2, y2, width - x1]
    elif quarters == 2:  # (x, y) -> (W - x, H - y)
        corners = [width - x2, height - y2, width - x1, height - y1]
    else:  # (x, y) -> (H - y, x)
        corners = [height - y2, x1, height - y1, x2]
    return _with(sample, torch.rot90(sample.pixels, quarters, (1, 2)).contiguous(), torch.stack(corners, -1))


def crop(sample: Sample, window: tuple[int, int, int, int], policy: CutPolicy) -> Sample:
    """The part inside `window` (x1, y1, x2, y2), which must lie in the image; cut boxes become what `policy` says."""
    x1, y1, x2, y2 = window
    _, height, width = sample.pixels.shape
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"window {window} is not inside an image of {width} x {height}")
    targets = sample.targets
    boxes, remains, ignore = cut_boxes(targets.boxes, targets.ignore, window, policy)
    labels = torch.where(ignore, -1, targets.labels)
    cut = Targets(boxes[remains], labels[remains], ignore[remains])
    return replace(sample, pixels=sample.pixels[:, y1:y2, x1:x2].contiguous(), targets=cut)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resized to `size` (H, W) px: bilinear, antialiased when it shrinks."""
    _, height, width = sample.pixels.shape
    if size == (height, width):
        return sample
    pixels = tv.resize_image(sample.pixels, list(size), tv.InterpolationMode.BILINEAR, antialias=True)
    if pixels.dtype == torch.float32:
        pixels = pixels.clamp_(0, 1)  # the filter's weights sum to one only up to rounding
    ratio = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    return _with(sample, pixels, (sample.targets.boxes * ratio).to(torch.float32))


# --- the random steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compose:
    """One step after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample. Raises UserError where a plugin's step fails or returns none."""
        for step in self.steps:
            sample = _taken(step, sample, rng, another)
        return sample


def _taken(step: Transform, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
    """One step; what a plugin's does wrong names it."""
    origin: Any = step if hasattr(step, "__qualname__") else type(step)  # a function, or an object of a class
    if origin.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return step(sample, rng, another)
    fault = f"the transform {origin.__qualname__} of {origin.__module__}"
    try:
        found: object = step(sample, rng, another)
    except (UserError, OSError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{fault} failed on image {sample.image_id} ({text})", where="augment.extra", fix=_MEND
        ) from error
    if not isinstance(found, Sample):
        raise UserError(
            f"{fault} returns {type(found).__name__}, no Sample", where="augment.extra", fix="mend the plugin"
        )
    return found


_MEND = "mend the plugin; --debug shows where"


@dataclass(frozen=True)
class RandomFlip:
    """Flips horizontally and vertically, each with its own probability."""

    horizontal: float = 0.5
    vertical: float = 0.0

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        left_right, top_bottom = rng.random(2)
        if left_right < self.horizontal:
            sample = flip_horizontal(sample)
        if top_bottom < self.vertical:
            sample = flip_vertical(sample)
        return sample


@dataclass(frozen=True)
class RandomTurn:
    """A quarter, half or three-quarter turn, with one probability for any of them: for images from straight above."""

    probability: float = 0.75

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        if rng.random() >= self.probability:
            return sample
        return turn(sample, int(rng.integers(1, 4)))


@dataclass(frozen=True)
class Resize:
    """Always to one size (H, W), aspect ratio and all: rarely what tiny objects want."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        return resize(sample, self.size)


@dataclass(frozen=True)
class RandomScaleCrop:
    """Enlarges by a factor from `scale` (log-uniform), then cuts a window of at most `size` (H, W) px.

    Without `size` the whole image is resized. An image smaller than `size` after the scaling stays smaller: the batch
    pads it, and the padding is known to be padding. With probability `toward_objects` the window is placed so that it
    holds the centre of one object, picked at random: in a huge image with few objects most windows would be empty.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    size: tuple[int, int] | None = None
    toward_objects: float = 0.0
    policy: CutPolicy = field(default_factory=CutPolicy)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        low, high = self.scale
        factor = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if high > low else low
        _, height, width = sample.pixels.shape
        whole = (max(1, round(height * factor)), max(1, round(width * factor)))
        if self.size is None:
            return resize(sample, whole)
        out = (min(self.size[0], whole[0]), min(self.size[1], whole[1]))
        # The window is cut before it is resized: the work grows with what is kept, not with the enlarged image.
        tall = height if out[0] == whole[0] else max(1, min(height, round(out[0] / factor)))
        wide = width if out[1] == whole[1] else max(1, min(width, round(out[1] / factor)))
        y, x = self.place(sample, (tall, wide), rng)
        return resize(crop(sample, (x, y, x + wide, y + tall), self.policy), out)

    def place(self, sample: Sample, window: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Top left corner (y, x) of a window of `window` (H, W) px."""
        free = (sample.pixels.shape[1] - window[0], sample.pixels.shape[2] - window[1])
        objects = sample.targets.objects
        if len(objects) == 0 or rng.random() >= self.toward_objects:
            return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
        x1, y1, x2, y2 = objects[int(rng.integers(len(objects)))].tolist()
        middle = (int((y1 + y2) / 2), int((x1 + x2) / 2))
        # The corner ranges over all places at which pixel `m` is inside: m - side + 1 .. m, within 0 .. room.
        y, x = (
            int(rng.integers(max(0, m - side + 1), min(room, m) + 1))
            for m, side, room in zip(middle, window, free, strict=True)
        )
        return y, x


@dataclass(frozen=True)
class Photometric:
    """Random light and sensor: contrast, brightness, gamma, a colour cast, blur, noise; for any bands and depth.

    At `strength` 1: contrast and gamma within a factor of 1.5, brightness within 0.15 of full scale, the cast of a channel
    within a factor of 1.1 (images of three bands only; grey ones stay grey, in three channels too); one image in five gets a
    Gaussian blur of sigma up to 0.7 px (a 3 px object survives that), one in three Gaussian noise of standard deviation up
    to 0.03 of full scale. Other strengths scale these in proportion.
    """

    strength: float = 1.0
    colour_part: ClassVar[str] = "the colour cast"

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        if self.strength <= 0:
            return sample
        curve = rng.uniform(-1, 1, size=3) * self.strength
        casts = rng.uniform(-1, 1, size=3) * self.strength
        blurred, noisy, sigma, deviation = rng.random(4)
        whole = sample.pixels
        coloured = whole.shape[0] == 3
        grey = whole.shape[0] == 1 or (coloured and torch.equal(whole[0], whole[1]) and torch.equal(whole[1], whole[2]))
        pixels = whole[:1] if grey else whole
        if blurred < 0.2:
            pixels = blur(pixels, 0.2 + 0.5 * self.strength * sigma)
        gains = 1.1**casts if coloured and not grey else np.ones(pixels.shape[0])
        pixels = tone(
            pixels, contrast=1.5 ** curve[0], brightness=0.15 * curve[1], gamma=1.5 ** curve[2], channel_gains=gains
        )
        if noisy < 1 / 3:
            pixels = add_noise(pixels, 0.03 * self.strength * deviation, rng)
        return replace(sample, pixels=pixels.expand_as(whole).contiguous())


def tone(
    pixels: torch.Tensor, *, contrast: float, brightness: float, gamma: float, channel_gains: np.ndarray
) -> torch.Tensor:
    """`v -> clip(((v - 0.5) * contrast + 0.5 + brightness) * gain)^gamma` on `(C, H, W)`, v in [0, 1]; same type out.

    Contrast turns about the middle grey. uint8 goes through a table of 256 entries per channel.
    """

    def mapped(values: np.ndarray, gain: float) -> np.ndarray:
        return np.clip(((values - 0.5) * contrast + 0.5 + brightness) * gain, 0, 1) ** gamma

    if pixels.dtype == torch.uint8:
        levels = np.arange(256) / 255
        tables = [np.rint(mapped(levels, gain) * 255).astype(np.uint8) for gain in channel_gains]
        source = pixels.numpy()
        return torch.from_numpy(np.stack([table[plane] for table, plane in zip(tables, source, strict=True)]))
    planes = [mapped(plane, gain) for gain, plane in zip(channel_gains, pixels.numpy(), strict=True)]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of `(C, H, W)` with 3 taps each way, the border repeated; `sigma` in pixels, up to about 0.8."""
    if min(pixels.shape[1:]) < 2:
        return pixels
    side = float(np.exp(-0.5 / sigma**2))
    outer, inner = side / (1 + 2 * side), 1 / (1 + 2 * side)
    values = pixels.to(torch.float32)
    for axis in (1, 2):
        size = values.shape[axis]
        before = torch.cat([values.narrow(axis, 0, 1), values.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([values.narrow(axis, 1, size - 1), values.narrow(axis, size - 1, 1)], axis)
        values = (before + after).mul_(outer).add_(values, alpha=inner)
    return values.round_().to(torch.uint8) if pixels.dtype == torch.uint8 else values


def add_noise(pixels: torch.Tensor, deviation: float, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian noise, independent per pixel and channel; `deviation` in units of full scale. Same type out, clipped."""
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
    if pixels.dtype == torch.uint8:
        return noise.mul_(deviation * 255).add_(pixels).round_().clamp_(0, 255).to(torch.uint8)
    return noise.mul_(deviation).add_(pixels).clamp_(0, 1)


@dataclass(frozen=True)
class Mosaic:
    """With `probability`, four images in one of `size` (H, W) px, none of them resized: the scale of tiny things stays.

    They meet at a point drawn from the middle 40 %; each quarter shows a random window of its image. Where an image is
    smaller than its quarter, the rest has the mean colour of that image. Cut boxes become what `policy` says.
    """

    size: tuple[int, int]
    probability: float = 0.5
    policy: CutPolicy = field(default_factory=CutPolicy)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        if rng.random() >= self.probability:
            return sample
        height, width = self.size
        split_y, split_x = round(height * rng.uniform(0.3, 0.7)), round(width * rng.uniform(0.3, 0.7))
        quarters = [
            (0, 0, split_y, split_x),
            (0, split_x, split_y, width),
            (split_y, 0, height, split_x),
            (split_y, split_x, height, width),
        ]
        canvas = torch.empty((sample.pixels.shape[0], height, width), dtype=sample.pixels.dtype)
        parts: list[Targets] = []
        cutter = RandomScaleCrop(policy=self.policy)
        for number, (y1, x1, y2, x2) in enumerate(quarters):
            source = sample if number == 0 else same_kind(sample, another(rng))
            piece = replace(cutter, size=(y2 - y1, x2 - x1))(source, rng)
            tall, wide = piece.pixels.shape[1:]
            if (tall, wide) != (y2 - y1, x2 - x1):
                mean = piece.pixels.to(torch.float32).mean((1, 2), keepdim=True)
                canvas[:, y1:y2, x1:x2] = mean.to(canvas.dtype)
            canvas[:, y1 : y1 + tall, x1 : x1 + wide] = piece.pixels
            shift = torch.tensor([x1, y1, x1, y1], dtype=torch.float32)
            parts.append(replace(piece.targets, boxes=piece.targets.boxes + shift))
        return replace(sample, pixels=canvas, targets=join_targets(parts))


TRANSFORMS: dict[str, Callable[..., Transform]] = {"mosaic": Mosaic, "resize": Resize}
"""What a recipe may name in `augment.extra`; a plugin adds its own (`flyspeck.register_transform`)."""


def transform_named(name: str, options: Mapping[str, Any]) -> Transform:
    """The transform `name` with `options`, the keywords of its builder. Raises UserError for a name or an option not known."""

    def find() -> Callable[..., Transform]:
        if name not in TRANSFORMS:
            raise UnknownPart(f"no transform '{name}'", where="augment.extra", name=name, known=TRANSFORMS)
        return TRANSFORMS[name]

    build, where = with_installed(find), f"augment.extra, {name}"
    taken = inspect.signature(build).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    unknown = [key for key in options if key not in taken and not open_ended]
    if unknown:
        raise UserError(f"unknown key '{unknown[0]}'", where=where, fix=nearest(unknown[0], taken))
    missing = [key for key, p in taken.items() if p.default is p.empty and key not in options and p.kind in _NAMED]
    if missing:
        raise UserError(f"'{missing[0]}' is missing", where=where, fix=f"it takes {', '.join(taken)}")
    return build(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


# --- small parts -----------------------------------------------------------------------------------------------------


def join_targets(parts: list[Targets]) -> Targets:
    """Targets of one image from several lists, in their order."""
    return Targets(
        boxes=torch.cat([part.boxes for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        ignore=torch.cat([part.ignore for part in parts]),
    )


def _with(sample: Sample, pixels: torch.Tensor, boxes: torch.Tensor) -> Sample:
    return replace(sample, pixels=pixels, targets=replace(sample.targets, boxes=boxes))


def same_kind(sample: Sample, other: Sample) -> Sample:
    """`other`, if its pixels can be laid beside those of `sample`."""
    if (other.pixels.shape[0], other.pixels.dtype) != (sample.pixels.shape[0], sample.pixels.dtype):
        raise UserError(
            "images of different channels or depth cannot be mixed",
            where=f"images {sample.image_id} and {other.image_id}",
            fix="set data.channels, and keep 8-bit and 16-bit images in separate data sets",
        )
    return other
