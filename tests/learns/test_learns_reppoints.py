"""RepPoints learns, at 32 channels on 160x128."""

from __future__ import annotations

from flyspeck.models.heads.reppoints import reppoints


def test_reppoints(learn, small_backbone, squares, pixel_norm):
    detector = reppoints(small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, channels=32, depth=1)
    assert learn(detector, steps=70, lr=5e-3) > 0.8
