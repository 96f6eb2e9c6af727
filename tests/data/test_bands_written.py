"""What is cut or shrunk of images of many bands keeps all of them; drawings and augmentation take any number."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from flyspeck.data.image_files import save_pixels, shrink_pixels
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.data.shrink import shrink
from flyspeck.data.tile_files import write_tiles
from flyspeck.data.tiling import tile_annotations
from flyspeck.data.transforms import Compose, Mosaic, Photometric, RandomFlip, RandomScaleCrop, RandomTurn, Transform
from flyspeck.drawing import as_shown
from flyspeck.train.inputs import augmentation
from flyspeck.train.sections import AugmentConfig
from flyspeck.types import Sample, Targets
from many_bands import write_banded_set

pytest.importorskip("tifffile")


@pytest.mark.parametrize("bands", [2, 4, 8])
def test_tiles_and_small_images_keep_every_band(tmp_path: Path, bands: int) -> None:
    whole = read_annotations(write_banded_set(tmp_path / "set", "train", 2, bands=bands))
    tiles = write_tiles(whole, tile_annotations(whole, size=(32, 32), overlap=0), tmp_path / "tiles", name="t.json")
    assert tiles.problems == ()
    x1, y1, x2, y2 = (int(v) for v in tiles.image_extra["corner"][1])
    first = read_image(whole.path(0))
    assert_array_equal(read_image(tiles.path(1)), first[y1:y2, x1:x2])
    small = shrink(whole, tmp_path / "small", name="s.json", factor=2)
    blocks = first.reshape(24, 2, 32, 2, bands).astype(np.float64).mean((1, 3))
    assert np.abs(read_image(small.path(0)) - blocks).max() <= 0.5


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_written_and_shrunk_values_of_any_type(tmp_path: Path, dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (8, 8, 5)).astype(dtype)
    save_pixels(pixels, tmp_path / "a.tif")
    found = read_image(tmp_path / "a.tif")
    assert found.dtype == np.dtype(dtype)
    assert_array_equal(found, pixels)
    assert shrink_pixels(pixels, (4, 4)).shape == (4, 4, 5)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_transform_takes_any_number_of_bands(bands: int, dtype: torch.dtype) -> None:
    whole = torch.randint(0, 256, (bands, 40, 56), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels = whole if dtype == torch.uint8 else whole / 255
    targets = Targets(torch.tensor([[4.0, 4, 9, 8]]), torch.tensor([0]), torch.tensor([False]))
    sample = Sample(pixels, targets, 1)
    steps: list[Transform] = [RandomFlip(1, 1), RandomTurn(1), RandomScaleCrop((0.7, 1.4), (32, 32)), Photometric(1.0)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = Compose((*steps, Mosaic((24, 24), 1.0)))(sample, rng, lambda rng, index=None: sample)
        assert (found.pixels.shape, found.pixels.dtype) == ((bands, 24, 24), dtype)


def test_the_same_light_falls_on_all_of_many_bands() -> None:
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    sample = Sample(torch.rand(1, 32, 32).expand(5, -1, -1), nothing, 1)
    rng = np.random.default_rng(3)
    for _ in range(20):
        means = Photometric(1.0)(sample, rng).pixels.mean((1, 2))
        assert means.max() - means.min() < 0.01  # a cast would move them by up to a tenth


def test_what_needs_colour_stands_aside_and_says_so_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    table = read_annotations(write_banded_set(tmp_path, "train", 2, bands=4))
    config = AugmentConfig(photometric=1.0)
    for bands, lines in ((1, 0), (3, 0), (4, 1)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "flyspeck"):
            augmentation(config, table, bands=bands)
        assert len(caplog.messages) == lines
    assert caplog.messages == ["the colour cast of Photometric needs three bands and stands aside: the images have 4"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_three_bands_of_many_are_drawn(dtype: str) -> None:
    pixels = np.zeros((10, 10, 5), dtype)
    pixels[:5, :, 1] = 100  # the second is green
    pixels[:, :5, 4] = 77
    assert_array_equal(as_shown(pixels)[0, 0], [0, 255, 0])
    assert_array_equal(as_shown(pixels, (4, 0, 1))[0, 0], [255, 0, 255])
    assert as_shown(pixels[:, :, :2]).shape == (10, 10, 3)
    assert as_shown(pixels[:, :, 1:2])[0, 0, 0] > as_shown(pixels[:, :, 1:2])[9, 0, 0]


def test_drawing_a_band_without_numbers() -> None:
    assert (as_shown(np.full((3, 3, 4), np.nan, np.float32)) == 0).all()
