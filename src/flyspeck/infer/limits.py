"""Whether a model's limit on detections has cut some off: nothing is lost in silence. NumPy only."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from flyspeck.types import Detections

_COLUMN = "cut_off"


def cut_off(model: Any, found: Detections, size: tuple[int, int]) -> float:
    """The score at and below which more may have been in a window of `size` (H, W) than is in `found`; -inf: nothing was lost.

    A model that says no `detection_limit` loses nothing. `marked` detections say it themselves.
    """
    if _COLUMN in found.extra:
        return float(found.extra[_COLUMN].max(initial=-math.inf))
    limit = getattr(model, "detection_limit", None)
    most = None if limit is None else limit(size)
    return float(found.scores.min()) if most is not None and len(found) >= most > 0 else -math.inf


def marked(found: Detections, score: float) -> Detections:
    """Detections that say that `score` was their `cut_off`; those that lost nothing as they are."""
    if score == -math.inf:
        return found
    return replace(found, extra={**found.extra, _COLUMN: np.full(len(found), score, np.float32)})


def unmarked(found: Detections) -> Detections:
    """Without what `marked` added."""
    if _COLUMN not in found.extra:
        return found
    return replace(found, extra={name: column for name, column in found.extra.items() if name != _COLUMN})
