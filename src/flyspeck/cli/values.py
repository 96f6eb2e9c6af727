"""Values that several verbs take as text: sizes and lists of numbers."""

from __future__ import annotations

import re

from flyspeck.errors import UserError


def parse_size(text: str, *, where: str = "--size", least: int = 1) -> tuple[int, int]:
    """`512x640` to (height, width) in pixels, each at least `least`."""
    match = re.fullmatch(r"(\d+)[x×X](\d+)", text.strip())
    if not match or min(int(n) for n in match.groups()) < least:
        raise UserError(f"'{text}' is no size", where=where, fix="write HxW in pixels, such as 512x640")
    return int(match[1]), int(match[2])


def parse_numbers(text: str, *, where: str) -> tuple[float, ...]:
    """`8,16,32` to numbers; at least one, all positive."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"'{text}' is no list of numbers", where=where, fix="write numbers with commas between"
        ) from None
    if not all(0 < n < float("inf") for n in numbers):
        raise UserError(f"'{text}' has a number that is not positive", where=where)
    return numbers


def parse_integers(text: str, *, where: str) -> tuple[int, ...]:
    """`4,8,16` to whole positive numbers."""
    numbers = parse_numbers(text, where=where)
    if any(n != int(n) for n in numbers):
        raise UserError(f"'{text}' has a number that is not whole", where=where)
    return tuple(int(n) for n in numbers)
