"""Which suppression a detector has: by recipe, by what a file says, and by what is asked for when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flyspeck.cli.main import main
from flyspeck.infer.load import suppression_of
from flyspeck.models.postprocess import Suppression
from flyspeck.train.build import build_detector, describe_model, load_described, load_for_use
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import load_recipe
from flyspeck.train.model_config import ModelConfig

SMALL = {"name": "fcos:resnet18", "width": 0.125, "channels": 16, "levels": "4-5"}
RECIPE = "data: {train: a.json, val: b.json}\nmodel: {name: 'fcos:resnet18'}\n"
PIXELS = {"mean": [0.5] * 3, "std": [0.2] * 3}


def stored(folder: Path, **model: Any) -> Path:
    """A weights file of a small detector; `suppression=None`: as version 0.1 wrote it, which did not say."""
    config = ModelConfig.model_validate({**SMALL, **{k: v for k, v in model.items() if v is not None}})
    detector = build_detector(config, classes=("a",), **PIXELS, load=False)
    description = describe_model(config, classes=("a",), **PIXELS)
    if "suppression" in model and model["suppression"] is None:
        del description["model"]["suppression"]
    path = folder / "model.safetensors"
    save_weights(path, detector.state_dict(), {**description, "training_size": [64, 64]})
    return path


def test_a_recipe_has_tiny_suppression_unless_it_says_otherwise() -> None:
    assert ModelConfig().suppression == "tiny"
    assert ModelConfig(soft_nms="linear").suppression == "nms"  # it excludes what would follow
    with pytest.raises(ValueError, match="exclude each other"):
        ModelConfig(soft_nms="linear", suppression="tiny")
    built = build_detector(ModelConfig.model_validate(SMALL), classes=("a",), **PIXELS, load=False)
    assert built.head.suppression.method == "tiny"
    assert Suppression().method == "nms"  # a detector by name is as its paper has it


@pytest.mark.parametrize(
    ("said", "asked", "method", "soft"),
    [
        ({"suppression": "tiny"}, None, "tiny", None),
        ({"suppression": "tiny"}, "nms", "nms", None),
        ({"suppression": "nms"}, None, "nms", None),
        ({"suppression": "nms"}, "tiny", "tiny", None),
        ({"suppression": None}, None, "tiny", None),
        ({"suppression": None}, "nms", "nms", None),
        ({"suppression": None, "soft_nms": "linear"}, None, "nms", "linear"),
        ({"soft_nms": "linear"}, "tiny", "tiny", None),
    ],
)
def test_what_a_file_says_and_what_is_asked_for(
    said: dict[str, Any], asked: Any, method: str, soft: str | None, tmp_path: Path
) -> None:
    path = stored(tmp_path, **said)
    detector, description = load_for_use(path, asked)
    assert (detector.head.suppression.method, detector.head.suppression.soft) == (method, soft)
    assert suppression_of(description) == (method if soft is None else "soft-nms, linear")
    # Loaded as it was trained, nothing changes: published metrics are of that.
    as_trained = load_described(path)[0].head.suppression
    assert as_trained.method == (said.get("suppression") or "nms")


def test_a_run_of_version_0_1_keeps_its_rule_and_a_new_one_its_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(path).model.suppression == "tiny"
    (tmp_path / "environment.json").write_text("{}")  # what a run folder has and a recipe's does not
    assert load_recipe(path).model.suppression == "nms"
    assert load_recipe(path, ["model.suppression=tiny"]).model.suppression == "tiny"
    path.write_text(RECIPE.replace("'}", "', suppression: tiny}"))
    assert load_recipe(path).model.suppression == "tiny"


def test_predict_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    path = stored(tmp_path, suppression=None)
    for words, said in (([], "suppression tiny"), (["--suppression", "nms"], "suppression nms")):
        line = ["predict", str(tmp_path / "a.png"), "--model", str(path), "--out", str(tmp_path / "found")]
        assert main([*line, "--device", "cpu", "--overwrite", *words]) == 0
        assert said in capsys.readouterr().out
    function = ["predict", str(tmp_path / "a.png"), "--model", "os.path:join", "--out", str(tmp_path / "other")]
    assert main([*function, "--suppression", "tiny"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
