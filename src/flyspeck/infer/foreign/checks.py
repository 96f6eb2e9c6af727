"""What is asked of every box of a model that is not ours, before anybody sees it: a wrong reading shows in its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flyspeck.errors import UserError
from flyspeck.types import Detections

_SLACK = 1e-3  # of a score: half precision rounds


def checked(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    size: tuple[int, int],
    classes: Sequence[str],
    where: object,
    fix: str,
) -> Detections:
    """Boxes (N, 4) in an image of `size` (H, W), clipped to it; those outside it, or without area, are gone.

    Raises UserError, with `fix`, for scores that are none, for labels without a name, and for boxes that are not corners in
    pixels.
    """
    if not np.isfinite(scores).all() or not np.isfinite(boxes).all():
        raise UserError(
            "its boxes or scores are no numbers (NaN or infinite)", where=where, fix="look at the model itself"
        )
    if len(scores) and (scores.min() < -_SLACK or scores.max() > 1 + _SLACK):
        what = f"its scores are {scores.min():.3g} to {scores.max():.3g}, where 0 to 1 is wanted"
        raise UserError(what, where=where, fix=fix)
    low, most = int(labels.min(initial=0)), int(labels.max(initial=-1))
    if low < 0 or most >= len(classes):
        told = f"{len(classes)} classes are named: {', '.join(classes[:8])}"
        raise UserError(
            f"it finds class {low if low < 0 else most}, counted from 0, and {told}",
            where=where,
            fix="name them all, in its order: --classes a,b,c (torchvision's own labels begin with the background)",
        )
    inverted = (boxes[:, 2:] < boxes[:, :2] - _SLACK).any(axis=1)
    if inverted.any():
        shown = ", ".join(f"{value:.4g}" for value in boxes[inverted][0])
        raise UserError(f"a box {shown} ends before it begins: not x1, y1, x2, y2", where=where, fix=fix)
    if len(boxes) > 1 and np.abs(boxes).max() <= 1.5 and max(size) > 8:
        raise UserError("all its boxes lie within one pixel: shares of the image, not pixels", where=where, fix=fix)
    height, width = size
    clipped = boxes.copy()
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, width)
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, height)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return Detections(clipped[kept], scores[kept].clip(0, 1), labels[kept], size, tuple(classes))
