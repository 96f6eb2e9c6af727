"""Bins of an object's size (the square root of its box's area, in pixels), once: each with its lower bound, without its upper.

An object of exactly 8 px is in 8-12 px, and in no other bin, so that the bins of a set add up to it. Everything that counts
objects by size takes them from here; only named protocols keep the bins of their references, closed at both ends, where an object
on a bound is in two of them. Areas are compared, not their roots, which may round onto a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EDGES = (0.0, 2.0, 8.0, 12.0, 20.0, 32.0, float("inf"))
"""Bounds in px."""
BINS = ("[0,2)", "[2,8)", "[8,12)", "[12,20)", "[20,32)", "[32,inf)")


def bin_of(areas: np.ndarray, edges: Sequence[float] = EDGES) -> np.ndarray:
    """`(N,)` the bin of each area in square pixels: 0 from `edges[0]` on, -1 below it; what reaches the last edge is in no bin,
    `len(edges) - 1`."""
    return np.searchsorted(np.square(np.asarray(edges, np.float64)), areas, side="right") - 1


def in_bins(areas: np.ndarray, edges: Sequence[float] = EDGES) -> np.ndarray:
    """`(len(edges) - 1,)` how many of the areas lie in each bin."""
    place = bin_of(areas, edges)
    inside = (place >= 0) & (place < len(edges) - 1)
    return np.bincount(place[inside], minlength=len(edges) - 1)


def half_open(low: float, high: float) -> tuple[float, float]:
    """The areas from `low` px on and below `high` px as a range closed at both ends, as protocols have them."""
    return float(low**2), float(np.nextafter(high**2, 0.0)) if np.isfinite(high) else float("inf")
