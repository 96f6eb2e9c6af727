"""Recipes: complete, strict, and read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from flyspeck.errors import UserError
from flyspeck.train import config
from flyspeck.train.config import Recipe, dump_recipe, load_recipe, parse_recipe

MINIMAL = {"data": {"train": "a.json", "val": "b.json"}}
SOURCE = Path(config.__file__).parent.parent
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({**MINIMAL, "train": {"epoch": 3}}, "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ({**MINIMAL, "modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({**MINIMAL, "train": {"lr": -1}}, "train.lr: Input should be greater than 0, got -1"),
        ({**MINIMAL, "train": {"batch_size": 6, "accumulate": 4}}, "not a multiple of train.accumulate"),
        ({**MINIMAL, "augment": {"scale": [2, 1]}}, "range (low, high)"),
        ({"data": {"train": "a.json"}}, "data.val: Field required"),
    ],
)
def test_mistakes_are_named(content: dict, expected: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(content, where="r.yaml")
    assert expected in str(error.value)
    assert str(error.value).startswith("r.yaml: ")
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    for name, expected in (("broken.yaml", "not YAML"), ("list.yaml", "mapping"), ("absent.yaml", "no such recipe")):
        with pytest.raises(UserError, match=expected):
            load_recipe(tmp_path / name)


def test_paths_are_relative_to_the_file_and_overrides_win(tmp_path: Path) -> None:
    content = {**MINIMAL, "model": {"weights": "w/x.pth"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(tmp_path / "r.yaml", ["train.epochs=3", "augment.crop=[64, 96]", "data.val=/abs/v.json"])
    assert recipe.data.train == str(tmp_path / "a.json")
    assert recipe.data.val == "/abs/v.json"
    assert recipe.model.weights == str(tmp_path / "w" / "x.pth")
    assert recipe.train.epochs == 3
    assert recipe.augment.crop == (64, 96)
    named = load_recipe(tmp_path / "r.yaml", ["model.weights=IMAGENET1K_V1"])
    assert named.model.weights == "IMAGENET1K_V1"
    with pytest.raises(UserError, match="sets nothing"):
        load_recipe(tmp_path / "r.yaml", ["train.epochs"])


def test_the_dump_is_complete_and_reads_back(tmp_path: Path) -> None:
    recipe = parse_recipe(MINIMAL)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert set(yaml.safe_load(dump_recipe(recipe))["train"]) == set(config.TrainConfig.model_fields)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses(path: Path) -> None:
    assert load_recipe(path).name


def test_every_field_is_read_somewhere() -> None:
    read = {
        node.attr
        for file in SOURCE.rglob("*.py")
        if file.name != "config.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    sections = [field.annotation for field in Recipe.model_fields.values()]
    sections += [config.AnchorConfig, config.DistillConfig]
    fields = {name for section in sections if hasattr(section, "model_fields") for name in section.model_fields}
    assert fields - read == set()
