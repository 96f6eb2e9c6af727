"""Values that verbs take as text: sizes, and lists with commas between. One meaning and one message each."""

from __future__ import annotations

import re
from math import inf

from flyspeck.errors import UserError


def parse_size(text: str, *, where: str = "--size", least: int = 1) -> tuple[int, int]:
    """`512x640` (or `512 × 640`) to (height, width) in pixels, each at least `least`."""
    match = re.fullmatch(r"(\d+)\s*[x×X]\s*(\d+)", text.strip())
    if not match or min(int(n) for n in match.groups()) < least:
        raise UserError(f"'{text}' is no size", where=where, fix="write HxW in pixels, such as 512x640")
    return int(match[1]), int(match[2])


def parse_names(text: str, *, where: str) -> list[str]:
    """`car, boat` to names without the spaces around them; at least one, none of them empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"'{text}' has an empty name", where=where, fix="write names with one comma between")
    return names


def parse_numbers(
    text: str, *, where: str, least: float | None = None, below: float = inf, example: str = "0.5,1,2"
) -> tuple[float, ...]:
    """`8,16,32` to numbers; at least one, each at least `least` (None: above 0) and smaller than `below`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"'{text}' is no list of numbers", where=where, fix=f"for example {example}") from None
    if not all((n > 0 if least is None else n >= least) and n < below for n in numbers):
        low = "positive" if least is None else f"at least {least:g}"
        high = "" if below == inf else f" and below {below:g}"
        raise UserError(f"'{text}' has a number that is not {low}{high}", where=where, fix=f"for example {example}")
    return numbers


def parse_integers(text: str, *, where: str) -> tuple[int, ...]:
    """`4,8,16` to whole positive numbers."""
    numbers = parse_numbers(text, where=where, example="4,8,16")
    if any(n != int(n) for n in numbers):
        raise UserError(f"'{text}' has a number that is not whole", where=where, fix="for example 4,8,16")
    return tuple(int(n) for n in numbers)


def parse_range(text: str, *, where: str) -> tuple[float, float]:
    """`0,3000` to (low, high), any two numbers of which the first is the smaller."""
    numbers = parse_numbers(text, where=where, least=-inf, example="0,3000")
    if len(numbers) != 2 or not -inf < numbers[0] < numbers[1]:
        raise UserError(f"'{text}' is no range", where=where, fix="write LOW,HIGH with LOW < HIGH, such as 0,3000")
    return numbers
