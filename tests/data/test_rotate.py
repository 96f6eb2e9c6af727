"""Rotation: pixels and boxes go together, quarter turns are those of `turn`, and tiny boxes grow by what the module says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.data.policy import CutPolicy
from flyspeck.data.rotate import RandomRotation, rotate, rotated_boxes
from flyspeck.data.transforms import turn
from flyspeck.types import Sample, Targets


def sample_of(boxes, size=(40, 60), ignore=None) -> Sample:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    labels = torch.where(ignore, -1, torch.zeros(len(boxes), dtype=torch.int64))
    pixels = torch.full((3, *size), 100, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes.int().tolist():
        pixels[:, y1:y2, x1:x2] = 250
    return Sample(pixels=pixels, targets=Targets(boxes, labels, ignore), image_id=1)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("rule", ["corners", "ellipse"])
def test_quarters_of_a_square_image_are_those_of_turn(quarters: int, rule) -> None:
    sample = sample_of([[3, 5, 11, 8], [20, 30, 21, 31]], size=(40, 40))
    found, wanted = rotate(sample, 90 * quarters, boxes=rule), turn(sample, quarters)
    assert_close(found.targets.boxes, wanted.targets.boxes, atol=1e-4, rtol=0)
    assert_close(found.pixels, wanted.pixels)


@given(st.floats(-180, 180), st.floats(0, 50), st.floats(0, 30), st.floats(1, 8), st.floats(1, 8))
@settings(max_examples=60, deadline=None)
def test_boxes_against_turned_points(degrees: float, x: float, y: float, w: float, h: float) -> None:
    """A slow twin: the corners, and 720 points of the ellipse, turned one by one."""
    t = math.radians(degrees)

    def turned(px: float, py: float) -> tuple[float, float]:
        dx, dy = px - 30, py - 20
        return 30 + math.cos(t) * dx + math.sin(t) * dy, 20 - math.sin(t) * dx + math.cos(t) * dy

    box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    corners = [turned(px, py) for px in (x, x + w) for py in (y, y + h)]
    circle = np.linspace(0, 2 * np.pi, 721)
    points = [turned(x + w / 2 + w / 2 * math.cos(a), y + h / 2 + h / 2 * math.sin(a)) for a in circle]
    for rule, places, tolerance in (("corners", corners, 1e-9), ("ellipse", points, 1e-3)):
        array = np.array(places)
        expected = torch.tensor([[*array.min(0), *array.max(0)]])
        assert_close(rotated_boxes(box, degrees, (40, 60), rule), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("side", range(1, 9))
def test_what_becomes_of_tiny_squares(side: int) -> None:
    """The head of the module: 1.41 times at 45 degrees, 4/pi on average, an IoU of 0.62 with the true box; an ellipse stays."""
    box = torch.tensor([[20.0, 10.0, 20.0 + side, 10.0 + side]], dtype=torch.float64)
    angles = np.linspace(-45, 45, 2001)
    sides = [float((found := rotated_boxes(box, a, (40, 60), "corners"))[0, 2] - found[0, 0]) for a in angles]
    assert max(sides) == pytest.approx(side * 2**0.5)
    assert np.mean(sides) == pytest.approx(side * 4 / math.pi, rel=1e-3)
    assert (side / np.mean(sides)) ** 2 == pytest.approx(0.617, abs=1e-3)
    for angle in (-45.0, 10.0, 30.0):
        kept = rotated_boxes(box, angle, (40, 60), "ellipse")
        assert float(kept[0, 2] - kept[0, 0]) == pytest.approx(side)
        assert float(kept[0, 3] - kept[0, 1]) == pytest.approx(side)


@pytest.mark.parametrize("degrees", [-45, -20, 7, 33, 45])
def test_the_bright_pixels_are_in_the_box(degrees: float) -> None:
    sample = rotate(sample_of([[26, 16, 34, 22]]), degrees)
    ys, xs = torch.nonzero(sample.pixels[0] > 200, as_tuple=True)
    x1, y1, x2, y2 = sample.targets.boxes[0].tolist()
    assert len(xs) > 30
    assert xs.min() >= x1 - 1 and xs.max() + 1 <= x2 + 1  # noqa: PT018 (one statement about x, one about y)
    assert ys.min() >= y1 - 1 and ys.max() + 1 <= y2 + 1  # noqa: PT018


def test_the_border_decides_by_the_house_rule_and_open_corners_are_grey() -> None:
    """45 degrees about (30, 20), by hand. An 8 px square becomes one of 11.31; the middles go to (11.6, 38.4), (11.6 + 5.7, 44.0)
    and (10.2 + ..., 48.3): of their heights 64 %, 14 % and nothing is above the lower border at 40.
    """
    sample = sample_of([[0, 16, 8, 24], [0, 24, 8, 32], [0, 30, 4, 34]])
    found = rotate(sample, 45).targets
    assert found.labels.tolist() == [0, -1]
    assert found.ignore.tolist() == [False, True]
    half, middle = 4 * 2**0.5, 20 + 26 * 2**0.5 / 2
    assert_close(found.boxes[0, [1, 3]], torch.tensor([middle - half, 40.0]))
    assert rotate(sample, 45, policy=CutPolicy(keep=0, ignore=0)).targets.labels.tolist() == [0, 0]
    pixels = rotate(sample, 45).pixels
    assert pixels.shape == sample.pixels.shape
    assert abs(float(pixels[0, 0, 0]) - float(sample.pixels.float().mean())) <= 1


def test_ignore_regions_cover_what_they_covered() -> None:
    sample = sample_of([[20, 10, 40, 30], [20, 10, 40, 30]], ignore=[False, True])
    plain, region = rotate(sample, 30, boxes="ellipse").targets.boxes
    assert box_algebra.area(region) > 1.3 * box_algebra.area(plain)


def test_draws_are_even_and_as_often_as_asked() -> None:
    step, rng = RandomRotation(45.0, probability=0.3), np.random.default_rng(0)
    sample = sample_of([[29, 19, 31, 21]], size=(40, 60))
    changed = [not torch.equal(step(sample, rng).pixels, sample.pixels) for _ in range(400)]
    assert 0.22 < np.mean(changed) < 0.38
    assert (
        step(sample, np.random.default_rng(3)).targets.boxes.tolist()
        == step(sample, np.random.default_rng(3)).targets.boxes.tolist()
    )


def test_an_image_without_objects() -> None:
    assert rotate(sample_of([]), 45).targets.boxes.shape == (0, 4)
