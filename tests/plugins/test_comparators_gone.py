"""The comparators of version 0.1 are in another package: recipes, runs and weights that name them say which."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyspeck import plugins
from flyspeck.cli.main import main
from flyspeck.models.zoo import DETECTORS
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from tiny_sets import write_tiny_set

RECIPE = """
data: {train: set/train.json, val: set/val.json}
model: {name: "NAME:resnet18"}
"""


@pytest.fixture(params=plugins.COMPARATORS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A comparator, where the package that has it is not installed."""
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    for gone in plugins.COMPARATORS:
        monkeypatch.delitem(DETECTORS, gone, raising=False)
    return request.param


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_name_says_which_package_to_install(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "profile", f"{name}:resnet18")
    assert "it is in the package flyspeck-lab (folder lab/ of the repository): install that" in line


def test_so_does_a_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_set(tmp_path / "set")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("NAME", name))
    assert "flyspeck-lab" in refused(capsys, "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"))


def test_so_do_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig(name="retinanet:mobilenet_v2", width=0.25, channels=16, head={"depth": 1})
    about = {"classes": ("a",), "mean": [0.5] * 3, "std": [0.25] * 3}
    description = describe_model(model, **about)  # type: ignore[arg-type]
    description["model"]["name"] = f"{name}:mobilenet_v2"
    state = build_detector(model, **about).state_dict()  # type: ignore[arg-type]
    save_weights(tmp_path / "x.safetensors", state, description)
    options = ["--model", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "found")]
    assert "flyspeck-lab" in refused(capsys, "predict", str(write_tiny_set(tmp_path / "set") / "images"), *options)
