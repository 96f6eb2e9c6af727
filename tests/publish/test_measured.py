"""What `flyspeck models` says of measured detectors is what tables and cards say, and every name that a recipe takes is built."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.models.zoo import BACKBONES, DETECTORS, NECKS, SHORT
from flyspeck.publish.measured import (
    MeasuredModel,
    area_of,
    measured_models,
    read_card,
    trained_models,
    untrained,
    worthwhile,
)
from flyspeck.train.build import build_detector
from flyspeck.train.config import parse_recipe
from flyspeck.train.model_config import ModelConfig
from needs import with_extras

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(
    {f"{detector}:{backbone}" for detector in DETECTORS for backbone in BACKBONES}
    | {
        f"{detector}:{backbone}:{neck}"
        for detector in DETECTORS
        for backbone in ("resnet18", "hrnet18")
        for neck in NECKS
    }
    | {f"{name}:{neck}" for name in ("speck:specknet_n", "fcos:swin_t") for neck in NECKS}
    | {f"ssd:mobilenet_v1_coral:{name}" for name in ("S1L0", "S1L6", "Size512", "S1L0-DualPath19-10-S")}
    | set(SHORT)
)
FEW = sorted(
    {
        f"fcos:{backbone}"
        for backbone in BACKBONES
        if not backbone.startswith(("hrnet32", "bh_hrnet", "resnet1", "resnext"))
    }
    | {f"{detector}:mobilenet_v2" for detector in DETECTORS}
    | {f"retinanet:resnet18:{neck}" for neck in NECKS}
)


def test_the_file_is_what_the_tables_say() -> None:
    spec = importlib.util.spec_from_file_location("measured_script", ROOT / "benchmarks" / "measured_models.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = json.loads(script.TARGET.read_text(encoding="utf-8"))
    assert written == [*script.rows(), script.starter()], "run benchmarks/measured_models.py"


def test_cards_are_read() -> None:
    found = {model.name: model for model in trained_models()}
    for folder in (ROOT / "models").glob("*/model.safetensors"):
        model = found[folder.parent.name]
        text = (folder.parent / "README.md").read_text(encoding="utf-8")
        assert f"| tiny | {100 * model.ap('tiny'):.1f} (" in text
        assert f"{model.parameters / 1e6:.2f} M parameters" in text
    with pytest.raises(UserError, match="is not a card"):
        read_card("x", "# A folder", Path("x/model.safetensors"))


def test_the_starters_are_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = [model.name for model in measured_models()]
    assert ModelConfig.model_fields["name"].default in names
    assert "fcos:bh_resnet14" in names  # the demo's, and the README's
    assert main(["models", "--objects", "10"]) == 0
    text = capsys.readouterr().out
    assert "for objects of 8-12 px: AP50 " in text
    assert "Published" not in text


def model(name: str, gflops: float, ap: float, data: str = "a", **more: float) -> MeasuredModel:
    return MeasuredModel(name, "", data, 1e6, gflops, (64, 64), {"tiny1": ap}, "", **more)  # pyright: ignore


def test_what_is_worth_its_cost_by_hand() -> None:
    models = [model("dear", 9, 0.5), model("bad", 5, 0.1), model("cheap", 1, 0.2), model("other", 7, 0.1, "b")]
    assert [m.name for m in worthwhile(models, "tiny1")] == ["cheap", "dear", "other"]
    timed = [model("slow", 1, 0.2, ms=9.0), model("fast", 9, 0.2, ms=1.0)]
    assert [m.name for m in worthwhile(timed, "tiny1")] == ["fast"]


@pytest.mark.parametrize(("pixels", "area"), [(2, "tiny1"), (8, "tiny2"), (12, "tiny3"), (31.9, "small")])
def test_sizes_fall_into_rows(pixels: float, area: str) -> None:
    assert area_of(pixels) == area


@pytest.mark.parametrize("pixels", [1.9, 32])
def test_what_was_not_measured_is_refused(pixels: float) -> None:
    with pytest.raises(UserError, match="nothing was measured"):
        area_of(pixels)


@pytest.mark.parametrize("model", measured_models(), ids=lambda model: f"{model.name} {model.what}"[:60])
def test_every_measured_detector_can_be_timed_without_a_training_set(model: MeasuredModel) -> None:
    with torch.device("meta"):
        assert untrained(model).classes == ("a", "b", "c")


def test_a_budget_is_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "S1L6", "--max-ms", "100000", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measured"]
    assert found["ms"] > 0
    assert found["mb"] is None or found["mb"] >= 0
    assert main(["models", "S1L6", "--max-ms", "0.0001"]) == 2
    assert "no model is within the budget" in capsys.readouterr().err


def printed_or_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--print-config` takes a name, which then is built with real tensors, or says in a line why not."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"data: {{train: t.json, val: v.json}}\nmodel: {{name: '{name}', width: 0.125, channels: 8}}\n")
    code = main(["train", str(recipe), "--print-config"])
    told = capsys.readouterr()
    if code:
        assert (code, told.out, told.err.count("\n")) == (2, "", 1)
        REFUSED.append(name)
        return
    settings = parse_recipe(yaml.safe_load(told.out)).model
    detector = build_detector(settings, classes=("a", "b"), mean=[0.5] * 3, std=[0.2] * 3, load=False)
    assert sum(weight.numel() for weight in detector.parameters())


REFUSED: list[str] = []


@pytest.mark.parametrize("name", with_extras(FEW))
def test_a_name_that_a_recipe_takes_is_built(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed_or_refused(name, tmp_path, capsys)


def test_few_names_are_refused() -> None:
    assert set(REFUSED) <= {"tinaface_gn_dcn:mobilenet_v2"}  # deformable convolutions go into bottlenecks


@pytest.mark.slow
@pytest.mark.parametrize("name", with_extras(NAMES))
def test_every_name_that_a_recipe_takes_is_built(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed_or_refused(name, tmp_path, capsys)


def test_every_shipped_recipe_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in sorted((ROOT / "recipes").rglob("*.yaml")):
        if "model:" in recipe.read_text(encoding="utf-8"):
            assert main(["train", str(recipe), "--print-config"]) == 0, recipe
            capsys.readouterr()
