"""Detectors learn while their layers round to 8 bits, specks of 2 and 3 px too, and find as much afterwards."""

from __future__ import annotations

from flyspeck.models.fake_quantised import fake_quantise, input_ranges, without_rounding
from flyspeck.models.heads.fcos import fcos
from flyspeck.models.layers import group_norm
from learning import ap50, make_squares

FEW = 2
"""Images: a step takes ten times as long while layers round."""


def test_a_rounding_detector_learns(learn, small_backbone, pixel_norm) -> None:
    squares = make_squares(FEW)
    detector = fcos(
        small_backbone(), classes=("red", "blue"), pixel_norm=pixel_norm, channels=16, norm=group_norm, depth=1
    )
    layers = fake_quantise(detector)
    assert learn(detector, on=squares, steps=40) > 0.9
    assert len(input_ranges(detector)) == layers
    with without_rounding(detector):  # it rounded indeed, and what it learnt holds without
        assert ap50(detector.detect(squares.images), squares.targets) > 0.8


def test_a_rounding_detector_learns_specks(learn, small_backbone, pixel_norm) -> None:
    specks = make_squares(FEW, sides=(2, 3))
    common = {"classes": specks.classes, "pixel_norm": pixel_norm, "channels": 16, "depth": 1}
    detector = fcos(small_backbone(), **common, reach=0.5, quality="iou")
    fake_quantise(detector)
    assert learn(detector, on=specks, steps=60, lr=5e-3) > 0.5  # 0.6 is asked of one that does not round
