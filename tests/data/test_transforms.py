"""Boxes follow painted pixels: a rectangle is painted, the sample transformed, and the rectangle found again.

A painted object is a plain bright rectangle of 1-8 px on black, so that where it went can be read off the pixels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from painted_samples import found, painted
from torch.testing import assert_close

from flyspeck.data.policy import CutPolicy
from flyspeck.data.transforms import (
    Compose,
    Mosaic,
    Photometric,
    RandomFlip,
    RandomScaleCrop,
    RandomTurn,
    Resize,
    crop,
    flip_horizontal,
    flip_vertical,
    resize,
    turn,
)

KEEP_ALL = CutPolicy(keep=0.0, ignore=0.0)


@st.composite
def tiny_scenes(draw):
    """One object of 1-8 px a side somewhere in an image of 8-40 px a side."""
    height, width = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    tall, wide = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    y, x = draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide))
    dtype = draw(st.sampled_from([torch.uint8, torch.float32]))
    return painted(height, width, [(x, y, x + wide, y + tall)], channels=draw(st.sampled_from([1, 3])), dtype=dtype)


# --- exact moves -----------------------------------------------------------------------------------------------------


@given(tiny_scenes())
def test_flips_move_box_and_pixels_alike(sample):
    for flip in (flip_horizontal, flip_vertical):
        moved = flip(sample)
        assert_close(found(moved.pixels), moved.targets.boxes[0], rtol=0, atol=0)
        back = flip(moved)
        assert_close(back.pixels, sample.pixels)
        assert_close(back.targets.boxes, sample.targets.boxes, rtol=0, atol=0)


@given(tiny_scenes(), st.integers(-4, 7))
def test_turns_move_box_and_pixels_alike(sample, quarters):
    moved = turn(sample, quarters)
    assert_close(found(moved.pixels), moved.targets.boxes[0], rtol=0, atol=0)
    back = turn(moved, -quarters)
    assert_close(back.pixels, sample.pixels)
    assert_close(back.targets.boxes, sample.targets.boxes, rtol=0, atol=0)


def test_a_quarter_turn_by_hand():
    # 4 wide, 3 high; the pixel at (3, 0), top right, goes counter-clockwise to the top left.
    moved = turn(painted(3, 4, [(3, 0, 4, 1)]), 1)
    assert moved.pixels.shape == (1, 4, 3)
    assert_close(moved.targets.boxes, torch.tensor([[0.0, 0, 1, 1]]))


@given(tiny_scenes(), st.data())
def test_crop_moves_box_and_pixels_alike(sample, data):
    _, height, width = sample.pixels.shape
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    cut = crop(sample, (x1, y1, x2, y2), KEEP_ALL)
    assert cut.pixels.shape[1:] == (y2 - y1, x2 - x1)
    seen = found(cut.pixels)
    if seen is None:
        assert len(cut.targets.boxes) == 0
    else:
        assert_close(cut.targets.boxes[0], seen, rtol=0, atol=0)


def test_crop_follows_the_policy():
    # The window shows 3/4, 1/4 and 1/20 of three objects, and a quarter of an ignore region.
    boxes = [(0, 0, 8, 8), (0, 10, 8, 18), (0, 20, 20, 40), (0, 50, 8, 58)]
    sample = painted(64, 64, boxes, labels=[2, 1, 0, -1], ignore=[False, False, False, True])
    policy = CutPolicy(keep=0.5, ignore=0.1)
    right = crop(sample, (2, 0, 64, 64), policy)
    assert right.targets.labels.tolist() == [2, 1, 0, -1]
    assert right.targets.ignore.tolist() == [False, False, False, True]
    cut = crop(sample, (6, 0, 64, 64), policy)  # shows 1/4, 1/4, 14/20, 1/4
    assert cut.targets.labels.tolist() == [-1, -1, 0, -1]
    assert cut.targets.ignore.tolist() == [True, True, False, True]
    gone = crop(sample, (19, 0, 64, 64), policy)  # shows 0, 0, 1/20, 0
    assert len(gone.targets.boxes) == 0


def test_a_window_beyond_the_image_is_our_bug():
    with pytest.raises(ValueError, match="not inside"):
        crop(painted(8, 8, []), (0, 0, 9, 8), KEEP_ALL)


@given(tiny_scenes(), st.floats(0.5, 3.0), st.floats(0.5, 3.0))
def test_resize_moves_box_and_pixels_alike(sample, factor_y, factor_x):
    _, height, width = sample.pixels.shape
    size = (round(height * factor_y), round(width * factor_x))
    moved = resize(sample, size)
    assert moved.pixels.shape[1:] == size
    assert moved.pixels.dtype == sample.pixels.dtype
    box = moved.targets.boxes[0]
    # The mass of a bilinear, antialiased image has its centre at the centre of the box, up to what a border cuts off:
    # keep away from it by the filter's reach.
    x1, y1, x2, y2 = sample.targets.boxes[0].tolist()
    assume(x1 >= 3 and y1 >= 3 and x2 <= width - 3 and y2 <= height - 3)
    plane = moved.pixels[0].to(torch.float64)
    middle_x = (plane.sum(0) * (torch.arange(size[1]) + 0.5)).sum() / plane.sum()
    middle_y = (plane.sum(1) * (torch.arange(size[0]) + 0.5)).sum() / plane.sum()
    assert abs(middle_x - (box[0] + box[2]) / 2) < 0.25
    assert abs(middle_y - (box[1] + box[3]) / 2) < 0.25
    # And half its peak is reached within a pixel of the box's sides.
    seen = found(moved.pixels, float(plane.max()) / (255 if moved.pixels.dtype == torch.uint8 else 1) / 2)
    assert (seen - box).abs().max() <= 1


def test_resize_multiplies_by_the_true_ratio():
    # 10 x 7 to 15 x 9: the ratios are 1.5 and 9/7, not the factor somebody asked for.
    moved = resize(painted(7, 10, [(2, 7 - 7, 4, 7)]), (9, 15))
    assert_close(moved.targets.boxes, torch.tensor([[3.0, 0, 6, 9]]))


# --- random steps ----------------------------------------------------------------------------------------------------

EVERY_STEP = [
    RandomFlip(1.0, 0.0),
    RandomFlip(0.5, 0.5),
    RandomTurn(1.0),
    Resize((30, 20)),
    RandomScaleCrop((0.6, 2.0)),
    RandomScaleCrop((0.6, 2.0), (16, 24), policy=KEEP_ALL),
    RandomScaleCrop((1.0, 1.0), (16, 24), 1.0, policy=KEEP_ALL),
    Photometric(1.0),
    Mosaic((32, 40), 1.0, policy=KEEP_ALL),
    Compose((RandomFlip(), RandomScaleCrop((0.7, 1.5), (24, 24)), Photometric(), Mosaic((32, 32), 0.5))),
]


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
@pytest.mark.parametrize("count", [0, 1, 800])
def test_every_step_keeps_the_contract(step, count):
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 30, (count, 2))
    sides = rng.integers(1, 9, (count, 2))
    boxes = [tuple(row) for row in np.concatenate([corners, corners + sides], 1).tolist()]
    for channels in (1, 3):
        for dtype in (torch.uint8, torch.float32):
            ignore = [number % 5 == 4 for number in range(count)]
            labels = [-1 if flag else 3 for flag in ignore]
            sample = painted(40, 44, boxes, channels=channels, dtype=dtype, ignore=ignore, labels=labels)
            before = (sample.pixels.clone(), sample.targets.boxes.clone(), sample.targets.labels.clone())
            for seed in range(4):
                result = step(sample, np.random.default_rng(seed), lambda rng, index=None, s=sample: s)
                pixels, targets = result.pixels, result.targets
                assert pixels.dtype == dtype
                assert pixels.shape[0] == channels
                assert pixels.is_contiguous()
                assert pixels.min() >= 0
                assert pixels.max() <= (255 if dtype == torch.uint8 else 1)
                assert (targets.boxes.dtype, targets.labels.dtype) == (torch.float32, torch.int64)
                assert targets.ignore.dtype == torch.bool
                assert len(targets.boxes) == len(targets.labels) == len(targets.ignore)
                assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()
                assert (targets.boxes >= 0).all()
                limit = torch.tensor([pixels.shape[2], pixels.shape[1]])
                assert (targets.boxes[:, 2:] <= limit + 1e-4).all()
                assert (targets.labels[targets.ignore] == -1).all()
                assert (targets.labels[~targets.ignore] == 3).all()
            assert_close(sample.pixels, before[0])
            assert_close(sample.targets.boxes, before[1])
            assert_close(sample.targets.labels, before[2])


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
def test_the_same_numbers_give_the_same_sample(step):
    sample = painted(40, 44, [(3, 3, 9, 8), (20, 20, 22, 21)])
    one, two = (step(sample, np.random.default_rng(5), lambda rng, index=None: sample) for _ in range(2))
    assert_close(one.pixels, two.pixels, rtol=0, atol=0)
    assert_close(one.targets.boxes, two.targets.boxes, rtol=0, atol=0)


@pytest.mark.parametrize("step", EVERY_STEP[:-2], ids=lambda step: type(step).__name__)
def test_one_pixel_images_survive(step):
    result = step(painted(1, 1, [(0, 0, 1, 1)]), np.random.default_rng(0))
    assert min(result.pixels.shape) >= 1
    assert torch.isfinite(result.targets.boxes).all()


@given(tiny_scenes(), st.integers(0, 2**32))
def test_scale_and_crop_move_box_and_pixels_alike(sample, seed):
    step = RandomScaleCrop((0.5, 2.5), (20, 24), 0.5, policy=KEEP_ALL)
    result = step(sample, np.random.default_rng(seed))
    assert result.pixels.shape[1] <= 20
    assert result.pixels.shape[2] <= 24
    plane = result.pixels[0].to(torch.float32) / (255 if result.pixels.dtype == torch.uint8 else 1)
    if len(result.targets.boxes) == 0:
        # What was cut off entirely leaves no pixel behind.
        assert plane.max() == 0
        return
    seen = found(result.pixels, float(plane.max()) / 2)
    assert (seen - result.targets.boxes[0]).abs().max() <= 1.0 + 1e-3


@given(st.integers(0, 2**32))
def test_toward_objects_shows_the_object(seed):
    sample = painted(200, 300, [(250, 3, 253, 5)])
    result = RandomScaleCrop(size=(32, 32), toward_objects=1.0, policy=KEEP_ALL)(sample, np.random.default_rng(seed))
    assert result.pixels.shape == (1, 32, 32)
    assert len(result.targets.boxes) == 1


def test_a_image_smaller_than_the_crop_stays_as_it_is():
    sample = painted(10, 12, [(1, 1, 4, 4)])
    result = RandomScaleCrop(size=(32, 32))(sample, np.random.default_rng(0))
    assert_close(result.pixels, sample.pixels)
    assert_close(result.targets.boxes, sample.targets.boxes)


def test_probabilities():
    sample = painted(6, 6, [(0, 0, 1, 1)])
    rng = np.random.default_rng(0)
    flipped = [RandomFlip(0.25, 0.7)(sample, rng).targets.boxes[0, :2] == 5 for _ in range(2000)]
    assert torch.stack(flipped).double().mean(0).tolist() == pytest.approx(
        [0.25, 0.7], abs=0.051
    )  # five standard errors
    places = [tuple(RandomTurn(0.75)(sample, rng).targets.boxes[0, :2].tolist()) for _ in range(2000)]
    shares = [places.count(corner) / 2000 for corner in [(0, 0), (0, 5), (5, 5), (5, 0)]]
    assert all(0.20 < share < 0.30 for share in shares)


def test_scales_are_drawn_evenly_in_the_logarithm():
    """Between 1/4 and 4 a third lies below 2^(-2/3) and a third above 2^(2/3); drawn evenly, a tenth and two thirds would."""
    sample, rng = painted(100, 200, []), np.random.default_rng(0)
    factors = np.array([RandomScaleCrop((0.25, 4.0))(sample, rng).pixels.shape[2] / 200 for _ in range(1000)])
    assert factors.min() >= 0.25
    assert factors.max() <= 4
    thirds = [(factors < 2 ** (-2 / 3)).mean(), (factors > 2 ** (2 / 3)).mean()]
    assert thirds == pytest.approx([1 / 3, 1 / 3], abs=0.075)  # five standard errors


def test_windows_are_drawn_from_everywhere():
    """A window of 8 px has five places along a side of 12, each as likely as the others, the first and last included."""
    rng, places = np.random.default_rng(0), np.zeros((5, 5))
    for _ in range(2500):
        places[RandomScaleCrop().place(painted(12, 12, []), (8, 8), rng)] += 1
    assert places.sum(0) / 2500 == pytest.approx(np.full(5, 0.2), abs=0.04)  # five standard errors
    assert places.sum(1) / 2500 == pytest.approx(np.full(5, 0.2), abs=0.04)


def test_a_window_toward_an_object_has_it_in_any_place_of_its_own():
    """The centre pixel of the object, (20, 30), lies evenly in the four rows and columns of the window."""
    rng, seen = np.random.default_rng(0), np.zeros((4, 4))
    for _ in range(2000):
        y, x = RandomScaleCrop(toward_objects=1.0).place(painted(60, 60, [(19, 29, 22, 32)]), (4, 4), rng)
        seen[30 - y, 20 - x] += 1
    assert seen.sum(0) / 2000 == pytest.approx(np.full(4, 0.25), abs=0.05)
    assert seen.sum(1) / 2000 == pytest.approx(np.full(4, 0.25), abs=0.05)


def test_as_many_windows_go_toward_objects_as_asked():
    """In a corner of 1000 x 1000 px: by chance a window of 10 px hardly ever holds it."""
    sample, rng = painted(1000, 1000, [(3, 3, 5, 5)]), np.random.default_rng(0)
    step = RandomScaleCrop(toward_objects=0.3)
    hits = [max(step.place(sample, (10, 10), rng)) <= 4 for _ in range(2000)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.052)  # five standard errors
