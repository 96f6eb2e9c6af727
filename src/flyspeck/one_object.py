"""Which two boxes are one tiny object, and what each of them adds to its place: the rule of `tiny` suppression.

Once for tensors of a detector, for NumPy arrays of a merge, and in the same words for exported graphs (`export.tiny_form`).

IoU is a poor judge of tiny boxes. A box of 8 px that is off by two pixels each way has an IoU of 0.39 with the right one, so
plain NMS at 0.5 lets both through; a threshold low enough to catch it drops neighbours of larger objects. Here

* a box shows the same object as a better one of its class if their intersection over the *smaller* of the two exceeds a bound
  that follows its size: 0.51 up to 8 px, rising evenly to 1 at 48 px, from where the rule leaves everything to NMS. So a box
  within another is a duplicate too, while two neighbours of equal size whose centres are half a side apart, which share
  exactly half, are two objects;
* a duplicate keeps a quarter of its score. It is hardly an object of its own, and so falls below whatever score somebody works
  with; but sometimes it is one, and to drop it would lose that one at every score (measured: a point of AP50);
* the best box moves to the mean of all candidates of its class that overlap it, weighted by their scores. They count in
  full from an IoU of 0.45 and not at all below 0.35, which lies above a neighbour's half a side apart (1/3). A step in the
  place of this ramp would let the last digit of an IoU move a box.

The numbers were chosen on one part of HIT-UAV's validation set and on a few drone images of cars, and measured elsewhere:
docs/evaluation.md. Voting among candidates: Gidaris and Komodakis, 2015 (arXiv:1505.01749), there from an IoU of 0.5 and
without a ramp.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Array = Any  # np.ndarray or torch.Tensor, float

TINY, LARGE = 8.0, 48.0
"""Pixels: up to here the bound is lowest, from here on there is none."""
LOWEST = 0.51
"""The bound of the tiniest; above 1/2, what equal neighbours half a side apart share."""
DUPLICATE = 0.25
"""What a duplicate keeps of its score."""
NONE = 1.02
"""A share that is never reached, even by rounding."""
VOTE_FROM, VOTE_FULL = 0.35, 0.45
"""IoU from which a candidate moves a box at all, and from which it counts in full."""


_moved = 0.0


@contextmanager
def bound_moved(by: float) -> Iterator[None]:
    """With another bound than the rule's, to see which boxes hang on it."""
    global _moved
    before, _moved = _moved, by
    try:
        yield
    finally:
        _moved = before


def bound(size: Array) -> Array:
    """The share of the smaller box of `size` (square root of its area, in pixels) above which two boxes are one object."""
    return _moved + LOWEST + (1 - LOWEST) * ((size - TINY) / (LARGE - TINY)).clip(0, (NONE - LOWEST) / (1 - LOWEST))


def is_one(shared: Array, area: Array, other_area: Array) -> Array:
    """Whether two boxes of these areas that share `shared` square pixels are one object; any shape, elementwise."""
    smaller = area + (other_area - area).clip(max=0)
    return shared > bound(smaller**0.5) * smaller


def vote(iou: Array) -> Array:
    """What a candidate of this IoU with a box counts in that box's mean, in [0, 1], before its score."""
    return ((iou - VOTE_FROM) / (VOTE_FULL - VOTE_FROM)).clip(0, 1)
