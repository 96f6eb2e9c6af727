"""Smooth random textures: value noise summed over octaves, built coarse to fine so that all octaves cost little more than one."""

from __future__ import annotations

import numpy as np
from PIL import Image

Field = np.ndarray  # (H, W) float32


def _enlarge(field: Field, height: int, width: int) -> Field:
    """`field` magnified twice, smoothly, and cut to (height, width)."""
    # bicubic keeps coarse octaves smooth; on large fields the next octave hides the creases of the faster bilinear
    how = Image.Resampling.BICUBIC if field.size < 40_000 else Image.Resampling.BILINEAR
    doubled = Image.fromarray(field).resize((field.shape[1] * 2, field.shape[0] * 2), how)
    return np.asarray(doubled)[:height, :width]


def fractal(
    rng: np.random.Generator, height: int, width: int, *, coarsest: float, finest: float = 1.0, gain: float = 0.55
) -> Field:
    """Fractal value noise `(height, width)` float32, mean 0 and SD 1 over the octaves drawn.

    `coarsest` and `finest` are the cells of the first and last octave in pixels (rounded to powers of two); each octave
    has `gain` times the amplitude of the coarser one before it.
    """
    last = max(0, round(np.log2(finest)))
    first = max(last, round(np.log2(coarsest)))
    shapes = [(-(-height // 2**k) + 1, -(-width // 2**k) + 1) for k in range(first, last - 1, -1)]
    field, amplitude, variance = np.zeros(shapes[0], np.float32), 1.0, 0.0
    for octave, (h, w) in enumerate(shapes):
        if octave:
            field = _enlarge(field, h, w).copy()
        # the sum of 3 uniforms has SD 0.5 and costs a third of a normal: more than smooth enough here
        field += rng.random((h, w), np.float32) * np.float32(amplitude * 3.4641)
        field -= np.float32(amplitude * 1.7321)
        variance += amplitude**2
        amplitude *= gain
    for k in range(last - 1, -1, -1):
        field = _enlarge(field, -(-height // 2**k) + 1, -(-width // 2**k) + 1)
    # smooth enlarging takes about half of an octave's variance away; the constant restores an SD near 1
    return field[:height, :width] * np.float32(1.35 / np.sqrt(variance))


def smoothstep(low: float, high: float, x: Field) -> Field:
    """0 below `low`, 1 above `high`, smooth between (`low` > `high` gives the falling edge)."""
    t = x - np.float32(low)
    t *= np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    curve = t * -2
    curve += 3
    t *= t
    t *= curve
    return t


def blend(canvas: np.ndarray, colour: np.ndarray | tuple[float, ...], alpha: Field) -> None:
    """Paint `colour` (3,) or (3, H, W) over `canvas` (3, H, W) float32 in place, by `alpha` (H, W) in [0, 1].

    Channels come first here: NumPy is several times faster along long rows than along rows of three.
    """
    for plane, tone in zip(canvas, np.asarray(colour, np.float32), strict=True):
        step = tone - plane
        step *= alpha
        plane += step


def between(low: tuple[float, ...], high: tuple[float, ...], share: Field) -> np.ndarray:
    """The mixture `(3, H, W)` float32 of two colours."""
    return np.stack([np.float32(a) + np.float32(b - a) * share for a, b in zip(low, high, strict=True)])
