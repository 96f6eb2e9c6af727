"""What a detector itself gives when its cuts move by what rounding moves: a box that then comes or goes hangs on a last digit.

`tiny` suppression hides its cuts: boxes are suppressed where they stand and moved afterwards, so that two which were left for an
overlap of 0.4999 may lie upon each other in the end; and of the best `max_detections` that enter it a third may come out, so that
no score in the end says where that cut was. So the detector is asked again, with each cut a little higher and a little lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import nn

from flyspeck import one_object
from flyspeck.export.parity import IOU
from flyspeck.models.detector import Head
from flyspeck.models.postprocess import Suppression
from flyspeck.types import Detections

PLACES = 0.01
"""By what share a count moves, and by 1 at least."""


def asked_again(network: nn.Module, look: Callable[[], list[Detections]]) -> list[list[Detections]]:
    """What `look` gives with each cut of the `network` that it runs lower and higher; nothing where no overlap suppresses."""
    heads = [part for part in network.modules() if isinstance(part, Head) and _cuts(part.suppression)]
    if not heads:
        return []
    found = []
    for sign in (-1, 1):
        with one_object.bound_moved(sign * IOU), _suppressing(heads, partial(_overlapping, sign=sign)):
            found.append(look())
        for name in ("max_detections", "pre_nms"):
            with _suppressing(heads, partial(_counting, name=name, sign=sign)):
                found.append(look())
    return found


def _cuts(rule: Suppression) -> bool:
    return rule.method != "none" and rule.soft is None


def _counting(rule: Suppression, *, name: str, sign: int) -> Suppression:
    count = getattr(rule, name)
    return replace(rule, **{name: max(1, count + sign * max(1, round(PLACES * count)))})


def _overlapping(rule: Suppression, *, sign: int) -> Suppression:
    return replace(rule, iou=rule.iou + sign * IOU)


@contextmanager
def _suppressing(heads: Sequence[Head], change: Callable[[Suppression], Suppression]) -> Iterator[None]:
    """The heads with other rules for a while."""
    before = [head.suppression for head in heads]
    for head in heads:
        head.suppression = change(head.suppression)
    try:
        yield
    finally:
        for head, own in zip(heads, before, strict=True):
            head.suppression = own
