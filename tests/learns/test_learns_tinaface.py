"""TinaFace learns: scores, boxes and the expected overlap."""

from __future__ import annotations

import torch

from flyspeck.models.heads.tinaface import tinaface
from flyspeck.models.layers import group_norm


def test_learns(learn, small_backbone, pixel_norm, squares):
    detector = tinaface(
        small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, channels=16, depth=1, norm=group_norm
    )
    assert learn(detector, steps=70, lr=7e-3) > 0.8
    _, _, overlaps = detector.head(detector.pyramid(squares.images))
    assert torch.cat([m.flatten() for m in overlaps]).std() > 0.05  # it tells boxes apart
