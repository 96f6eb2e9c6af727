"""Recipes of narrow students and of a transformer build, and their weights come back."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from flyspeck.train.build import build_detector, describe_model, load_detector
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from flyspeck.types import ImageBatch

ABOUT = {"classes": ("a", "b"), "mean": [0.5], "std": [0.25]}
TWO_STAGES = {"hidden": 16, "proposals": 20, "train_proposals": 20}


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("retinanet:shufflenet_v2", {"depth": 1}, {"norm": "bn"}),
        ("faster_rcnn:shufflenet_v2", TWO_STAGES, {"fusion": [0.5, 0.5, 0.5], "norm": "gn"}),
        ("faster_rcnn:swin_t", TWO_STAGES, {"fusion": "three"}),
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
    (one,), (other,) = detector.detect(images), again.detect(images)
    assert_close(torch.from_numpy(other.boxes), torch.from_numpy(one.boxes))
