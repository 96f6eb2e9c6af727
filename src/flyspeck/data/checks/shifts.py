"""Two annotation files of the same images whose boxes differ by half a pixel or a whole one: two meanings of a corner.

Tools count pixels from 0 or from 1, and call the last pixel or the edge behind it the end of a box. At 4 px, one pixel is an IoU
of 0.6; so a file converted under the wrong rule is a fault that no training shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.checks.names import source_of
from flyspeck.data.checks.parts import Part

_MOST = 1.0
"""Largest step, in pixels, that is a meaning of corners rather than another box."""
_TOLERANCE = 0.1
_SHARE = 0.6
"""Share of the boxes in common that must differ by the same."""
_LEAST = 10
"""Fewest boxes in common that are judged."""
_REACH = 2.5
"""Boxes are taken for the same object where no edge is further off, in pixels, and each is the other's nearest."""
_IMAGES, _BOXES = 400, 1000


@dataclass(frozen=True)
class Shift:
    """A step that most boxes of one file are away from those of another."""

    first: str
    second: str
    images: int
    """In both, that were looked at (at most 400)."""
    boxes: int
    """In both."""
    step: tuple[float, float, float, float]
    """Of x1, y1, x2, y2, from `first` to `second`, in pixels: 0, 0.5 or 1, either way."""
    share: float
    """Of the boxes in both that differ by this, to a tenth of a pixel."""

    def text(self) -> str:
        """One line: what differs, and what that looks like."""
        steps = ", ".join(f"{value:+g}" if value else "0" for value in self.step)
        x1, y1, x2, y2 = self.step
        if x1 == y1 == 0 and x2 == y2:
            reading = "one of them takes the last pixel for the end of a box"
        elif x1 == y1 == x2 == y2:
            reading = (
                "they count pixels from different places" if abs(x1) == 1 else "they mean edges or centres of pixels"
            )
        else:
            reading = "they mean corners differently"
        return (
            f"{self.second} against {self.first}: {self.share:.0%} of {self.boxes} boxes of the same images differ by {steps} px"
            f" in x1, y1, x2, y2: {reading}"
        )


def find_shifts(parts: Sequence[Part]) -> tuple[Shift, ...]:
    """The pairs of parts that annotate the same images with boxes a constant step of half a pixel or one apart."""
    names = [_images(part.table) for part in parts]
    found = []
    for a, b in combinations(range(len(parts)), 2):
        shared = sorted(names[a].keys() & names[b].keys())
        if len(shared) > _IMAGES:
            shared = [shared[k] for k in np.linspace(0, len(shared) - 1, _IMAGES).astype(int)]
        pairs = [(names[a][name], names[b][name]) for name in shared]
        steps = _steps(parts[a].table, parts[b].table, pairs)
        shift = _common(steps)
        if shift is not None:
            step, share = shift
            found.append(Shift(parts[a].name, parts[b].name, len(shared), len(steps), step, round(share, 4)))
    return tuple(found)


def _images(table: Annotations) -> dict[str, int]:
    """Row of each image by its path without ending and words of splits: a converted set may lie elsewhere."""
    if "corner" in table.image_extra:  # its tiles may all have the name of the whole image
        return {}
    return {source_of(name.replace("\\", "/")): row for row, name in enumerate(table.file_names)}


def _steps(a: Annotations, b: Annotations, images: Sequence[tuple[int, int]]) -> np.ndarray:
    """`(N, 4)`: for the boxes that both have, those of `b` less those of `a`."""
    found = [np.zeros((0, 4))]
    for row, other in images:
        if (a.sizes[row] > 0).all() and (b.sizes[other] > 0).all() and (a.sizes[row] != b.sizes[other]).any():
            continue  # another image, or the same one at another size
        ours, theirs = a.boxes[a.of_image(row)][:_BOXES], b.boxes[b.of_image(other)][:_BOXES]
        if not len(ours) or not len(theirs):
            continue
        away = np.abs(ours[:, None] - theirs[None]).max(2)
        nearest, back = away.argmin(1), away.argmin(0)
        rows = np.arange(len(ours))
        good = (back[nearest] == rows) & (away[rows, nearest] <= _REACH)
        found.append(theirs[nearest[good]] - ours[good])
    return np.concatenate(found)


def _common(steps: np.ndarray) -> tuple[tuple[float, float, float, float], float] | None:
    """The step of most boxes and their share; None where there is none, or it is no step at all."""
    if len(steps) < _LEAST:
        return None
    middle = np.median(steps, 0)
    exact = np.round(2 * middle) / 2
    if np.abs(middle - exact).max() > _TOLERANCE or not exact.any() or np.abs(exact).max() > _MOST:
        return None
    share = float((np.abs(steps - exact) <= _TOLERANCE).all(1).mean())
    x1, y1, x2, y2 = (float(value) + 0.0 for value in exact)
    return ((x1, y1, x2, y2), share) if share >= _SHARE else None
