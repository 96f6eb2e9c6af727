"""Sizes, lists and ranges as text: one meaning, and one line that says what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.cli.values import parse_integers, parse_names, parse_numbers, parse_range, parse_size
from flyspeck.errors import UserError


@given(height=st.integers(1, 10**6), width=st.integers(1, 10**6), cross=st.sampled_from(["x", "X", "×", " x "]))
def test_a_size_is_height_and_width(height: int, width: int, cross: str) -> None:
    assert parse_size(f"{height}{cross}{width}") == (height, width)


@pytest.mark.parametrize("text", ["", "640", "640x", "x640", "64x64x64", "-1x5", "0x5", "5x0", "1.5x2", "axb", "64,64"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(UserError, match=r"is no size.*HxW") as caught:
        parse_size(text, where="--tile")
    assert caught.value.where == "--tile"


def test_the_least_side() -> None:
    assert parse_size("0x7", least=0) == (0, 7)
    with pytest.raises(UserError):
        parse_size("7x1", least=2)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5), st.sampled_from([",", " ,", ", "]))
def test_numbers_come_back(numbers: list[float], comma: str) -> None:
    assert parse_numbers(comma.join(map(repr, numbers)), where="x") == tuple(numbers)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no list of numbers"),
        ("1,", {}, "no list of numbers"),
        ("1;2", {}, "no list of numbers"),
        ("1,two", {}, "no list of numbers"),
        ("1,0", {}, "not positive"),
        ("1,-2", {}, "not positive"),
        ("nan", {}, "not positive"),
        ("inf", {}, "not positive and below inf|not positive"),
        ("1,-0.1", {"least": 0}, "not at least 0"),
        ("1,100", {"least": 0, "below": 100}, "not at least 0 and below 100"),
        ("nan", {"least": 0}, "not at least 0"),
    ],
)
def test_what_are_no_numbers_is_said(text: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_numbers(text, where="--scales", **options)


def test_zero_where_it_is_allowed() -> None:
    assert parse_numbers("0,0.5", where="x", least=0) == (0, 0.5)


def test_integers() -> None:
    assert parse_integers("4, 8,16", where="x") == (4, 8, 16)
    assert parse_integers("4.0", where="x") == (4,)
    for text in ("4.5", "0", "-1", "a", ""):
        with pytest.raises(UserError):
            parse_integers(text, where="x")


def test_names() -> None:
    assert parse_names("car, small boat ,x", where="--classes") == ["car", "small boat", "x"]
    for text in ("", "car,", ",car", "car,,boat", " , "):
        with pytest.raises(UserError, match=r"--classes: .* has an empty name"):
            parse_names(text, where="--classes")


def test_ranges() -> None:
    assert parse_range("-5, 3000", where="x") == (-5, 3000)
    for text in ("3,3", "4,3", "1", "1,2,3", "a,b", "", "nan,1", "-inf,1", "0,inf"):
        with pytest.raises(UserError):
            parse_range(text, where="x")
