"""RetinaNet learns."""

from __future__ import annotations

from flyspeck.models.retinanet import retinanet


def test_retinanet(learn, small_backbone, pixel_norm, squares):
    detector = retinanet(small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, channels=32, depth=1)
    assert learn(detector) > 0.8
