"""One meaning of a value in all readers: what is true, an id, a number, a path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.data.readers.values import as_id, as_number, as_path, as_truth


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", True, "true", "Yes", " YES ", 2, "y"])
def test_what_is_true(value: Any) -> None:
    assert as_truth(value) is True


@pytest.mark.parametrize("value", [0, 0.0, "0", "", None, False, "false", "No", "Unspecified", "none", float("nan")])
def test_what_is_not(value: Any) -> None:
    assert as_truth(value) is False


def test_a_word_that_says_neither() -> None:
    assert as_truth("perhaps") is None


@given(st.integers(-(2**70), 2**70))
def test_an_id_is_one_in_every_spelling(number: int) -> None:
    assert as_id(number) == as_id(str(number)) == number
    if abs(number) < 2**53:
        assert as_id(float(number)) == number


@pytest.mark.parametrize("value", [True, None, [], 1.5, float("inf"), ""])
def test_what_is_no_id(value: Any) -> None:
    assert as_id(value) is None


def test_leading_zeros_are_part_of_a_name() -> None:
    assert as_id("007") == "007"


@pytest.mark.parametrize("value", ["inf", "1e999", "nan", "", "x", True, None, [1], 10**400])
def test_what_is_no_number(value: Any) -> None:
    assert np.isnan(as_number(value))


def test_back_slashes_are_slashes() -> None:
    assert as_path(r".\images\a.jpg") == "images/a.jpg"
