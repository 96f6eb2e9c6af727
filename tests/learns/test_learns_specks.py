"""Objects of 2 and 3 px at stride 4: many contain no point, and FCOS learns them only with a reach."""

from __future__ import annotations

from flyspeck.models.heads.fcos import fcos


def test_a_reach_finds_what_lies_between_the_points(learn, small_backbone, pixel_norm, specks):
    common = {"classes": specks.classes, "pixel_norm": pixel_norm, "channels": 16, "depth": 1}
    plain = learn(fcos(small_backbone(), **common), on=specks)
    reaching = learn(fcos(small_backbone(), **common, reach=0.5, quality="iou"), on=specks)
    assert reaching > 0.6
    assert plain < reaching - 0.2
