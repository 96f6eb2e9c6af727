"""Fine-tuning from another run: what is taken over, what stays, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.train.build import build_detector, detector_from_description, load_detector
from flyspeck.train.config import ModelConfig, Recipe, load_recipe
from flyspeck.train.run import train
from flyspeck.train.start import take_over


def test_a_run_starts_from_another_with_other_classes(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(train={"epochs": 1})
    train(recipe, tmp_path / "first")
    first = load_detector(tmp_path / "first").state_dict()
    model = recipe.model.model_copy(update={"start": str(tmp_path / "first")})
    second = build_detector(model, classes=["a", "b", "c"], mean=[0.1], std=[0.3])
    same = {name for name, value in second.state_dict().items() if torch.equal(value, first.get(name, value + 1))}
    own = set(second.state_dict())
    assert {name for name in own if name.startswith(("backbone.", "neck."))} <= same
    assert not {name for name in own if "class_logits" in name} & same  # three classes in place of one
    assert "pixel_norm.mean" not in same
    # A checkpoint is not built from what its run started from.
    again = build_detector(model, classes=["a", "b", "c"], mean=[0.1], std=[0.3], load=False)
    assert not all(torch.equal(again.state_dict()[name], first[name]) for name in same)


def test_another_backbone_and_a_missing_file_are_refused(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    train(make_recipe(train={"epochs": 1}), tmp_path / "first")
    other = build_detector(
        ModelConfig(name="retinanet:mobilenet_v1", width=0.25, channels=16), classes=["a"], mean=[0.1], std=[0.3]
    )
    with pytest.raises(UserError, match="weights of another backbone"):
        take_over(other, tmp_path / "first", build=detector_from_description)
    with pytest.raises(UserError):
        take_over(other, tmp_path / "nowhere", build=detector_from_description)


def test_the_path_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {train: a.json, val: b.json}\nmodel: {start: runs/first}\n")
    assert load_recipe(tmp_path / "recipe.yaml").model.start == str((tmp_path / "runs" / "first").resolve())
