"""Detectors learn with every assigner, and with NWD as their box loss."""

from __future__ import annotations

import pytest

from flyspeck.models.assigners.build import named_assigner
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.models.heads.fcos import fcos
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.layers import group_norm
from flyspeck.models.receptive import receptive_fields

HOSTS = {"retinanet": retinanet, "faster_rcnn": faster_rcnn, "fcos": fcos}
QUICK = [("retinanet", "nwd")]
SLOW = [(h, a) for h in HOSTS for a in ("max_iou", "nwd", "simd", "rfla") if (h, a) not in QUICK]


def check(host: str, name: str, learn, small_backbone, pixel_norm, squares) -> None:
    backbone = small_backbone()
    # The squares are 6-14 px; the small backbone sees 7 px at stride 4 already, so that half of that would be too little.
    fields = receptive_fields(backbone, [f.stride for f in backbone.features] + [64])
    builder = named_assigner(name, ratios=(3.0, 3.0), receptive_fields=[2 * f for f in fields])
    options = {"hidden": 64, "samples": 64} if host == "faster_rcnn" else {"depth": 1}
    if host == "retinanet" and name == "nwd":
        options |= {"box_loss": "nwd", "box_weight": 5.0}
    detector = HOSTS[host](
        backbone,
        classes=squares.classes,
        pixel_norm=pixel_norm,
        channels=16,
        norm=group_norm,
        assigner=builder,
        **options,
    )
    assert learn(detector, steps=70, lr=7e-3) > 0.7


@pytest.mark.parametrize(("host", "name"), QUICK)
def test_learns(host, name, learn, small_backbone, pixel_norm, squares):
    check(host, name, learn, small_backbone, pixel_norm, squares)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "name"), SLOW)
def test_learns_slowly(host, name, learn, small_backbone, pixel_norm, squares):
    check(host, name, learn, small_backbone, pixel_norm, squares)
