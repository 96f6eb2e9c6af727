"""Sea: swell, wind waves, sun glitter, white caps, and in some scenes a beach with surf."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyspeck.data.scenes.ground import NO_TREES, Ground, Light, Solid, Terrain, Trees
from flyspeck.data.scenes.noise import Field, between, blend, smoothstep

# deep water and its lit, shallow counterpart: open ocean, tropical, grey North Sea, green coast, dusk
_WATERS = (
    ((22, 58, 92), (58, 118, 146)),
    ((18, 92, 124), (88, 178, 182)),
    ((66, 84, 92), (118, 134, 138)),
    ((34, 82, 78), (96, 142, 118)),
    ((38, 52, 72), (92, 104, 118)),
)
_SANDS = ((204, 182, 142), (186, 160, 118), (216, 200, 170), (150, 134, 112))


@dataclass(frozen=True)
class Sea(Terrain):
    """Water with an optional shore; every length in metres."""

    deep: tuple[float, float, float]
    lit: tuple[float, float, float]
    sand: tuple[float, float, float]
    wind: float
    """Direction the waves run in, radians."""
    wavelength: float
    roughness: float
    """0 calm to 1 white caps everywhere."""
    glitter: float
    """Strength of the sun's glitter, 0 to 1."""
    glitter_at: tuple[float, float, float]
    """Centre (X, Y) and radius of the glitter patch."""
    shore_normal: float
    """Direction from land to sea, radians."""
    shore_offset: float
    """Signed distance of the shoreline from the origin along the normal; -inf means open sea."""
    wobble: tuple[tuple[float, float, float], ...]
    """The shoreline's bays: (amplitude, wavelength, phase)."""

    @property
    def has_shore(self) -> bool:
        """Whether any land is near."""
        return bool(np.isfinite(self.shore_offset))

    def depth_from_shore(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance in metres from the shoreline, positive on the water; broadcasts."""
        if not self.has_shore:
            return np.full(np.broadcast(x, y).shape, 1e6, np.float32)
        c, s = np.cos(self.shore_normal), np.sin(self.shore_normal)
        along = np.asarray(y * c - x * s, np.float32)
        out = np.asarray(x * c + y * s, np.float32) - np.float32(self.shore_offset)
        for amplitude, length, phase in self.wobble:
            out += np.float32(amplitude) * np.sin(along * np.float32(2 * np.pi / length) + np.float32(phase))
        return out

    def plants(self) -> Trees:
        """Nothing grows at sea."""
        return NO_TREES

    def buildings(self) -> list[list[Solid]]:
        """No house stands at sea."""
        return []

    def waves(self, ground: Ground, rng: np.random.Generator) -> tuple[Field, Field]:
        """Height of the water, about N(0, 1), and the small ripples alone; directional trains bent by noise."""
        bend = ground.noise(rng, self.wavelength * 6, self.wavelength * 0.7)
        height = np.zeros((ground.height, ground.width), np.float32)
        weight = 0.0
        for k, share in enumerate((1.0, 0.8, 0.65, 0.5, 0.4)):
            length = self.wavelength * 0.62**k * float(rng.uniform(0.85, 1.15))
            if length * ground.scale < 2.5:
                break  # shorter than the raster can show: it would alias into moiré
            along, _ = ground.rotated(self.wind + float(rng.normal(0, 0.3)))
            phase = along * np.float32(2 * np.pi / length) + bend * np.float32(1.3 + 0.5 * k)
            height += np.float32(share) * (1 - 2 * np.abs(np.sin(phase * 0.5)))  # narrow crests, wide troughs
            weight += share**2
        ripples = ground.noise(rng, max(self.wavelength * 0.35, 3.5 / ground.scale), gain=0.7)
        height *= np.float32(1.6 / np.sqrt(max(weight, 1.0)))
        return height, ripples

    def paint(self, ground: Ground, light: Light, rng: np.random.Generator) -> np.ndarray:
        """Water lit by its slopes, then glitter, white caps, surf and sand."""
        height, ripples = self.waves(ground, rng)
        patches = ground.noise(rng, 60.0 + 6 * self.wavelength, 8.0)
        tone = 0.36 + 0.13 * patches + self.roughness * 0.2 * height + (0.05 + 0.11 * self.roughness) * ripples
        distance = self.depth_from_shore(ground.x, ground.y)
        if self.has_shore:
            tone = tone + 0.5 * smoothstep(26.0, 0.0, distance)
        canvas = between(self.deep, self.lit, np.clip(tone, 0, 1.35))
        if self.glitter > 0.02:
            x, y, radius = self.glitter_at
            patch = np.exp(-((ground.x - x) ** 2 + (ground.y - y) ** 2) / np.float32(2 * radius**2))
            sparkle = smoothstep(1.1, 2.4, ripples * 1.15 + height * 0.5 + patch * np.float32(self.glitter))
            blend(canvas, (252, 248, 232), sparkle * np.clip(patch * 1.3 * self.glitter, 0, 0.95))
        if self.roughness > 0.35:
            gusts = ground.noise(rng, 9 * self.wavelength, 2 * self.wavelength)
            caps = smoothstep(3.6, 4.4, height * 1.2 + ripples * 1.5 + gusts * 0.5 + (self.roughness - 0.5) * 0.8)
            blend(canvas, (232, 238, 240), caps * 0.8)
        if self.has_shore:
            self._paint_shore(canvas, ground, distance, ripples, rng)
        return canvas

    def _paint_shore(
        self, canvas: np.ndarray, ground: Ground, distance: Field, ripples: Field, rng: np.random.Generator
    ) -> None:
        """Surf in two or three broken lines, wet sand, dry sand with footprints."""
        edge = distance + ground.noise(rng, 9.0, 0.4) * np.float32(0.55)
        foam = smoothstep(0.1, 0.9, ripples * 0.55 + ground.noise(rng, 2.5) * 0.6 + 0.35)
        for line, width, strength in ((0.4, 0.55, 0.95), (4.5, 0.9, 0.6), (11.0, 1.1, 0.38)):
            band = np.exp(-(((edge - np.float32(line)) / np.float32(width)) ** 2))
            blend(canvas, (240, 243, 242), band * foam * np.float32(strength))
        light = 1 + np.float32(0.045) * ground.noise(rng, 7.0, gain=0.75)
        light *= 1 - np.float32(0.36) * smoothstep(-5.5, -0.5, edge)  # wet sand is darker
        land = np.asarray(self.sand, np.float32)[:, None, None] * light
        blend(canvas, land, smoothstep(0.25, -0.35, edge))


def sample_sea(rng: np.random.Generator, area: tuple[float, float, float, float], *, shore: bool) -> Sea:
    """A sea over the ground rectangle `area` (x1, y1, x2, y2); with `shore`, part of it is beach."""
    x1, y1, x2, y2 = area
    span = max(x2 - x1, y2 - y1)
    deep, lit = _WATERS[int(rng.integers(len(_WATERS)))]
    jitter = rng.uniform(0.85, 1.15)
    glitter = float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.45, 0.55]))
    normal = float(rng.uniform(0, 2 * np.pi))
    wobble = tuple(
        (float(rng.uniform(0.01, 0.04) * span / k), float(rng.uniform(0.5, 1.2) * span / k), float(rng.uniform(0, 6.3)))
        for k in (1, 2, 4)
    )
    return Sea(
        deep=tuple(float(c * jitter) for c in deep),  # type: ignore[arg-type]
        lit=tuple(float(c * jitter) for c in lit),  # type: ignore[arg-type]
        sand=_SANDS[int(rng.integers(len(_SANDS)))],
        wind=float(rng.uniform(0, 2 * np.pi)),
        wavelength=float(np.exp(rng.uniform(np.log(1.6), np.log(7.0)))),
        roughness=float(rng.beta(1.6, 1.9)),
        glitter=glitter,
        glitter_at=(float(rng.uniform(x1, x2)), float(rng.uniform(y1, y2)), float(rng.uniform(0.12, 0.3) * span)),
        shore_normal=normal,
        shore_offset=float(rng.uniform(-0.18, 0.12) * min(x2 - x1, y2 - y1)) if shore else -np.inf,
        wobble=wobble,
    )
