"""Runs of dynamic detectors, and runs on enlarged images: the folder they leave, and the detector rebuilt from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.infer.load import load_predictor
from flyspeck.models.dynamic.norms import SwitchedNorm
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.train.build import load_described
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.dynamic import best_metric
from flyspeck.train.run import train

RecipeMaker = Callable[..., Recipe]


def dynamic_recipe(make_recipe: RecipeMaker, data: dict[str, Any] | None = None, **dynamic: Any) -> Recipe:
    recipe = make_recipe(train={"epochs": 1}, model={"freeze_norms": False, "norm": "bn"}, data=data or {})
    content = recipe.model_dump(mode="json")
    return parse_recipe({**content, "dynamic": dynamic})


def test_every_factor_is_measured_in_the_files_pixels(make_recipe: RecipeMaker, tiny_set: Path, tmp_path: Path) -> None:
    recipe = dynamic_recipe(make_recipe, {"enlarge": 2.0}, factors=[0.5, 0.33])
    metrics = train(recipe, tmp_path / "run")
    for kind in ("detections", "evaluation"):
        assert (tmp_path / "run" / f"{kind}-df0.33.json").is_file()
        assert (tmp_path / "run" / f"{kind}-df0.5.json").read_bytes() == (
            tmp_path / "run" / f"{kind}.json"
        ).read_bytes()
    assert metrics["ap50_tiny"] == metrics["ap50_tiny@0.5"]
    assert metrics["ap50_tiny@mean"] == pytest.approx((metrics["ap50_tiny@0.5"] + metrics["ap50_tiny@0.33"]) / 2)
    evaluated = json.loads((tmp_path / "run" / "evaluation-df0.33.json").read_text())
    assert evaluated
    boxes = np.array([d["bbox"] for d in json.loads((tmp_path / "run" / "detections-df0.33.json").read_text())])
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 96 + 1e-3  # images are 96x64, the network saw 192x128
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 64 + 1e-3

    detector, description = load_described(tmp_path / "run")
    assert find_switch(detector).factors == (0.5, 0.33)
    assert any(isinstance(m, SwitchedNorm) for m in detector.modules())
    assert description["training_size"] == [128, 192]
    # What `predict` finds without being told a scale is what the run measured.
    val = read_annotations(tiny_set / "val.json")
    image = np.asarray(Image.open(val.path(0)))
    found = load_predictor(tmp_path / "run", tile=(128, 192), overlap=0, score_threshold=0.01).predict([image])[0]
    own = [d for d in json.loads((tmp_path / "run" / "detections.json").read_text()) if d["image_id"] == 1]
    assert found.image_size == (64, 96)
    assert len(found) == len(own) > 0
    best = sorted((d["score"] for d in own), reverse=True)[:5]
    assert_allclose(found.scores[:5], best, atol=2e-3)


def test_single_training_leaves_no_private_norms(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    metrics = train(
        dynamic_recipe(make_recipe, factors=[0.5, 0.25], default=0.25, train="single", norms="shared"), tmp_path / "run"
    )
    assert metrics["ap50_tiny"] == metrics["ap50_tiny@0.25"]
    detector, _ = load_described(tmp_path / "run")
    assert find_switch(detector).active == 0.25
    assert not any(isinstance(m, SwitchedNorm) for m in detector.modules())


def test_the_best_checkpoint_of_a_mixed_run_is_picked_by_the_mean(make_recipe: RecipeMaker) -> None:
    assert best_metric("ap50_tiny", dynamic_recipe(make_recipe).dynamic) == "ap50_tiny@mean"
    assert best_metric("ap50_tiny@0.5", dynamic_recipe(make_recipe).dynamic) == "ap50_tiny@0.5"
    assert best_metric("ap50_tiny", dynamic_recipe(make_recipe, train="single", norms="shared").dynamic) == "ap50_tiny"
    assert best_metric("ap50_tiny", None) == "ap50_tiny"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"factors": [0.33, 0.25]}, r"do not have the default 0\.5"),
        ({"train": "single"}, "set norms to shared"),
        ({"factor": [0.5]}, r"unknown key 'dynamic\.factor'"),
    ],
)
def test_impossible_sections_are_refused(make_recipe: RecipeMaker, section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dynamic_recipe(make_recipe, **section)


def test_two_ways_to_enlarge_are_refused(make_recipe: RecipeMaker) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        make_recipe(data={"enlarge": 2.0, "short_side": 80})
