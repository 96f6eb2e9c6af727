"""Painted samples: each object is a plain bright rectangle of 1 to 8 px on black, so that the pixels say where it went."""

from __future__ import annotations

import torch

from flyspeck.types import Sample, Targets


def painted(height, width, boxes, *, channels=1, dtype=torch.uint8, labels=None, ignore=None):
    """Black but for the boxes (whole pixels), which are white."""
    white = 255 if dtype == torch.uint8 else 1.0
    pixels = torch.zeros(channels, height, width, dtype=dtype)
    for x1, y1, x2, y2 in boxes:
        pixels[:, y1:y2, x1:x2] = white
    num = len(boxes)
    targets = Targets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * num, dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * num, dtype=torch.bool),
    )
    return Sample(pixels, targets, 1)


def found(pixels, threshold=0.5):
    """The box around everything brighter than `threshold` of full scale, or None."""
    plane = pixels[0].to(torch.float32) / (255 if pixels.dtype == torch.uint8 else 1)
    rows, columns = torch.where(plane > threshold)
    if len(rows) == 0:
        return None
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32)
