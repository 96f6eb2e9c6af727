"""The numbers inside transforms, against plain code that a reader would write from their docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from painted_samples import painted
from torch.testing import assert_close

from flyspeck.data import transforms
from flyspeck.data.copy_paste import CopyPaste
from flyspeck.data.rotate import RandomRotation, rotate
from flyspeck.data.transforms import Compose, Photometric, add_noise, blur, tone, transform_named
from flyspeck.data.zoom import squeeze
from flyspeck.errors import UserError
from flyspeck.types import Sample, Targets


def noisy(channels: int, height: int = 9, width: int = 14, *, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (channels, height, width), dtype=np.uint8))
    return Sample(
        pixels, Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)), 1
    )


def plain_photometric(sample: Sample, strength: float, seed: int) -> torch.Tensor:
    """`Photometric` by its docstring; the order of the draws is part of what a seed means."""
    rng = np.random.default_rng(seed)
    curve, casts = rng.uniform(-1, 1, size=3) * strength, rng.uniform(-1, 1, size=3) * strength
    blurred, with_noise, sigma, deviation = rng.random(4)
    pixels = sample.pixels
    channels = len(pixels)
    grey = channels == 1 or (channels == 3 and bool((pixels == pixels[:1]).all()))
    seen = pixels[:1] if grey else pixels
    seen = blur(seen, 0.2 + 0.5 * strength * sigma) if blurred < 0.2 else seen
    gains = np.array([1.1**cast for cast in casts]) if channels == 3 and not grey else np.ones(len(seen))
    seen = tone(seen, contrast=1.5 ** curve[0], brightness=0.15 * curve[1], gamma=1.5 ** curve[2], channel_gains=gains)
    seen = add_noise(seen, 0.03 * strength * deviation, rng) if with_noise < 1 / 3 else seen
    return seen.repeat(channels, 1, 1) if grey and channels > 1 else seen


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_light_by_its_docstring(channels: int, strength: float) -> None:
    for seed in range(25):  # one in five is blurred, one in three noisy
        sample = noisy(channels, seed=seed)
        got = Photometric(strength)(sample, np.random.default_rng(seed)).pixels
        assert_close(got, plain_photometric(sample, strength, seed), rtol=0, atol=0)


def test_images_that_are_grey_in_three_channels_stay_so() -> None:
    one = noisy(1)
    three = Sample(one.pixels.repeat(3, 1, 1), one.targets, 1)
    half = Sample(
        torch.cat([one.pixels, one.pixels, 255 - one.pixels]), one.targets, 1
    )  # two equal channels are no grey
    for seed in range(8):
        got = Photometric()(three, np.random.default_rng(seed)).pixels
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])
        assert_close(got, plain_photometric(three, 1.0, seed), rtol=0, atol=0)
        assert_close(
            Photometric()(half, np.random.default_rng(seed)).pixels, plain_photometric(half, 1.0, seed), rtol=0, atol=0
        )


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.8])
def test_blur_is_a_gaussian_of_three_taps(sigma: float) -> None:
    weights = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    weights /= weights.sum()
    values = noisy(2).pixels.to(torch.float32) / 255
    padded = np.pad(values.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = np.zeros(values.shape)
    for y in range(3):
        for x in range(3):
            expected += weights[y] * weights[x] * padded[:, y : y + values.shape[1], x : x + values.shape[2]]
    assert_close(blur(values, sigma), torch.from_numpy(expected).to(torch.float32), rtol=0, atol=1e-6)


class Drawn:
    """Numbers that are known, in the place of a generator."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def random(self, count: int | None = None) -> Any:
        return self.values[0] if count is None else np.array(self.values[:count])


@pytest.mark.parametrize(("share", "degrees"), [(0.0, -30), (0.25, -15), (0.5, 0), (0.75, 15), (1.0, 30)])
def test_angles_of_both_signs(share: float, degrees: float) -> None:
    sample = painted(20, 24, [(4, 5, 9, 8), (12, 12, 14, 18)])
    got = RandomRotation(30, probability=0.5)(sample, Drawn(0.49, share))  # type: ignore[arg-type]
    expected = rotate(sample, degrees)
    assert_close(got.pixels, expected.pixels, rtol=0, atol=0)
    assert_close(got.targets.boxes, expected.targets.boxes)
    assert RandomRotation(30, probability=0.5)(sample, Drawn(0.5, share)) is sample  # type: ignore[arg-type]


def test_places_for_a_patch() -> None:
    paste, box = CopyPaste(max_overlap=0.1), np.array([0.0, 0, 8, 8])
    rng = np.random.default_rng(0)
    none = np.zeros((0, 4))
    assert paste._find_place((8, 8), (8, 8), box, none, rng) == (0, 0)
    assert paste._find_place((7, 8), (8, 8), box, none, rng) is None
    assert paste._find_place((8, 8), (8, 8), box, np.array([[0.0, 0, 8, 8]]), rng) is None
    places = {paste._find_place((9, 10), (8, 8), box, none, rng) for _ in range(200)}
    assert places == {(y, x) for y in range(2) for x in range(3)}
    corner = np.array([[7.0, 0, 17, 8]])  # covers 8 of the 64 px of the object, an eighth
    assert paste._find_place((8, 8), (8, 8), box, corner, rng) is None
    assert CopyPaste(max_overlap=0.125)._find_place((8, 8), (8, 8), box, corner, rng) == (0, 0)


def test_a_squeezed_image_s_boxes_follow_each_side() -> None:
    sample = painted(20, 40, [(4, 5, 8, 10)])
    got = squeeze(sample, (30, 50))
    assert got.pixels.shape == (1, 30, 50)
    assert_close(got.targets.boxes, torch.tensor([[5.0, 7.5, 10.0, 15.0]]))
    assert squeeze(sample, (20, 40)) is sample


def test_a_foreign_step_that_fails_is_named() -> None:
    def broken(sample: Sample, rng: np.random.Generator, another: Any) -> Sample:
        raise ValueError("inside")

    sample = painted(8, 8, [(1, 1, 3, 3)])
    with pytest.raises(UserError, match=r"the transform .*broken of .*inside"):
        Compose((broken,))(sample, np.random.default_rng(0))
    own = transforms.RandomFlip(horizontal="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError):  # a fault of ours is not laid at a plugin's door
        Compose((own,))(sample, np.random.default_rng(0))


def test_options_of_a_named_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(a: int, b: tuple[int, ...] = (1,)) -> Any:
        return ("closed", a, b)

    def opened(a: int = 1, **more: Any) -> Any:
        return ("open", a, more)

    monkeypatch.setattr(transforms, "TRANSFORMS", {"closed": closed, "open": opened})
    assert transform_named("closed", {"a": 1, "b": [2, 3]}) == ("closed", 1, (2, 3))
    assert transform_named("open", {"c": 4}) == ("open", 1, {"c": 4})
    with pytest.raises(UserError, match="unknown key 'c'"):
        transform_named("closed", {"a": 1, "c": 4})
    with pytest.raises(UserError, match="'a' is missing"):
        transform_named("closed", {})
