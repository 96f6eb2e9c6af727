from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageColor

from flyspeck import drawing
from flyspeck.types import Detections


@pytest.mark.parametrize("side", range(1, 9))
def test_an_outline_never_covers_its_object(side: int) -> None:
    box = np.array([[10, 12, 10 + side, 12 + side]], np.float32)
    image = Image.new("RGB", (40, 40))
    drawn = np.asarray(drawing.draw_boxes(image, box, np.array([2])))
    colour = ImageColor.getrgb(drawing.COLOURS[2])
    assert (drawn[12 : 12 + side, 10 : 10 + side] == 0).all()
    assert (drawn[11, 9 : 11 + side] == colour).all()
    assert (drawn[12 + side, 9 : 11 + side] == colour).all()
    assert (drawn[11 : 13 + side, 9] == colour).all()
    assert (drawn[11 : 13 + side, 10 + side] == colour).all()
    assert (drawn.any(axis=2)).sum() == (side + 2) ** 2 - side**2


def test_crops_cover_the_best_places_first_and_end() -> None:
    rng = np.random.default_rng(0)
    crowd = rng.uniform(700, 740, (50, 2))
    alone = np.array([[20.0, 30.0], [995.0, 2.0]])
    corner = np.concatenate([alone, crowd])
    found = Detections(np.concatenate([corner, corner + 4], axis=1), np.full(52, 0.5), np.zeros(52), (800, 1000))
    places = drawing.places_to_enlarge(found, 1.0, 10)
    assert (places >= 0).all()
    assert (places[:, 2] <= 1000).all()
    assert (places[0, :2] < 740).all()
    assert (places[0, 2:] > 700).all()
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    inside = ((centres[:, None] >= places[:, :2]) & (centres[:, None] < places[:, 2:])).all(axis=2)
    assert inside.any(axis=1).all()
    assert len(drawing.places_to_enlarge(found, 10.0, 10)) == 0  # drawn ten times larger, all can be seen
    assert len(drawing.places_to_enlarge(found, 1.0, 1)) == 1


def test_a_thumbnail_is_put_together_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_CHUNK", 37)
    asked = []

    def read(x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None) -> np.ndarray:
        asked.append((x1, y1, x2, y2))
        assert out is not None
        return np.full((*out, 1), 7, np.uint8)

    small = drawing.thumbnail(read, (100, 200), 50)
    assert small.shape == (25, 50, 1)
    assert (small == 7).all()
    assert max(x2 - x1 for x1, _, x2, _ in asked) == 37


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1), (np.uint8, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (120, 90)])
def test_images_of_every_kind(dtype: type, channels: int, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, channels)).astype(dtype)
    found = Detections([[0, 0, 1, 1]], [0.5], [0], size, ("a",))
    assert drawing.annotate(pixels, found).mode == "RGB"
    assert drawing.annotate(pixels, found[:0]).mode == "RGB"


def test_sixteen_bits_are_shown_by_percentiles() -> None:
    pixels = np.linspace(1000, 2000, 10000).reshape(100, 100, 1).astype(np.uint16)
    shown = np.asarray(drawing.Levels.of(pixels).show(pixels))
    assert shown.min() == 0
    assert shown.max() == 255
    assert_array_equal(shown[:, :, 0], shown[:, :, 2])
