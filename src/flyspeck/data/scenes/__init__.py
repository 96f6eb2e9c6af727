"""A generated, seeded, endless data set: sea, fields and roads from a drone, with tiny persons, boats and cars.

    scene = generate_scene(7)  # pixels, boxes, labels, ignore

`flyspeck.data.scenes.dataset` has the same as an annotation table and as COCO json with PNG files.

The same seed gives the same scene, byte for byte; no two seeds share one. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck.data.scenes.layout import KINDS, ScenePlan, plan_scene
from flyspeck.data.scenes.objects import CLASSES
from flyspeck.errors import UserError, nearest

__all__ = ["CLASSES", "KINDS", "Scene", "generate_scene", "plan", "scene_seed"]

_SMALLEST_SIDE, _LARGEST_SIDE = 32, 20_000
_DENSEST = 20


@dataclass(frozen=True)
class Scene:
    """One generated image with its ground truth."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels, clipped to the image."""
    labels: np.ndarray
    """(N,) int64 indices into `CLASSES`; -1 for an ignore region."""
    ignore: np.ndarray
    """(N,) bool; True marks a dense crowd or a blurred patch, to be neither learnt nor punished."""
    kind: str
    """sea, field or road."""


def scene_seed(seed: int, index: int) -> tuple[int, int]:
    """The seed of image `index` of the data set with `seed`."""
    return (seed, index)


def _generators(seed: int | tuple[int, ...]) -> tuple[np.random.Generator, np.random.Generator]:
    """One stream for the plan and one for the paint, so that boxes do not depend on what painting draws."""
    entropy = (seed,) if isinstance(seed, int) else tuple(seed)
    if any(part < 0 for part in entropy):
        raise UserError("a seed is a whole number from 0", where=f"seed {seed}")
    first, second = np.random.SeedSequence(entropy).spawn(2)
    return np.random.default_rng(first), np.random.default_rng(second)


def plan(
    seed: int | tuple[int, ...],
    *,
    height: int = 512,
    width: int = 640,
    kind: str | None = None,
    density: float = 1.0,
) -> tuple[ScenePlan, np.random.Generator]:
    """The plan of a scene, and the stream that paints it; `kind` is drawn where it is not given."""
    for name, side in (("height", height), ("width", width)):
        if not _SMALLEST_SIDE <= side <= _LARGEST_SIDE:
            raise UserError(f"{name} {side} is out of range", fix=f"use {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels")
    if kind is not None and kind not in KINDS:
        raise UserError(f"no kind of scene is called '{kind}'", fix=nearest(kind, KINDS))
    if not 0 < density <= _DENSEST:
        raise UserError(f"density {density:g} is out of range", fix=f"use more than 0, and at most {_DENSEST}")
    layout_rng, paint_rng = _generators(seed)
    drawn = KINDS[int(layout_rng.integers(len(KINDS)))]
    return plan_scene(layout_rng, height=height, width=width, kind=kind or drawn, density=density), paint_rng


def generate_scene(
    seed: int | tuple[int, ...],
    *,
    height: int = 512,
    width: int = 640,
    kind: str | None = None,
    density: float = 1.0,
) -> Scene:
    """One image of `height` x `width` pixels with its boxes.

    `seed` is a number, or a tuple such as `scene_seed(seed, index)`; `kind` is sea, field or road, drawn if None. A larger
    image shows more ground at the same scale, so that its objects are as tiny. `density` multiplies how many things are put
    there; where they find no room, there are fewer.
    """
    from flyspeck.data.scenes.render import render

    scene, rng = plan(seed, height=height, width=width, kind=kind, density=density)
    return Scene(render(scene, rng), scene.boxes, scene.labels, scene.ignore, scene.kind)
