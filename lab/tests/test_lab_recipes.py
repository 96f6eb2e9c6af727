"""Recipes of the comparators build, and their weights come back."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.train.build import build_detector, describe_model, load_detector
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from flyspeck.types import ImageBatch
from same_detections import assert_same_detections

ABOUT = {"classes": ("a", "b"), "mean": [0.5], "std": [0.25]}
TWO_STAGES = {"hidden": 16, "proposals": 20, "train_proposals": 20}


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("free_anchor:shufflenet_v2", {"depth": 1}, {"norm": "bn"}),
        ("libra_rcnn:shufflenet_v2", TWO_STAGES, {"fusion": [0.5, 0.5, 0.5], "norm": "gn"}),
        ("grid_rcnn:shufflenet_v2", {**TWO_STAGES, "point_channels": 4, "grid_depth": 1}, {}),
        ("libra_rcnn:shufflenet_v2", TWO_STAGES, {"assigner": {"name": "nwd"}}),
    ],
)
def test_a_recipe_builds_and_its_weights_come_back(name, options, more, tmp_path):
    torch.manual_seed(0)
    model = ModelConfig(name=name, width=0.25, channels=16, head=options, **more)
    detector = build_detector(model, **ABOUT).eval()
    save_weights(tmp_path / "x.safetensors", detector.state_dict(), describe_model(model, **ABOUT))
    again = load_detector(tmp_path / "x.safetensors")
    images = ImageBatch(torch.randint(0, 256, (1, 1, 64, 96), dtype=torch.uint8), ((64, 96),))
    with torch.no_grad():
        assert_close(again.pyramid(images), detector.pyramid(images))
    before, after = detector.detect(images), again.detect(images)
    assert_same_detections(after, before, box_px=1e-4, score=1e-6, rule=detector.head.suppression, least=0)


@pytest.mark.parametrize("name", ["free_anchor:shufflenet_v2", "grid_rcnn:shufflenet_v2"])
def test_what_matches_by_itself_takes_no_assigner(name):
    with pytest.raises(UserError, match="assigner"):
        build_detector(ModelConfig(name=name, width=0.25, channels=16, assigner={"name": "nwd"}), **ABOUT)
