"""Counts an image (proposals, candidates, detections) that grow with the image.

A detector is trained at one size, and what it keeps of an image (1000 proposals, 500 detections) was chosen for that size. On an
image of nine times the area the same count would leave a ninth for every object: a larger tile would lose what a smaller one
finds. Here a count belongs to the training's area; it grows in proportion to the input's area, and never falls below itself.
Papers publish fixed counts: `model.counts: fixed` keeps them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
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
    counts = {one.name: getattr(rule, one.name) for one in fields(rule)}
    return replace(
        rule,
        **{name: grown(count, size, area) for name, count in counts.items() if isinstance(count, int)},
    )


@dataclass
class _Use:
    """A head whose rules are others than its own, while somebody is within `counts_for`."""

    head: Counting
    places: list[tuple[object, str]]
    own: list[Any]
    grown: list[Any]
    users: list[int] = field(default_factory=list)
    """Threads that are within."""


_changed = threading.Condition()
_in_use: dict[int, _Use] = {}
"""By `id` of the head, which the entry keeps alive."""


@contextlib.contextmanager
def counts_for(head: Counting, size: tuple[Any, Any], area: int | None) -> Iterator[None]:
    """Within it, `head` keeps of an input of `size` (H, W) in proportion to what it keeps of `area` pixels; None: as it is.

    A head is shared by the threads of a prediction, and its rules are its own attributes. Threads that ask for the same rules are
    within at the same time; one that asks for others waits until they have left.
    """
    if area is None:
        yield
        return
    use = _enter(head, size, area)
    try:
        yield
    finally:
        _leave(use)


def _enter(head: Counting, size: tuple[Any, Any], area: int) -> _Use:
    with _changed:
        while (use := _in_use.get(id(head))) is not None:
            if [grown_rule(rule, size, area) for rule in use.own] == use.grown:
                break
            if threading.get_ident() in use.users:
                raise RuntimeError("counts_for within itself, for another size: it would wait for its own end")
            _changed.wait()
        else:
            places = head.counted_rules()
            own = [getattr(owner, name) for owner, name in places]
            use = _Use(head, places, own, [grown_rule(rule, size, area) for rule in own])
            _put(places, use.grown)
            _in_use[id(head)] = use
        use.users.append(threading.get_ident())
        return use


def _leave(use: _Use) -> None:
    with _changed:
        use.users.remove(threading.get_ident())
        if not use.users:
            _put(use.places, use.own)
            del _in_use[id(use.head)]
            _changed.notify_all()


def _put(places: list[tuple[object, str]], rules: list[Any]) -> None:
    for (owner, name), rule in zip(places, rules, strict=True):
        setattr(owner, name, rule)
