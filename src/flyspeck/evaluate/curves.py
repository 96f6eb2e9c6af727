"""What several protocols do with a precision-recall curve."""

from __future__ import annotations

import numpy as np


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the precision-recall curve made non-increasing; NaN spreads, as in the references."""
    recall, precision = np.r_[0.0, recall, 1.0], np.r_[0.0, precision, 0.0]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * envelope[steps + 1]).sum())
