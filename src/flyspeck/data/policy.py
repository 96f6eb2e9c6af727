"""The one policy for boxes that a cut leaves partial: used by crop, mosaic, tile and evaluation alike.

Like `flyspeck.boxes`, the functions take NumPy arrays or torch tensors and return what they were given; NumPy alone is
imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flyspeck import boxes as bx
from flyspeck.boxes import Array


@dataclass(frozen=True)
class CutPolicy:
    """What becomes of a box of which a window shows only a share.

    share >= `keep`: an object, clipped to the window; `ignore` <= share < `keep`: an ignore region; else it is dropped.
    """

    keep: float = 0.5
    ignore: float = 0.1
    measure: Literal["area", "size"] = "area"
    """Share of the box's area, or of its size, the square root of the area."""
    spare_ignored: bool = True
    """Ignore regions stay, clipped, as long as any of them is visible; if False the shares hold for them too."""

    def __post_init__(self) -> None:
        if not 0 <= self.ignore <= self.keep <= 1:
            raise ValueError(f"a cut policy needs 0 <= ignore <= keep <= 1, got ignore {self.ignore}, keep {self.keep}")


TINYBENCHMARK = CutPolicy(keep=0.7, ignore=0.7, measure="size", spare_ignored=False)
"""TinyPerson's rule (TinyBenchmark, `split_and_merge_image.py`): a box is kept from 0.7 of its size, else dropped."""


def cut_boxes(
    boxes: Array, ignore: Array, window: tuple[float, float, float, float], policy: CutPolicy
) -> tuple[Array, Array, Array]:
    """Cut `boxes` (M, 4) by `window` (x1, y1, x2, y2), both xyxy in the frame of the image.

    `ignore` (M,) bool marks boxes that are ignore regions already. Returns the boxes clipped and in the frame of the
    window (M, 4), which of them remain (M,) bool, and which are ignore regions now (M,) bool. A remaining box has a visible
    area above 0.
    """
    clipped = _in_window(boxes, window)
    visible = bx.area(clipped)
    share = visible / bx.area(boxes).clip(min=bx.EPS)
    if policy.measure == "size":
        share = share**0.5
    enough = share >= policy.ignore
    if policy.spare_ignored:
        enough = enough | ignore
    remains = (visible > 0) & enough
    return clipped, remains, ignore | (share < policy.keep)


def _in_window(boxes: Array, window: tuple[float, float, float, float]) -> Array:
    """Boxes clipped to the window, in its frame."""
    x1, y1, x2, y2 = window
    xp = bx._namespace(boxes)
    moved = xp.stack([boxes[..., 0] - x1, boxes[..., 1] - y1, boxes[..., 2] - x1, boxes[..., 3] - y1], -1)
    return bx.clip(moved, y2 - y1, x2 - x1)
