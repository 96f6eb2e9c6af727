"""Squeezing and SSD's zooms: sizes and boxes by hand, exact on whole images, nothing of the image lost when zooming out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flyspeck.data.enlarge import resample
from flyspeck.data.transforms import Mosaic, flip_horizontal
from flyspeck.data.zoom import RandomZoom, Squeezed, squeeze
from flyspeck.types import Sample, Targets

BOXES = [[30.0, 10.0, 31.0, 12.0], [0.0, 0.0, 8.0, 8.0], [50.0, 20.0, 58.0, 36.0]]  # 1x2, 8x8 and 8x16 px

NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


def sample(height: int = 40, width: int = 60, *, bits: int = 8, channels: int = 3) -> Sample:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, height, width), np.uint8))
    if bits == 16:
        pixels = (pixels.float() * 257) / 65535
    boxes = torch.tensor(BOXES)
    return Sample(pixels, Targets(boxes, torch.tensor([0, 1, -1]), torch.tensor([False, False, True])), image_id=1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_squeezed_image_is_what_evaluation_and_prediction_see(bits: int, channels: int) -> None:
    before = sample(bits=bits, channels=channels)
    after = RandomZoom((30, 30))(before, np.random.default_rng(0))
    levels = before.pixels.numpy().transpose(1, 2, 0)
    if bits == 16:
        levels = np.rint(levels * 65535).astype(np.uint16)
    expected = resample(levels, (30, 30)).transpose(2, 0, 1)
    found = after.pixels.numpy() if bits == 8 else np.rint(after.pixels.numpy() * 65535)
    np.testing.assert_array_equal(found, expected)
    # 60 px wide become 30, 40 px high become 30: x by 0.5, y by 0.75.
    by_hand = torch.tensor([[15.0, 7.5, 15.5, 9.0], [0.0, 0.0, 4.0, 6.0], [25.0, 15.0, 29.0, 27.0]])
    assert_close(after.targets.boxes, by_hand, rtol=0, atol=0)
    assert after.targets.labels.tolist() == [0, 1, -1]


def test_zooming_in_squeezes_a_window_of_the_whole_image() -> None:
    """At 2, a window of 20x30 px becomes 40x40: x by 4/3, y by 2. Cut from the full image: no pixel is read twice over."""
    before = Sample(torch.zeros(1, 40, 60, dtype=torch.uint8), NOTHING, image_id=1)
    before.pixels[0, :, :] = torch.arange(60, dtype=torch.uint8)  # a pixel says its column
    after = RandomZoom((40, 30), (2.0, 2.0))(before, np.random.default_rng(3))
    row = after.pixels[0, 0].tolist()
    assert row == list(range(row[0], row[0] + 30))  # 30 columns as they are in the file
    assert after.pixels.shape == (1, 40, 30)


def test_zooming_in_toward_objects_keeps_one() -> None:
    found = [RandomZoom((30, 30), (3.0, 3.0), 1.0)(sample(), np.random.default_rng(i)).targets for i in range(20)]
    assert all(len(t.boxes) for t in found)  # at a corner, too little of it for an object may be left: an ignore region
    assert all((t.boxes >= 0).all() and (t.boxes <= 30).all() for t in found)


def test_zooming_out_lays_the_whole_image_on_a_canvas_of_its_mean_colour() -> None:
    """At 0.5 in 30x30, the image takes 15x15: x by 0.25, y by 0.375, then the place where it lies."""
    before = sample()
    small = squeeze(before, (15, 15))
    mean = small.pixels.float().mean((1, 2)).round()
    for seed in range(5):
        after = RandomZoom((30, 30), (0.5, 0.5))(before, np.random.default_rng(seed))
        assert after.pixels.shape == (3, 30, 30)
        x, y = (int(v) for v in after.targets.boxes[1, :2].tolist())  # the box that begins at (0, 0)
        assert_close(after.pixels[:, y : y + 15, x : x + 15], small.pixels, rtol=0, atol=0)
        rest = torch.ones(30, 30, dtype=torch.bool)
        rest[y : y + 15, x : x + 15] = False
        assert_close(after.pixels[:, rest].float(), mean[:, None].expand(-1, 675), rtol=0, atol=0)
        by_hand = torch.tensor([[7.5, 3.75, 7.75, 4.5], [0.0, 0.0, 2.0, 3.0], [12.5, 7.5, 14.5, 13.5]])
        assert_close(after.targets.boxes, by_hand + torch.tensor([x, y, x, y]).float(), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.05, 8),
    st.integers(0, 9),
)
def test_any_image_comes_out_at_the_size_asked_for(
    height: int, width: int, tall: int, wide: int, factor: float, seed: int
) -> None:
    box = torch.tensor([[0.0, 0.0, min(3, width), min(2, height)]])
    one = Sample(
        torch.zeros(1, height, width, dtype=torch.uint8),
        Targets(box, torch.tensor([0]), torch.tensor([False])),
        image_id=1,
    )
    found = RandomZoom((tall, wide), (factor, factor))(one, np.random.default_rng(seed))
    assert found.pixels.shape == (1, tall, wide)
    limit = torch.tensor([wide, tall, wide, tall]) + 1e-4
    assert (found.targets.boxes >= 0).all()
    assert (found.targets.boxes <= limit).all()


def test_factors_are_log_uniform_and_drawn_from_the_generator_alone() -> None:
    zoom = RandomZoom((30, 30), (0.5, 2.0))
    sides = []
    for seed in range(200):
        boxes = zoom(sample(), np.random.default_rng(seed)).targets.boxes
        sides.append(len(boxes) == 3 and float(boxes[1, 2] - boxes[1, 0]) < 3.9)
    assert 70 < sum(sides) < 130  # half of them zoom out
    one, other = (zoom(sample(), np.random.default_rng(7)) for _ in range(2))
    assert_close(one.pixels, other.pixels, rtol=0, atol=0)


def test_a_step_behind_the_squeeze_mixes_squeezed_images() -> None:
    asked = []

    def another(rng: np.random.Generator, index: int | None = None) -> Sample:
        asked.append(index)
        white = sample(80, 20)
        white.pixels[:] = 255
        return white

    step = Squeezed(Mosaic((30, 30), 1.0), (20, 20))
    found = step(squeeze(sample(), (20, 20)), np.random.default_rng(0), another)
    assert len(asked) == 3
    assert found.pixels.shape == (3, 20, 20)


def test_flipping_after_the_squeeze_is_exact() -> None:
    once = squeeze(sample(), (30, 30))
    assert_close(flip_horizontal(flip_horizontal(once)).pixels, once.pixels, rtol=0, atol=0)
