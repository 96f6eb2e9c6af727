"""A heat map of detections over a thumbnail: where things are in an image too large to look at."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flyspeck.drawing import Levels, Read, thumbnail
from flyspeck.types import Detections

_SIGMA = 0.012  # of the longer side: the width of one detection on the map
# Black through red and yellow to white: it gets lighter all the way, so it can be read without colour.
_STOPS = np.array([[30, 0, 60], [150, 20, 90], [235, 80, 40], [250, 180, 40], [255, 255, 200]], np.float64)
_BAR, _INK = 30, (20, 20, 20)


def heat_map(
    read: Read, found: Detections, *, max_side: int = 1600, colours: tuple[int, int, int] | None = None
) -> Image.Image:
    """The image in grey, at most `max_side` long, with the density of `found` over it and a scale below.

    `found.image_size` is the image's (H, W); `read` gives its windows (`flyspeck.infer.source.Source.read`), so that it is
    never held whole. The scale is in detections per megapixel of the image.
    """
    small = thumbnail(read, found.image_size, max_side)
    image = Levels.of(small, colours).show(small).convert("L").convert("RGB")
    ratio = small.shape[1] / found.image_size[1]
    heat = density(found, small.shape[:2], ratio)
    peak = float(heat.max(initial=0))
    share = heat / peak if peak > 0 else heat
    opacity = (np.sqrt(share) * 0.85)[:, :, None]
    mixed = np.asarray(image, np.float64) * 0.6 * (1 - opacity) + heat_colours(share) * opacity
    return _with_scale(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)), peak, len(found))


def density(found: Detections, size: tuple[int, int], ratio: float) -> np.ndarray:
    """Detections per megapixel of the image, on a map of `size` (h, w) with `ratio` map pixels per image pixel.

    A Gaussian around each box's centre; mirrored at the borders, so that the map's integral is their number.
    """
    height, width = size
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 * ratio
    x = centres[:, 0].astype(np.int64).clip(0, width - 1)
    y = centres[:, 1].astype(np.int64).clip(0, height - 1)
    counts = np.bincount(y * width + x, minlength=height * width).reshape(height, width).astype(np.float64)
    sigma = max(1.0, _SIGMA * max(size))
    for axis in (0, 1):
        counts = _blur(counts, sigma, axis)
    return counts * ratio**2 * 1e6


def _blur(values: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    """A Gaussian along `axis` with mirrored borders, by the Fourier transform of the mirrored array."""
    moved = np.moveaxis(values, axis, -1)
    n = moved.shape[-1]
    mirrored = np.concatenate([moved, moved[..., ::-1]], axis=-1)
    frequency = np.fft.rfftfreq(2 * n)
    gain = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    blurred = np.fft.irfft(np.fft.rfft(mirrored) * gain, 2 * n)[..., :n]
    return np.moveaxis(blurred, -1, axis).clip(min=0)


def heat_colours(share: np.ndarray) -> np.ndarray:
    """`(..., 3)` colours 0 to 255 of values 0 to 1."""
    place = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(share, place, _STOPS[:, k]) for k in range(3)], axis=-1)


def _with_scale(image: Image.Image, peak: float, count: int) -> Image.Image:
    page = Image.new("RGB", (max(image.width, 320), image.height + _BAR), "white")
    page.paste(image, (0, 0))
    bar = heat_colours(np.linspace(0, 1, 120))[None].repeat(12, axis=0).astype(np.uint8)
    page.paste(Image.fromarray(bar), (28, image.height + 9))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    draw.text((12, image.height + 6), "0", fill=_INK, font=font)
    draw.text((154, image.height + 6), f"{peak:.3g} per megapixel; {count} in all", fill=_INK, font=font)
    return page
