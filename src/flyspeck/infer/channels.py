"""Windows as a model wants them: as many channels as it was trained on. NumPy only."""

from __future__ import annotations

import numpy as np

from flyspeck.errors import UserError


def match_channels(window: np.ndarray, channels: int) -> np.ndarray:
    """A window (H, W, C) with as many channels as the model was trained on; a fourth (alpha) is left out."""
    have = window.shape[2]
    if have == channels:
        return window
    if channels == 1 and have in (3, 4):
        luma = window[:, :, :3].astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((luma + 0x8000) >> 16).astype(window.dtype)[:, :, None]
    if channels == 3 and have in (1, 2):
        return np.repeat(window[:, :, :1], 3, axis=2)
    if channels == 3 and have == 4:
        return window[:, :, :3]
    raise UserError(f"an image of {have} channels for a model of {channels}", fix="choose the bands to read")
