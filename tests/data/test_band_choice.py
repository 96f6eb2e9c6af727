"""Which bands and values a training reads of a set: never decided by its first image."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from flyspeck.data.band_choice import Survey, choose_rule
from flyspeck.data.bands import PixelRule
from flyspeck.data.headers import ImageHeader
from flyspeck.data.value_range import measured_range, stated_range
from flyspeck.errors import UserError


def survey(*kinds: tuple[int, str], alpha: bool = False) -> Survey:
    headers = {f"{n}.tif": ImageHeader((4, 4), bands, dtype, alpha) for n, (bands, dtype) in enumerate(kinds)}
    return Survey("set", headers)


def eight(*bands: int) -> Survey:
    return survey(*((b, "uint8") for b in bands))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8, 300])
def test_alike(bands: int) -> None:
    said: list[str] = []
    assert choose_rule(eight(bands, bands), eight(bands), say=said.append) == PixelRule(channels=bands, bits=8)
    assert said == []


@pytest.mark.parametrize("order", sorted(set(permutations((1, 3, 3)))))
def test_grey_and_colour_in_any_order_are_colour(order: tuple[int, ...]) -> None:
    said: list[str] = []
    assert choose_rule(eight(*order), eight(1), say=said.append).channels == 3
    assert "2 of 3 bands" in said[0]
    assert "1 of 1 band (as" in said[0]
    assert "data.channels: 1" in said[0]
    assert choose_rule(eight(*order), channels=1, say=said.append).channels == 1


@pytest.mark.parametrize("order", sorted(set(permutations((3, 4, 4)))))
def test_other_mixtures_are_refused_with_counts_and_an_example_each(order: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        choose_rule(eight(*order), say=print)
    text = str(caught.value)
    assert "2 of 4 bands (as " in text
    assert f"1 of 3 bands (as {order.index(3)}.tif)" in text
    assert "data.channels" in text


def test_data_channels_overrules_and_says_what_it_leaves() -> None:
    said: list[str] = []
    rule = choose_rule(eight(3, 4, 8), channels=3, say=said.append)
    assert (rule.channels, rule.bands) == (3, (1, 2, 3))
    assert "2 of 3 images have more than 3 bands (as 1.tif)" in said[0]
    with pytest.raises(UserError, match=r"1 of 2 images do not have 4 bands \(data\.channels"):
        choose_rule(eight(3, 4), channels=4, say=said.append)
    assert choose_rule(eight(4, 5), bands=(4, 1), say=said.append).bands == (4, 1)
    with pytest.raises(UserError, match="do not have the bands 5,1"):
        choose_rule(eight(4, 5), bands=(5, 1), say=said.append)


def test_the_validation_set_must_have_them_too() -> None:
    with pytest.raises(UserError, match=r"1 of 2 images do not have 4 bands \(the training set asks"):
        choose_rule(eight(4), eight(4, 8), say=print)


def test_alpha_is_said_and_counts_where_it_is_asked_for() -> None:
    said: list[str] = []
    with_alpha = survey((3, "uint8"), (3, "uint8"), alpha=True)
    assert choose_rule(with_alpha, say=said.append).channels == 3
    assert "laid on black; data.channels: 4 reads it" in said[0]
    assert choose_rule(with_alpha, channels=4, say=said.append) == PixelRule(channels=4, bits=8)
    assert len(said) == 1


def test_depths_are_not_mixed() -> None:
    mixed = survey((3, "uint8"), (3, "uint16"), (3, "uint16"))
    with pytest.raises(UserError, match=r"different depths: 2 of uint16 \(as 1\.tif\), 1 of uint8 \(as 0\.tif\)"):
        choose_rule(mixed, say=print)
    rule = choose_rule(mixed, value_range=((0, 100),), say=print)
    assert (rule.value_range, rule.of, rule.bits) == (((0, 100),), None, 16)
    with pytest.raises(UserError, match="2 ranges for 3 bands"):
        choose_rule(mixed, value_range=((0, 1), (0, 2)), say=print)


@pytest.mark.parametrize(
    ("highest", "pair"), [(3, (0, 255)), (255, (0, 255)), (256, (0, 511)), (4095, (0, 4095)), (4096, (0, 8191))]
)
def test_the_fewest_whole_bits(highest: int, pair: tuple[float, float]) -> None:
    images = [np.array([[[0, 1]]], np.uint16), np.array([[[2, highest]]], np.uint16)]
    assert measured_range((image, None) for image in images).ranges == (pair,)


def test_what_a_file_calls_nothing_is_no_value() -> None:
    collar = np.array([[[65535], [900]]], np.uint16)
    assert measured_range([(collar, None)]).ranges is None
    assert measured_range([(collar, 65535.0)]).ranges == ((0, 1023),)
    low = np.array([[[-9999], [-5], [30]]], np.int16)
    assert measured_range([(low, -9999.0)]).ranges == ((-5, 30),)
    assert measured_range([(low[:, :1], -9999.0), (low[:, 1:], -9999.0)]).ranges == ((-5, 30),)
    assert measured_range([(collar[:, :1], 65535.0)]).reason == "no image has a value"
    rounded = np.array([[[np.float32(-3.4028234663852886e38)], [0.5], [2]]], np.float32)
    for nodata in (-3.4028234663852886e38, -3.4028235e38):
        assert measured_range([(rounded, nodata)]).ranges == ((0.5, 2),)
    for absent in (-1.7976931348623157e308, float("inf"), float("nan"), 0.25, 70000.0):
        assert measured_range([(rounded[:, 1:], absent)]).ranges == ((0.5, 2),)
        assert measured_range([(collar[:, 1:], absent)]).ranges == ((0, 1023),)


def test_16_bits_in_full_have_no_range_and_others_one_a_band() -> None:
    assert measured_range([(np.array([[[40000]]], np.uint16), None)]).ranges is None
    floats = [np.array([[[0.5, np.nan, 7]]], np.float32), np.array([[[-1, np.inf, 7]]], np.float32)]
    assert measured_range((image, None) for image in floats).ranges == ((-1, 0.5), (0, 1), (7, 8))
    assert measured_range([(np.array([[[-5, 9]], [[3, 9]]], np.int16), None)]).ranges == ((-5, 3), (9, 10))
    assert measured_range([]).ranges is None


def test_metadata_count_where_all_agree() -> None:
    twelve = ImageHeader((4, 4), 1, "uint16", value_range=(0, 4095))
    found = stated_range([twelve, twelve])
    assert found is not None
    assert found.ranges == ((0, 4095),)
    assert stated_range([twelve, ImageHeader((4, 4), 1, "uint16")]) is None
    rule = choose_rule(Survey("set", {"a.tif": twelve}), say=print)
    assert (rule.value_range, rule.of) == (((0, 4095),), "uint16")
