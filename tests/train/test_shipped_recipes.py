"""Every recipe that is shipped parses, names a protocol and a metric that exist, and builds its model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate import PROTOCOLS, evaluate
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.train.build import build_detector
from flyspeck.train.config import load_recipe
from flyspeck.train.dynamic import make_dynamic
from flyspeck.train.measure import metrics_of

ROOT = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))


@functools.cache
def metrics(protocol: str, *, settings: bool) -> set[str]:
    """Names of what a protocol gives a run to pick its best weights by; `settings`: the set has WIDER FACE's three."""
    extra = {f"kept_{name}": np.ones(1, bool) for name in ("easy", "medium", "hard")} if settings else {}
    table = Annotations(
        image_ids=np.arange(1), file_names=("a.png",), sizes=np.array([[40, 40]]), image_index=np.zeros(1, int),
        boxes=np.array([[2.0, 2, 12, 12]]), labels=np.zeros(1, int), area=np.array([100.0]), ignore=np.zeros(1, bool),
        crowd=np.zeros(1, bool), box_ids=np.ones(1, int), classes=("object",), category_ids=(1,), extra=extra,
    )  # fmt: skip
    found = DetectionTable.from_columns(image_index=[0], boxes=table.boxes, scores=[0.5], labels=[0])
    return set(metrics_of(evaluate(table, found, protocol)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_builds(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.evaluate.protocol in PROTOCOLS
    settings = recipe.data.val is not None and recipe.data.val.endswith(".mat")
    assert recipe.evaluate.best in metrics(recipe.evaluate.protocol, settings=settings)
    # What is taken from the training set, and weights that are not here, are left out.
    model = recipe.model.model_copy(update={"fusion": None, "assigner": None})
    if model.anchors is not None and model.anchors.fit:
        model = model.model_copy(update={"anchors": None})
    with torch.device("meta"):
        detector = build_detector(model, classes=("object",), mean=(0.5,), std=(0.5,), load=False)
        make_dynamic(detector, recipe.dynamic)
    strides = [feature.stride for feature in detector.features]
    assert np.all(np.diff(strides) >= 0)


OWN = Path(__file__).resolve().parents[2] / "benchmarks" / "recipes"
SAID = {"optimizer", "lr", "weight_decay", "warmup_steps", "schedule"}
"""Of a training with SGD, the rest is fixed by that word; others say these too."""


@pytest.mark.parametrize("path", [*RECIPES, *sorted(OWN.rglob("*.yaml"))], ids=lambda path: path.stem)
def test_a_shipped_training_does_not_change_with_the_defaults(path: Path) -> None:
    said = yaml.safe_load(path.read_text()).get("train", {})
    assert said.keys() >= SAID
    assert said["optimizer"] == "sgd" or said.keys() >= SAID | {"clip_grad", "ema"}
