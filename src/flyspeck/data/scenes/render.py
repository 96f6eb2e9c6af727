"""From a plan to pixels: paint the ground, look at it through the camera, draw the things, expose."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from flyspeck.data.scenes import objects
from flyspeck.data.scenes.ground import Ground, Terrain
from flyspeck.data.scenes.layout import ScenePlan
from flyspeck.data.scenes.noise import blend, fractal, smoothstep
from flyspeck.data.scenes.objects import Thing
from flyspeck.data.scenes.sea import Sea

_BOAT_METRES = {"motor": 6.0, "open": 4.2, "sail": 8.0, "ship": 16.0}


def render(plan: ScenePlan, rng: np.random.Generator) -> np.ndarray:
    """The scene's image, `(H, W, 3)` uint8."""
    camera = plan.camera
    x1, y1, x2, y2 = camera.footprint()
    margin = 2.0 / camera.scale
    ground = Ground(
        height=int(np.ceil((y2 - y1 + 2 * margin) * camera.scale)),
        width=int(np.ceil((x2 - x1 + 2 * margin) * camera.scale)),
        scale=camera.scale,
        origin=(x1 - margin, y2 + margin),
    )
    canvas = plan.terrain.paint(ground, plan.light, rng)
    for boat in plan.wakes:
        _paint_wake(canvas, ground, boat, plan.terrain, rng)
    flat = _image(canvas)
    image = camera.warp(flat, ground.origin)
    for parts in plan.terrain.buildings():
        objects.paint(image, objects.building(parts, camera))
    if len(plan.terrain.plants().crowns):
        planes = np.moveaxis(np.asarray(image), 2, 0).astype(np.float32)
        plan.terrain.plants().paint_crowns(planes, camera, plan.light)
        image = _image(planes)
    for drawing in plan.drawings:
        objects.paint(image, drawing)
    for smear in plan.smears:
        radius = 1.5 + 0.08 * min(smear[2] - smear[0], smear[3] - smear[1])
        image.paste(image.crop(smear).filter(ImageFilter.GaussianBlur(radius)), smear[:2])
    return plan.sensor.expose(image, rng)


def _image(planes: np.ndarray) -> Image.Image:
    """An RGB image of `(3, H, W)` grey levels."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in np.clip(planes, 0, 255).astype(np.uint8)])


def _paint_wake(canvas: np.ndarray, ground: Ground, boat: Thing, terrain: Terrain, rng: np.random.Generator) -> None:
    """A churned white trail behind the stern and the two arms of the bow wave, in place."""
    length = _BOAT_METRES[boat.pose] * boat.size
    reach = length * float(rng.uniform(2.5, 7.0))
    direction = np.array([np.cos(boat.heading), np.sin(boat.heading)])
    corners = np.array([[boat.x, boat.y] + direction * length, [boat.x, boat.y] - direction * reach])
    rows_columns = ground.rows_columns(corners)
    pad = 0.4 * reach * ground.scale
    top, left = np.maximum((rows_columns.min(0) - pad).astype(int), 0)
    bottom, right = np.minimum((rows_columns.max(0) + pad).astype(int) + 1, (ground.height, ground.width))
    if top >= bottom or left >= right:
        return
    dx, dy = ground.x[:, left:right] - np.float32(boat.x), ground.y[top:bottom] - np.float32(boat.y)
    c, s = (np.float32(v) for v in direction)
    behind = -(dx * c + dy * s) + np.float32(0.45 * length)  # metres behind the bow
    aside = np.abs(dy * c - dx * s)
    trail = smoothstep(0.13 * length + 0.5, 0.0, aside - 0.03 * behind) * (behind > 0.9 * length)
    arm = np.exp(-(((aside - 0.12 * length - 0.22 * behind) / np.float32(0.06 * length + 0.3)) ** 2)) * (behind > 0)
    fade = np.exp(-np.clip(behind, 0, None) / np.float32(0.38 * reach))
    froth = fractal(rng, *behind.shape, coarsest=max(2.0, 1.5 * ground.scale), gain=0.8)
    alpha = np.clip((trail * 0.85 + arm * 0.55) * fade * np.clip(0.75 + 0.4 * froth, 0, 1.2), 0, 0.92)
    if isinstance(terrain, Sea):
        alpha *= terrain.depth_from_shore(ground.x[:, left:right], ground.y[top:bottom]) > 0.5
    blend(canvas[:, top:bottom, left:right], (236, 242, 244), alpha.astype(np.float32))
