"""A model that squeezes its images: predictions in the pixels of the image, whole or in tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.infer.job import settings_line
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.tiles import default_tiles
from flyspeck.types import Detections

DESCRIBED = {"enlarge": Enlarge(squeeze=(120, 90)).described(), "training_size": [120, 90], "object_side_99": 20.0}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(16, 128), st.integers(16, 128), st.integers(0, 999))
def test_boxes_come_back_to_the_pixel_they_were_drawn_on(
    height: int, width: int, tall: int, wide: int, seed: int
) -> None:
    """Whole images of any size: what the model says of the squeezed image is exact in the image's frame, to 1e-3 px."""
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (8, 2, 2)), axis=1) * [width, height]
    truth = corners.reshape(8, 4)

    def model(windows: list[np.ndarray]) -> list[Detections]:
        assert windows[0].shape[:2] == (tall, wide)
        seen = (truth * np.array([wide / width, tall / height] * 2)).astype(np.float32)
        return [Detections(seen, np.full(8, 0.9), np.zeros(8, np.int64), (tall, wide))]

    predictor = Predictor(model, enlarge=Enlarge(squeeze=(tall, wide)))
    (found,) = predictor.predict(np.zeros((height, width, 1), np.uint8))
    assert found.image_size == (height, width)
    assert np.abs(found.boxes - truth).max() < 1e-3


def test_each_tile_is_squeezed_and_the_seams_hold() -> None:
    """Tiles of 120x180 px, each seen at 60x75: objects of 6 to 8 px are found once each, where they are."""
    rng = np.random.default_rng(1)
    places = np.array([(x, y) for y in range(4, 380, 24) for x in range(4, 560, 24)], np.float64)
    truth = np.concatenate([places, places + rng.uniform(6, 8, (len(places), 2))], 1)
    # A pixel says where it lies, so that the mean of a window is the centre of its tile.
    pixels = np.stack(np.meshgrid(np.arange(600) + 0.5, np.arange(400) + 0.5), -1) * 64

    def model(windows: list[np.ndarray]) -> list[Detections]:
        found = []
        for window in windows:
            assert window.shape[:2] == (60, 75)
            centres = (frames[:, :2] + frames[:, 2:]) / 2
            frame = frames[np.abs(centres - window.mean((0, 1)) / 64).sum(1).argmin()]
            inside = np.clip(truth, np.tile(frame[:2], 2), np.tile(frame[2:], 2))
            inside = inside[((inside[:, 2:] - inside[:, :2]) > 1).all(1)]
            seen = (inside - np.tile(frame[:2], 2)) * np.array([75 / 180, 60 / 120] * 2)
            found.append(Detections(seen, np.full(len(seen), 0.9), np.zeros(len(seen), np.int64), (60, 75)))
        return found

    predictor = Predictor(model, tile=(120, 180), overlap=20, enlarge=Enlarge(squeeze=(60, 75)))
    frames, seen = predictor.tiles_of((400, 600))
    assert seen == (60, 75)
    assert {(y2 - y1, x2 - x1) for x1, y1, x2, y2 in frames.tolist()} == {(120, 180)}
    (found,) = predictor.predict(pixels.astype(np.uint16))
    assert len(found) == len(truth)
    nearest = np.abs(found.boxes[:, None] - truth).max(2)
    assert sorted(nearest.argmin(1)) == list(range(len(truth)))
    assert nearest.min(1).max() < 1e-3
    smaller, seen = predictor.tiles_of((50, 600))  # an image lower than a tile: what there is, squeezed as well
    assert seen == (60, 75)
    assert {(y2 - y1, x2 - x1) for x1, y1, x2, y2 in smaller.tolist()} == {(50, 180)}


def test_whole_images_unless_a_tile_is_asked_for() -> None:
    assert default_tiles(None, None, DESCRIBED) == (None, 0)
    assert default_tiles((400, 400), None, DESCRIBED) == ((400, 400), 24)
    with pytest.raises(UserError, match="an overlap without tiles"):
        default_tiles(None, 32, DESCRIBED)
    predictor = Predictor(lambda windows: [], enlarge=Enlarge(squeeze=(120, 90)))
    line = settings_line("3 images", predictor, DESCRIBED, "0.3")
    assert "3 images, whole images, squeezed to 120x90, score" in line
    assert "at most 20 px long in the files" in line
