"""The drone's camera: a pinhole that looks down at a tilted angle, and a sensor that blurs and adds noise.

Ground frame: metres, X right, Y away from the camera, Z up, origin where the optical axis meets the ground.
Image frame: pixels, x right, y down, origin top-left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from flyspeck.data.scenes.noise import blend, fractal


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the ground."""

    height: int
    width: int
    """Image size in pixels."""
    scale: float
    """Pixels per metre at the image's centre, across the line of sight."""
    tilt: float
    """Radians from straight down; 0 is a map's view."""
    focal: float
    """Focal length in pixels."""

    @property
    def distance(self) -> float:
        """Metres from the lens to the ground along the optical axis."""
        return self.focal / self.scale

    def project(self, points: np.ndarray) -> np.ndarray:
        """Ground points `(N, 3)` in metres to image points `(N, 2)` in pixels."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        factor = self.focal / self.depth(y, z)
        down = -y * np.cos(self.tilt) - z * np.sin(self.tilt)
        return np.stack([self.width / 2 + x * factor, self.height / 2 + down * factor], 1)

    def depth(self, y: np.ndarray, z: np.ndarray | float = 0.0) -> np.ndarray:
        """Metres along the optical axis of points at ground ordinate `y` and height `z`."""
        return self.distance + y * np.sin(self.tilt) - z * np.cos(self.tilt)

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Image points `(N, 2)` to the ground points `(N, 2)` (X, Y) under them: the inverse of `project` at Z = 0."""
        u, v = (pixels[:, 0] - self.width / 2) / self.focal, (pixels[:, 1] - self.height / 2) / self.focal
        y = -v * self.distance / (np.cos(self.tilt) + v * np.sin(self.tilt))
        return np.stack([u * (self.distance + y * np.sin(self.tilt)), y], 1)

    def footprint(self) -> tuple[float, float, float, float]:
        """The visible ground's bounding rectangle (x1, y1, x2, y2) in metres."""
        corners = np.array([[0, 0], [self.width, 0], [0, self.height], [self.width, self.height]], np.float64)
        ground = self.unproject(corners)
        (x1, y1), (x2, y2) = ground.min(0), ground.max(0)
        return float(x1), float(y1), float(x2), float(y2)

    def warp(self, ground: Image.Image, origin: tuple[float, float]) -> Image.Image:
        """The image of a ground map drawn at `scale` px/m, Y upwards, whose top-left corner is `origin` (X, Y) in metres."""
        sin, cos = float(np.sin(self.tilt)), float(np.cos(self.tilt))
        cx, cy, f, d, s = self.width / 2, self.height / 2, self.focal, self.distance, self.scale
        # For a pixel with u = x - cx, v = y - cy the ground point is
        #   X = u d cos / (f cos + v sin),  Y = -v d / (f cos + v sin), and the map's pixel ((X - ox) s, (oy - Y) s).
        norm = f * cos - cy * sin
        bottom = np.array([0.0, sin, norm])
        xs = s * (np.array([d * cos, 0.0, -cx * d * cos]) - origin[0] * bottom)
        ys = s * (origin[1] * bottom - np.array([0.0, -d, cy * d]))
        data = tuple((np.concatenate([xs, ys, bottom[:2]]) / norm).tolist())
        return ground.transform((self.width, self.height), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Sensor:
    """What the lens and the chip do to the image."""

    blur: float
    """SD of the optical blur in pixels."""
    motion: float
    """Length of the motion blur in pixels, along x (a flying platform) or, if negative, along y."""
    noise: float
    """SD of the grain, in grey levels of 255."""
    haze: float
    """Share of haze at the far edge, [0, 1)."""
    exposure: float
    contrast: float
    warmth: float
    """Red gained and blue lost, as a share."""

    def expose(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """The developed image, `(H, W, 3)` uint8."""
        if self.blur > 0.15:
            image = image.filter(ImageFilter.GaussianBlur(self.blur))
        if abs(self.motion) > 1:
            size = (abs(self.motion), 0.0) if self.motion > 0 else (0.0, abs(self.motion))
            image = image.filter(ImageFilter.BoxBlur((size[0] / 2, size[1] / 2)))
        pixels = np.moveaxis(np.asarray(image), 2, 0).astype(np.float32)
        height, width = pixels.shape[1:]
        gain = self.contrast * self.exposure
        channel_gain = np.array([1 + self.warmth, 1, 1 - self.warmth], np.float32) * np.float32(gain)
        pixels *= channel_gain[:, None, None]
        pixels += np.float32(128 * (1 - self.contrast) * self.exposure)
        if self.haze > 0.01:
            share = (self.haze * np.linspace(1, 0.15, height, dtype=np.float32))[:, None]
            blend(pixels, (205, 212, 220), np.broadcast_to(share, (height, width)))
        # grain: mostly in luminance, softly correlated like a demosaicked chip; chroma reuses it, displaced
        grain = fractal(rng, height, width, coarsest=2, finest=1, gain=1.3) * np.float32(self.noise)
        for channel, shift in enumerate((0, 37, 91)):
            pixels[channel] += grain
            pixels[channel] += np.roll(grain, (shift, -shift), (0, 1)) * np.float32(0.4)
        np.clip(pixels, 0, 255, out=pixels)
        return np.ascontiguousarray(np.moveaxis(pixels.astype(np.uint8), 0, 2))


def sample_sensor(rng: np.random.Generator) -> Sensor:
    """A sensor between crisp noon and a hazy, noisy evening."""
    return Sensor(
        blur=float(rng.choice([0.0, rng.uniform(0.3, 0.6), rng.uniform(0.6, 1.1)], p=[0.35, 0.45, 0.2])),
        motion=float(rng.choice([0.0, rng.uniform(1.2, 2.6), -rng.uniform(1.2, 2.6)], p=[0.85, 0.1, 0.05])),
        noise=float(rng.uniform(0.8, 4.0)),
        haze=float(rng.choice([0.0, rng.uniform(0.05, 0.35)], p=[0.6, 0.4])),
        exposure=float(rng.uniform(0.82, 1.14)),
        contrast=float(rng.uniform(0.82, 1.1)),
        warmth=float(rng.uniform(-0.04, 0.08)),
    )
