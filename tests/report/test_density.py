from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from flyspeck.report.density import density, heat_colours, heat_map
from flyspeck.types import Detections


def found(centres: np.ndarray, size: tuple[int, int]) -> Detections:
    boxes = np.concatenate([centres - 2, centres + 2], axis=1)
    return Detections(boxes, np.full(len(boxes), 0.5), np.zeros(len(boxes)), size, ("a",))


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_the_map_counts_every_detection(ratio: float) -> None:
    size = (400, 800)
    centres = np.random.default_rng(0).uniform(0, 1, (500, 2)) * (800, 400)
    small = (round(400 * ratio), round(800 * ratio))
    heat = density(found(centres, size), small, ratio)
    # per megapixel, times the megapixels of the image under one pixel of the map
    assert heat.sum() * (1e-6 / ratio**2) == pytest.approx(500)


def test_the_peak_is_where_they_are() -> None:
    centres = np.concatenate([np.full((30, 2), [700.0, 100.0]), np.full((3, 2), [100.0, 300.0])])
    heat = density(found(centres, (400, 800)), (200, 400), 0.5)
    assert np.unravel_index(heat.argmax(), heat.shape) == (50, 350)
    assert heat[150, 50] == pytest.approx(heat.max() / 10, rel=1e-3)
    assert_allclose(density(found(np.zeros((0, 2)), (40, 80)), (40, 80), 1.0), 0)


def test_colours_get_lighter() -> None:
    ramp = heat_colours(np.linspace(0, 1, 50)) @ [0.299, 0.587, 0.114]
    assert (np.diff(ramp) > 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_image(dtype: type) -> None:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (300, 500, 1)).astype(dtype)

    def read(x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None) -> np.ndarray:
        part = pixels[y1:y2, x1:x2]
        return part if out is None else part[:: part.shape[0] // out[0], :: part.shape[1] // out[1]][: out[0], : out[1]]

    image = heat_map(read, found(np.array([[400.0, 50.0]] * 20), (300, 500)), max_side=250)
    assert image.size == (320, 180)
    drawn = np.asarray(image, float)
    assert drawn[25, 200].sum() > drawn[100:140, 20:60].sum(axis=2).mean() + 100
    assert heat_map(read, found(np.zeros((0, 2)), (300, 500)), max_side=250).size == (320, 180)
