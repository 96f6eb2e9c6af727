"""Options: bounds, sentences, and one line for every mistake, at any depth."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from flyspeck.errors import UserError
from flyspeck.options import Count, Options, Positive, Share, Thresholds, validated


class Inner(Options):
    """Inside."""

    samples: Count = 4
    """How many."""
    ratios: tuple[Positive, Positive] | None = None
    """Two of them."""


class Red(Options):
    """One of two."""

    name: Literal["red"] = "red"
    """Which."""
    shade: Share = 0.5
    """How dark."""


class Blue(Options):
    """The other."""

    name: Literal["blue"] = "blue"
    """Which."""


class Outer(Options):
    """All kinds of fields."""

    inner: Inner = Inner()
    """A section."""
    parts: list[Inner] = Field(default=[])
    """Several."""
    colour: Annotated[Red | Blue, Field(discriminator="name")] | None = None
    """By name."""
    factor: list[float] | Literal["one", "three"] | None = None
    """Numbers, or a word."""
    on: bool = True
    """Whether."""
    text: str = ""
    """Words."""
    whole: int = Field(default=1, ge=1, le=9)
    """One digit."""
    renamed: ClassVar = {"old": "inner.samples"}
    retired: ClassVar = {"gone": (None, 3)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"iner": {}}, "unknown key 'iner'; did you mean 'inner'?"),
        ({"inner": {"sampels": 2}}, "unknown key 'inner.sampels'; did you mean 'samples'?"),
        ({"parts": [{}, {"ratio": 2}]}, "unknown key 'parts.1.ratio'; did you mean 'ratios'?"),
        ({"colour": {"name": "red", "shde": 1}}, "unknown key 'colour.shde'; did you mean 'shade'?"),
        ({"colour": {"name": "blue", "shade": 1}}, "unknown key 'colour.shade'; known: name"),
        ({"colour": {"name": "green"}}, "colour: Input should have one of these as its name: "),
        ({"old": 3}, "unknown key 'old'; it is called inner.samples now"),
        ({"gone": 4}, "unknown key 'gone'"),
        ({1: 2}, "unknown key '1'"),
        ({None: 2}, "unknown key 'None'"),
        ({"inner": {"samples": 0}}, "inner.samples: Input should be greater than or equal to 1, got 0"),
        ({"inner": {"samples": 10**30}}, "inner.samples: Input should be less than or equal to 1000000"),
        ({"inner": {"samples": True}}, "inner.samples: Input should be a number, got True"),
        ({"inner": {"ratios": [1, 0]}}, "inner.ratios.1: Input should be greater than 0, got 0"),
        ({"inner": {"ratios": [1]}}, "inner.ratios.1: Field required"),
        ({"inner": None}, "inner: Input should be a section: keys with values, got None"),
        ({"factor": 1}, "factor: Input should be a list or 'one' or 'three', got 1"),
        ({"factor": [float("nan")]}, "factor.0: Input should be a finite number, got nan"),
        ({"factor": "two"}, "factor: Input should be a list or 'one' or 'three', got 'two'"),
        ({"text": 12}, "text: Input should be a valid string, got 12; write it in quotes"),
        ({"whole": "x\n" * 99}, "whole: Input should be a valid integer"),
        ({"on": "maybe"}, "on: Input should be a valid boolean"),
        ([], "Input should be a section"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(content: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(Outer, content, where="file")
    text = str(caught.value)
    assert text.startswith(f"file: {expected}")
    assert "\n" not in text
    assert len(text) < 250


def test_what_is_retired_is_accepted_where_it_changed_nothing() -> None:
    assert validated(Outer, {"gone": 3, "whole": 2}).whole == 2


def test_the_place_is_found_from_the_path() -> None:
    with pytest.raises(UserError, match=r"^line 3: inner.samples: ") as caught:
        validated(Outer, {"inner": {"samples": -1}, "whole": 12}, locate=lambda path: f"line {len(path) + 1}")
    assert "got -1" in str(caught.value)
    assert "(and 1 more)" in str(caught.value)


def test_integers_of_any_length_are_shown() -> None:
    with pytest.raises(UserError, match="got a number of thousands of digits"):
        validated(Outer, {"whole": 10**6000})


def test_two_thresholds_are_in_order() -> None:
    class Two(Thresholds):
        foreground: Share = 0.5
        background: Share = 0.4

    with pytest.raises(UserError, match=r"background 0.7 is above foreground 0.5"):
        validated(Two, {"background": 0.7})
    assert Two(background=0.5).background == 0.5


def test_sentences_are_carried() -> None:
    assert Outer.model_fields["whole"].description == "One digit."
    assert Outer.model_json_schema()["properties"]["text"]["description"] == "Words."


def test_a_key_of_a_section_is_named_where_it_stands_outside() -> None:
    with pytest.raises(UserError, match=r"unknown key 'samples'; did you mean 'inner.samples'\?"):
        validated(Outer, {"samples": 3})
