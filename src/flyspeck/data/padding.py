"""How far images are padded before a network sees them; training, evaluation and prediction share the rule."""

from __future__ import annotations


def padded_side(side: int, *, divisor: int, smallest: int = 1) -> int:
    """The least multiple of `divisor` that is below neither `side` nor `smallest` (`Detector.divisor`, `.smallest_side`)."""
    return -(-max(side, smallest) // divisor) * divisor
