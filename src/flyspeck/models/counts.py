"""Counts an image (proposals, candidates, detections) that grow with the image.

A detector is trained at one size, and what it keeps of an image (1000 proposals, 500 detections) was chosen for that size. On an
image of nine times the area the same count would leave a ninth for every object: a larger tile would lose what a smaller one
finds. Here a count belongs to the training's area; it grows in proportion to the input's area, and never falls below itself.
Papers publish fixed counts: `model.counts: fixed` keeps them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Protocol

import torch


class Counting(Protocol):
    """What is asked of a head (`flyspeck.models.detector.Head`)."""

    def counted_rules(self) -> list[tuple[object, str]]:
        """See `Head.counted_rules`."""
        ...


def grown(count: int, size: tuple[Any, Any], area: int) -> Any:
    """`count` of an input of `area` pixels, for one of `size` (H, W): rounded up, and never less than `count`.

    `size` may hold symbols, while a graph is traced.
    """
    return torch.sym_max(count, (count * size[0] * size[1] + area - 1) // area)


def grown_rule(rule: Any, size: tuple[Any, Any], area: int) -> Any:
    """A rule (a dataclass) whose whole numbers are counts an image, grown."""
    counts = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return replace(
        rule,
        **{name: grown(count, size, area) for name, count in counts.items() if isinstance(count, int)},
    )


@contextlib.contextmanager
def counts_for(head: Counting, size: tuple[Any, Any], area: int | None) -> Iterator[None]:
    """Within it, `head` keeps of an input of `size` (H, W) in proportion to what it keeps of `area` pixels; None: as it is."""
    if area is None:
        yield
        return
    places = head.counted_rules()
    before = [getattr(owner, name) for owner, name in places]
    try:
        for (owner, name), rule in zip(places, before, strict=True):
            setattr(owner, name, grown_rule(rule, size, area))
        yield
    finally:
        for (owner, name), rule in zip(places, before, strict=True):
            setattr(owner, name, rule)
