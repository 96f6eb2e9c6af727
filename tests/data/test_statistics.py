"""Mean and deviation against NumPy on the pixels themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.statistics import pixel_statistics
from flyspeck.errors import UserError


def write_set(folder, images):
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    nothing = np.zeros(0)
    return Annotations(
        image_ids=np.arange(len(images)),
        file_names=tuple(f"{number}.png" for number in range(len(images))),
        sizes=np.array([pixels.shape[:2] for pixels in images]).reshape(-1, 2),
        image_index=nothing.astype(np.int64),
        boxes=np.zeros((0, 4)),
        labels=nothing.astype(np.int64),
        area=nothing,
        ignore=nothing.astype(bool),
        crowd=nothing.astype(bool),
        box_ids=nothing,
        classes=("a",),
        category_ids=(1,),
        root=folder,
    )


def random_images(dtype, channels, count=5):
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max + 1
    shapes = [(int(h), int(w)) + ((3,) if channels == 3 else ()) for h, w in rng.integers(1, 40, (count, 2))]
    return [rng.integers(0, top, shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_against_all_pixels_at_once(tmp_path, dtype, channels):
    images = random_images(dtype, channels)
    found = pixel_statistics(write_set(tmp_path, images))
    together = np.concatenate([p.reshape(-1, channels) for p in images]) / np.iinfo(dtype).max
    assert_allclose(found.mean, together.mean(0), rtol=1e-12)
    assert_allclose(found.std, together.std(0), rtol=1e-9)
    assert (found.channels, found.num_images, found.bits) == (channels, 5, np.iinfo(dtype).bits)


def test_by_hand(tmp_path):
    # Values 0 and 255 half and half: mean 0.5, deviation 0.5.
    found = pixel_statistics(write_set(tmp_path, [np.array([[0, 255]], np.uint8)]), rule=PixelRule(channels=3))
    assert_allclose(found.mean, [0.5] * 3)
    assert_allclose(found.std, [0.5] * 3)


def test_a_constant_channel_has_deviation_zero(tmp_path):
    found = pixel_statistics(write_set(tmp_path, [np.full((7, 9), 77, np.uint8)]))
    assert found.std[0] < 1e-7


def test_no_image_decides_for_the_others(tmp_path):
    mixed = write_set(tmp_path, random_images(np.uint8, 1, 1) + random_images(np.uint8, 3, 1))
    with pytest.raises(UserError, match="3 bands where others have 1"):
        pixel_statistics(mixed)
    assert pixel_statistics(mixed, rule=PixelRule(channels=3)).channels == 3


def test_the_seed_picks_the_images(tmp_path):
    annotations = write_set(tmp_path, random_images(np.uint8, 1, 20))
    same = [pixel_statistics(annotations, num_images=5, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != pixel_statistics(annotations, num_images=5, seed=4)
    assert same[0].num_images == 5


def test_broken_images_are_passed_over(tmp_path):
    images = random_images(np.uint8, 1, 3)
    annotations = write_set(tmp_path, images)
    sound = pixel_statistics(annotations.select_images([0, 2]))
    annotations.path(1).write_bytes(b"no image")
    assert pixel_statistics(annotations) == sound
    with pytest.raises(UserError, match=r"1\.png: not an image"):
        pixel_statistics(annotations.select_images([1]))


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="made: no image to take"):
        pixel_statistics(replace(write_set(tmp_path, []), source="made"))
