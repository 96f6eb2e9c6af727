"""`evaluate.short_side`: a run is measured, and used, at another size than it has learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.infer.job import predict
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import load_recipe
from flyspeck.train.distill.stages import _scale
from flyspeck.train.inputs import enlargement, enlargement_in_use, read_sets, training_loader
from flyspeck.train.run import train
from small_training import base_recipe, write_squares


def recipe_of(folder: Path, **sections):
    content = base_recipe()
    content["data"] |= {"train": str(folder / "data/squares/train.json"), "val": str(folder / "data/squares/val.json")}
    content["train"] |= {"epochs": 1, "eval_every": 1}
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return load_recipe(folder / "recipe.yaml")


def test_a_run_is_measured_and_used_at_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(write_squares(tmp_path), evaluate={"short_side": 96, "long_side": 112, "best": "ap50_all"})
    train(recipe, tmp_path / "run")
    said = load_weights(tmp_path / "run" / "best.safetensors")[1]
    assert said["enlarge"] == {"factor": 1.0, "short_side": 96, "long_side": 112, "squeeze": None}
    assert said["enlarge_in_training"] == Enlarge().described()
    assert said["training_size"] == [48, 64]
    # Images of 64x48: the longer side has its limit, so that the objects of up to 10 px are seen at 1.75 times that.
    assert said["object_side_99"] == pytest.approx(10 * 112 / 64, rel=0.15)
    told: list[str] = []
    predict(
        tmp_path / "data/squares", model=tmp_path / "run", out=tmp_path / "found", tile="off", draw=0, say=told.append
    )
    assert "shorter side 96 px (longer at most 112)" in "\n".join(told)


def test_training_itself_stays_at_its_own_size(tmp_path: Path) -> None:
    recipe = recipe_of(write_squares(tmp_path), evaluate={"short_side": 96})
    assert enlargement(recipe.data) == Enlarge()
    assert enlargement_in_use(recipe.data, recipe.evaluate) == Enlarge(short_side=96)
    plain = recipe_of(tmp_path, data={"short_side": 24})
    assert enlargement_in_use(plain.data, plain.evaluate) == enlargement(plain.data) == Enlarge(1.0, 24)
    loader = training_loader(
        recipe, read_sets(recipe.data)[0], rule=PixelRule(channels=1), divisor=1, rank=0, world_size=1
    )
    images, _, _ = next(loader.epoch(0))
    assert images.sizes[0] == (48, 64)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"evaluate": {"long_side": 100}}, "evaluate.long_side 100 needs an evaluate.short_side of no more"),
        ({"data": {"squeeze": [64, 64]}, "evaluate": {"short_side": 100}}, "data.squeeze leaves images no scale"),
        ({"evaluate": {"long_side": 100, "short_side": 200}}, "evaluate.short_side of no more, not 200"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, sections, words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe_of(write_squares(tmp_path), **sections)


def test_a_teacher_is_compared_by_what_it_has_learnt_from(tmp_path: Path) -> None:
    student = recipe_of(write_squares(tmp_path), data={"enlarge": 2.0}, distill={"teacher": "t.yaml"})
    teacher = {"enlarge": Enlarge(short_side=96).described(), "enlarge_in_training": Enlarge(4.0).described()}
    assert _scale(student, teacher) == 2.0
