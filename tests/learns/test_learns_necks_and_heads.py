"""Every kind of head and neck learns, at 32 channels on 160x128."""

from __future__ import annotations

import pytest

from flyspeck.models.heads.cascade_rcnn import cascade_rcnn
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.models.heads.fcos import fcos
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.models.heads.speck import speck
from flyspeck.models.necks.sspnet import SSPNet, weighted_negatives

RPN_OPTIONS = {"samples": 64}
TWO_STAGES = {
    "hidden": 64,
    "samples": 64,
    "proposals": 50,
    "train_proposals": 50,
    "pool": {"output": 5, "canonical": 64.0},
}


@pytest.fixture
def common(pixel_norm, squares) -> dict:
    return {"classes": squares.classes, "pixel_norm": pixel_norm, "channels": 32}


@pytest.mark.parametrize("builder", [retinanet, fcos, speck])
def test_one_stage(builder, learn, small_backbone, common):
    assert learn(builder(small_backbone(), depth=1, **common), steps=60) > 0.8


@pytest.mark.parametrize("builder", [faster_rcnn, cascade_rcnn])
def test_two_stages(builder, learn, small_backbone, common):
    assert learn(builder(small_backbone(), rpn=RPN_OPTIONS, **TWO_STAGES, **common), steps=70) > 0.7


@pytest.mark.parametrize("fusion", ["three", "gate"])
def test_fusion(fusion, learn, small_backbone, common):
    detector = fcos(small_backbone(), depth=1, fusion=fusion, **common)
    before = detector.neck.state_dict().get("fusion")
    assert learn(detector, steps=60) > 0.8
    if fusion == "three":
        assert not bool((detector.neck.state_dict()["fusion"] == before.clone().fill_(1)).any())


def test_sspnet_with_weighted_negatives(learn, small_backbone, common):
    backbone = small_backbone()
    neck = SSPNet(backbone.features, channels=32)
    rpn = {**RPN_OPTIONS, "negative_weight": weighted_negatives}
    assert learn(faster_rcnn(backbone, neck=neck, rpn=rpn, **TWO_STAGES, **common), steps=70) > 0.7
