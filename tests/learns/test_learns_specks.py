"""Objects of 2 and 3 px at stride 4: many contain no point, and a head on points learns them only with a reach."""

from __future__ import annotations

import pytest

from flyspeck.models.heads.fcos import fcos
from flyspeck.models.heads.speck import speck


def test_a_reach_finds_what_lies_between_the_points(learn, small_backbone, pixel_norm, specks):
    common = {"classes": specks.classes, "pixel_norm": pixel_norm, "channels": 16, "depth": 1}
    plain = learn(fcos(small_backbone(), **common), on=specks)
    reaching = learn(fcos(small_backbone(), **common, reach=0.5, quality="iou"), on=specks)
    assert reaching > 0.6
    assert plain < reaching - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rule": "task_aligned", "score_loss": "varifocal"}, {"one_to_one": True}])
def test_speck_finds_what_lies_between_the_points(learn, small_backbone, pixel_norm, specks, options):
    detector = speck(small_backbone(), classes=specks.classes, pixel_norm=pixel_norm, channels=32, depth=1, **options)
    assert learn(detector, on=specks, steps=100) > 0.75


def test_speck_finds_them_quickly(learn, small_backbone, pixel_norm, specks):
    detector = speck(small_backbone(), classes=specks.classes, pixel_norm=pixel_norm, channels=16, depth=1)
    assert learn(detector, on=specks, steps=60) > 0.75
