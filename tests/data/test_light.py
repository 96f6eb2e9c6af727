"""What light and sensor do to an image: tones, casts, blur and noise, by hand and by how often they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from painted_samples import found, painted
from torch.testing import assert_close

from flyspeck.data.transforms import (
    Photometric,
    add_noise,
    blur,
    tone,
)
from flyspeck.types import Sample


def test_tone_by_hand_in_both_depths():
    values = torch.tensor([[[0, 64, 128, 255]]], dtype=torch.uint8)
    # v = 64/255 = 0.2510; contrast 2: (0.2510 - 0.5) * 2 + 0.5 = 0.0020; + 0.1 = 0.1020; gain 1; gamma 0.5: 0.3193 = 81.4
    # v = 128/255: 0.5039 -> 0.6039 -> 0.7771 = 198.2; black: -0.4 -> 0; white: 1.6 -> 1
    options = {"contrast": 2.0, "brightness": 0.1, "gamma": 0.5, "channel_gains": np.ones(1)}
    assert tone(values, **options).tolist() == [[[0, 81, 198, 255]]]
    floats = tone(values.to(torch.float32) / 255, **options)
    assert_close(floats, torch.tensor([[[0, 0.31935, 0.77713, 1]]]), atol=1e-4, rtol=0)


def test_tone_neutral_is_the_identity():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    assert_close(tone(pixels, contrast=1, brightness=0, gamma=1, channel_gains=np.ones(3)), pixels)


def test_channel_gains():
    pixels = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    out = tone(pixels, contrast=1, brightness=0, gamma=1, channel_gains=np.array([1.0, 1.1, 0.9]))
    assert out[:, 0, 0].tolist() == [100, 110, 90]


def test_blur_by_hand():
    # sigma with exp(-1 / (2 sigma^2)) = 1/2: taps 1/4, 1/2, 1/4.
    sigma = (1 / (2 * np.log(2))) ** 0.5
    spot = torch.zeros(1, 5, 5)
    spot[0, 2, 2] = 1.0
    expected = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
    assert_close(blur(spot, sigma)[0, 1:4, 1:4], expected)
    flat = torch.full((3, 4, 6), 77, dtype=torch.uint8)
    assert_close(blur(flat, 0.7), flat)


def test_a_three_pixel_object_survives_the_strongest_blur():
    sample = painted(16, 16, [(6, 6, 9, 9)])
    assert_close(found(blur(sample.pixels, 0.7)), sample.targets.boxes[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_noise_has_the_deviation_asked_for(dtype):
    middle = (
        torch.full((1, 200, 200), 128, dtype=torch.uint8) if dtype == torch.uint8 else torch.full((1, 200, 200), 0.5)
    )
    noisy = add_noise(middle, 0.05, np.random.default_rng(0)).to(torch.float64)
    deviation = float(noisy.std()) / (255 if dtype == torch.uint8 else 1)
    assert deviation == pytest.approx(0.05, rel=0.02)  # standard error of a deviation over 40,000: 0.35 %


def seen_settings(monkeypatch, count, strength=1.0):
    """What `Photometric` asks of its parts for `count` grey or colour images: a list of calls by part."""
    calls = {"tone": [], "blur": [], "add_noise": []}
    module = "flyspeck.data.transforms"
    monkeypatch.setattr(f"{module}.tone", lambda pixels, **given: calls["tone"].append(given) or pixels)
    monkeypatch.setattr(f"{module}.blur", lambda pixels, sigma: calls["blur"].append(sigma) or pixels)
    monkeypatch.setattr(f"{module}.add_noise", lambda pixels, size, rng: calls["add_noise"].append(size) or pixels)
    sample = painted(2, 2, [], channels=3)
    sample.pixels[0] = 9
    rng = np.random.default_rng(0)
    for _ in range(count):
        Photometric(strength)(sample, rng)
    return calls


def test_how_often_and_how_strongly_light_and_sensor_change(monkeypatch):
    """The numbers of the docstring: an even draw reaches the last hundredth of its range in 2000 tries, nothing beyond."""
    calls = seen_settings(monkeypatch, 2000)
    assert len(calls["blur"]) / 2000 == pytest.approx(0.2, abs=0.045)  # five standard errors
    assert len(calls["add_noise"]) / 2000 == pytest.approx(1 / 3, abs=0.053)
    logs = np.log([[call["contrast"], call["gamma"]] for call in calls["tone"]]) / np.log(1.5)
    casts = np.log([call["channel_gains"] for call in calls["tone"]]) / np.log(1.1)
    brightness = np.array([[call["brightness"]] for call in calls["tone"]]) / 0.15
    for drawn in (*logs.T, *casts.T, *brightness.T):
        assert 0.98 < drawn.max() <= 1 + 1e-9
        assert -1 - 1e-9 <= drawn.min() < -0.98
        assert drawn.mean() == pytest.approx(0, abs=0.065)  # five standard errors of an even draw on [-1, 1]
        assert (np.abs(drawn) < 0.5).mean() == pytest.approx(0.5, abs=0.056)
    assert len({tuple(row) for row in casts.round(6)}) == 2000  # of their own, channel by channel
    assert (casts.std(1) > 0).all()
    sigma, deviation = np.array(calls["blur"]), np.array(calls["add_noise"])
    assert (0.2 <= sigma.min() < 0.21, 0.69 < sigma.max() <= 0.7) == (True, True)
    assert (0 <= deviation.min() < 3e-4, 0.0297 < deviation.max() <= 0.03) == (True, True)


def test_strength_scales_every_change(monkeypatch):
    whole, half = seen_settings(monkeypatch, 300), seen_settings(monkeypatch, 300, strength=0.5)
    for one, other in zip(whole["tone"], half["tone"], strict=True):
        assert other["contrast"] ** 2 == pytest.approx(one["contrast"])
        assert other["gamma"] ** 2 == pytest.approx(one["gamma"])
        assert other["brightness"] * 2 == pytest.approx(one["brightness"])
        assert other["channel_gains"] ** 2 == pytest.approx(one["channel_gains"])
    assert np.array(half["blur"]) * 2 - 0.2 == pytest.approx(np.array(whole["blur"]))
    assert np.array(half["add_noise"]) * 2 == pytest.approx(np.array(whole["add_noise"]))


def test_the_light_of_a_seed_stays_the_light_of_that_seed():
    """A seed is a promise: runs are repeated by it. Drawn first: contrast, brightness, gamma, each from [-1, 1]."""
    grey = torch.full((1, 4, 4), 0.5)
    sample = Sample(grey, painted(4, 4, []).targets, 1)
    checked = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, brightness, gamma = rng.uniform(-1, 1, size=3)
        rng.uniform(-1, 1, size=3)
        _, noisy, *_ = rng.random(4)
        if noisy < 1 / 3:
            continue  # the middle grey is neither moved by contrast nor by blur, but by noise
        expected = (0.5 + 0.15 * brightness) ** (1.5**gamma)
        result = Photometric(1.0)(sample, np.random.default_rng(seed)).pixels
        assert_close(result, torch.full((1, 4, 4), expected, dtype=torch.float32))
        checked += 1
    assert checked > 20


def test_photometric_strength_zero_changes_nothing():
    sample = painted(16, 16, [(6, 6, 9, 9)])
    assert Photometric(0.0)(sample, np.random.default_rng(0)) is sample


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grey_images_stay_grey_in_three_channels(dtype):
    sample = painted(16, 16, [(6, 6, 9, 9)], channels=3, dtype=dtype)
    single = painted(16, 16, [(6, 6, 9, 9)], channels=1, dtype=dtype)
    for seed in range(12):
        three, one = (Photometric(1.0)(s, np.random.default_rng(seed)).pixels for s in (sample, single))
        assert_close(three, one.repeat(3, 1, 1), rtol=0, atol=0)


def test_colour_images_get_a_cast():
    sample = painted(16, 16, [(6, 6, 9, 9)], channels=3)
    sample.pixels[:] = torch.tensor([100, 101, 102], dtype=torch.uint8)[:, None, None]
    results = [Photometric(1.0)(sample, np.random.default_rng(seed)).pixels.to(torch.float32) for seed in range(20)]
    spread = [float(p.mean((1, 2)).max() - p.mean((1, 2)).min()) for p in results]
    assert max(spread) > 8
