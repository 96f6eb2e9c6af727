"""What a recipe may say, as a schema, as comments and as a page: complete, true and up to date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.options import Options
from flyspeck.train import model_config as parts
from flyspeck.train.config import Recipe, dump_recipe, load_recipe, parse_recipe
from flyspeck.train.reference import commented, markdown, recipe_schema

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
DATA = {"data": {"train": "a.json", "val": "b.json"}}


def every_options() -> list[type[Options]]:
    """Every class of options that a recipe may hold, at any depth."""
    found: list[type[Options]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Options) and annotation not in found:
            found.append(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for part in getattr(annotation, "__args__", ()):
            visit(part)

    visit(Recipe)
    for table in (
        parts.all_head_options(plugins=False),
        parts.all_backbone_options(plugins=False),
        parts.all_assigner_options(),
    ):
        for options in table.values():
            visit(options)
    return [options for options in found if options is not Options]


@pytest.mark.parametrize("options", every_options(), ids=lambda options: options.__name__)
def test_every_field_has_a_sentence(options: type[Options]) -> None:
    assert options.__doc__
    silent = [name for name, field in options.model_fields.items() if not (field.description or "").strip()]
    assert silent == []


def test_the_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "reference" / "recipe.md"
    assert page.read_text("utf-8") == markdown(), f"flyspeck schema --to markdown --out {page.relative_to(ROOT)}"


def test_the_page_names_every_key() -> None:
    page = markdown()
    for options in every_options():
        for name in options.model_fields:
            assert f"| `{name}` |" in page or options is Recipe, (options.__name__, name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_commented_recipe_reads_back_and_fits_the_schema(path: Path) -> None:
    recipe = load_recipe(path)
    text = commented(recipe)
    again = yaml.safe_load(text)
    assert parse_recipe(again) == recipe
    assert again == yaml.safe_load(dump_recipe(recipe))
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    checker.validate(again)
    checker.validate(yaml.safe_load(path.read_text("utf-8")))


def test_every_field_of_a_commented_recipe_has_its_sentence_above_it() -> None:
    lines = commented(
        parse_recipe({**DATA, "dynamic": {}, "model": {"anchors": {}, "assigner": {"name": "nwd"}}})
    ).splitlines()
    keys = [number for number, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")]
    assert len(keys) > 100
    for number in keys:
        assert lines[number - 1].strip().startswith("#"), lines[number]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "model",
    [
        {"head": {"hiden": 4}},
        {"head": {"hidden": 0}},
        {"head": {"rpn": {"sample": 4}}},
        {"name": "fcos:resnet18", "head": {"hidden": 4}},
        {"name": "fcos:resnet18", "head": {"quality": "good"}},
        {"name": "fcos:mobilenet_v1", "backbone": {"tf_sam": True}},
        {"name": "fcos:resnet18", "backbone": {"tf_same": True}},
        {"backbone": {"tf_same": True}},
        {"assigner": {"name": "nwd", "k": 4}},
        {"assigner": {"name": "none"}},
        {"anchors": {"ratios": [0]}},
        {"anchors": {"ratios": []}},
        {"widht": 1},
    ],
)
def test_the_schema_refuses_what_a_recipe_refuses(model: dict) -> None:
    content = {**DATA, "model": model}
    with pytest.raises(UserError):
        parse_recipe(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, recipe_schema())


@pytest.mark.parametrize(
    "model",
    [
        {"name": "fcos:mobilenet_v1", "backbone": {"tf_same": True}, "head": {"radius": 2}},
        {"name": "retinanet:mobilenet_v1-S1L0", "backbone": {"relu6": True}},
        {"name": "ssd:vgg16:S1L2", "head": {"width": 0.5}},
        {"name": "tinaface_gn_dcn:resnet50", "head": {"alpha": 0.5}},
        {"head": {"pool": {"output": 5}}, "assigner": {"name": "rfla", "k": 2}},
    ],
)
def test_the_schema_takes_what_a_recipe_takes(model: dict) -> None:
    content = {**DATA, "model": model}
    parse_recipe(content)
    jsonschema.validate(content, recipe_schema())


def test_the_verb_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--out", str(tmp_path / "s.json")]) == 0
    schema = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert schema["$defs"]["TrainConfig"]["properties"]["epochs"]["description"] == "Passes over the training set."
    assert schema["$defs"]["AnchorConfig"]["properties"]["ratios"]["items"] == {"exclusiveMinimum": 0, "type": "number"}
    assert main(["schema", "--to", "markdown"]) == 0
    assert capsys.readouterr().out == markdown()
    assert main(["schema", "--out", str(tmp_path / "recipe.md")]) == 0
    assert (tmp_path / "recipe.md").read_text(encoding="utf-8") == markdown()
    assert main(["schema", "--to", "xml"]) == 2


def test_print_config_explains_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(DATA))
    assert main(["train", str(tmp_path / "r.yaml"), "--set", "train.epochs=3", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "  # Passes over the training set. [whole number from 1]\n  epochs: 3\n" in out
    assert parse_recipe(yaml.safe_load(out)) == load_recipe(tmp_path / "r.yaml", ["train.epochs=3"])
