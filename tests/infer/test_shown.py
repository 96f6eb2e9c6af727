"""What a model's file says of how images are shown: whole ones stay whole, larger ones bounded, and options win over it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.infer.shown import KEY, Showing, shown_batch, shown_enlargement, shown_tiles
from flyspeck.infer.tiles import planned

TRAINED: dict[str, Any] = {"training_size": [256, 320], "object_side_99": 20.0, "enlarge": {"factor": 1.0}}
scales = st.one_of(
    st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]), st.floats(0.05, 8).map(lambda s: round(s, 4))
)


@given(data=st.data(), scale=scales, height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_an_image_that_was_measured_whole_is_one_tile(
    data: st.DataObject, scale: float, height: int, width: int
) -> None:
    showing = Showing.whole(TRAINED, scale, (height, width))
    assert showing.tile[0] % 32 == showing.tile[1] % 32 == 0
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    overlap = (showing.overlap, showing.overlap)
    frames, seen = planned(size, Enlarge(scale), showing.tile, overlap, most_pixels=None)
    assert frames.tolist() == [[0, 0, size[1], size[0]]]
    assert seen == Enlarge(scale).size(size)
    # A larger image goes in tiles of that size: nobody's memory is used up.
    frames, _ = planned((6 * height, 6 * width), Enlarge(scale), showing.tile, overlap, most_pixels=None)
    if scale * min(height, width) > 40:
        assert len(frames) > 1


@given(scale=scales)
def test_the_overlap_holds_the_objects_at_every_scale(scale: float) -> None:
    showing = Showing.in_tiles(TRAINED, scale)
    assert showing.tile == (256, 320)
    assert showing.overlap >= min(20 * scale, 128)
    assert showing.overlap <= 128


def test_options_win_over_what_the_file_says() -> None:
    told = TRAINED | {KEY: Showing((512, 640), 48, 2.0).to_dict()}
    assert Showing.of(told) == Showing((512, 640), 48, 2.0)
    assert Showing.of(TRAINED) is None
    assert shown_tiles(None, None, told) == ((512, 640), 48)
    assert shown_tiles(None, 10, told) == ((512, 640), 10)
    assert shown_tiles((128, 128), None, told) == ((128, 128), 44)  # objects are twice as large
    assert shown_tiles(None, None, told, whole=True) == (None, 0)
    assert shown_enlargement(told) == Enlarge(2.0)
    assert shown_enlargement(told, scale=0.5) == Enlarge(0.5)
    # Without it, as it was trained.
    assert shown_tiles(None, None, TRAINED) == ((256, 320), 24)
    assert shown_enlargement(TRAINED | {"enlarge": {"factor": 1.5}}) == Enlarge(1.5)


def test_a_pass_has_no_more_pixels_than_one_of_the_training() -> None:
    told = TRAINED | {KEY: Showing((1024, 1280), 48, 2.0).to_dict()}
    assert shown_batch(8, (1024, 1280), told) == 1
    assert shown_batch(48, (1024, 1280), told) == 3
    assert shown_batch(8, (256, 320), told) == 8  # asked for
    assert shown_batch(8, (1024, 1280), TRAINED) == 8
    assert Showing((128, 160), 8, 0.5).batch(8, TRAINED) == 8


def test_a_model_of_one_size_shows_no_more_than_that() -> None:
    showing = Showing((1024, 1280), 300, 2.0).within((256, 320), TRAINED)
    assert showing == Showing((256, 320), 44, 2.0)
    assert Showing((128, 160), 8, 2.0).within((256, 320), TRAINED) == Showing((128, 160), 8, 2.0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"tile": [1], "overlap": 0, "scale": 1},
        {"tile": None, "overlap": 1, "scale": 1},
        {"tile": [64, 64], "overlap": 64, "scale": 1},
        {"tile": [64, 64], "overlap": 4, "scale": float("nan")},
        {"tile": [64, 64], "overlap": 4, "scale": -1},
    ],
)
def test_what_is_no_showing_is_one_line(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="in a way that cannot be"):
        Showing.of({KEY: content})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_scale_is_said_by_its_name(scale: float) -> None:
    with pytest.raises(UserError, match=r"^scale: a scale of .*give a number above 0"):
        shown_enlargement(TRAINED, scale=scale)
