"""The value that stands for "nothing here" in a raster file."""

from __future__ import annotations

import numpy as np

_HUGE = 1e30  # a "no data" value of such size was often written with fewer digits than it has


def is_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """Which values (any shape) are the "no data" value of their file."""
    if np.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        limits = np.iinfo(values.dtype)
        if not limits.min <= nodata <= limits.max or nodata != int(nodata):
            return np.zeros(values.shape, bool)
        return values == values.dtype.type(int(nodata))
    if _HUGE < abs(nodata) < np.inf:
        return np.abs(values.astype(np.float64) - nodata) <= 1e-5 * abs(nodata)
    return values == values.dtype.type(nodata)
