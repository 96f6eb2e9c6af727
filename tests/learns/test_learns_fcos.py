"""FCOS learns."""

from __future__ import annotations

from flyspeck.models.fcos import fcos


def test_fcos(learn, small_backbone, pixel_norm, squares):
    detector = fcos(small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, channels=32, depth=1)
    assert learn(detector) > 0.8
