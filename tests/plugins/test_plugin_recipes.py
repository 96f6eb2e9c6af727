"""Recipes, runs, weights and exported files name the plugins that they need, and import none."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flyspeck import UserError
from flyspeck.cli.main import main
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import load_recipe, parse_recipe
from tiny_sets import write_tiny_set

PARTS = """
import numpy as np
from dataclasses import dataclass, replace

from flyspeck import register_backbone, register_protocol, register_transform
from flyspeck.evaluate import protocol_named
from flyspeck.models.backbones.mobilenet import mobilenet_v2


@dataclass(frozen=True)
class Darker:
    by: float

    def __call__(self, sample, rng, another=None):
        return replace(sample, pixels=(sample.pixels * self.by).to(sample.pixels.dtype))


def register():
    register_backbone("mine", mobilenet_v2)
    register_transform("darker", Darker)
    register_protocol(replace(protocol_named("flyspeck"), name="mine", ious=(0.5,)))
"""
RECIPE = """
name: outside
data: {train: set/train.json, val: set/val.json}
model: {name: "retinanet:mine", width: 0.25, channels: 16, norm: bn, min_score: 0.2, head: {depth: 1}}
augment: {extra: [{name: darker, by: 0.9}]}
train: {epochs: 1, batch_size: 4, workers: 0}
evaluate: {protocol: mine, best: ap50_all}
"""


@pytest.fixture
def run(outside, install, new_process, capsys) -> Callable[..., Path]:
    """Trains with the installed plugin `parts`, version 1.0; returns the folder in which the test stands then."""
    folder = outside()
    write_tiny_set(folder / "set")
    (folder / "recipe.yaml").write_text(RECIPE)
    install("my-parts", "1.0", parts=PARTS)
    assert main(["train", "recipe.yaml", "--out", "run"]) == 0
    capsys.readouterr()
    new_process()
    return folder


@pytest.fixture
def uninstalled(run, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-my-parts" not in entry])
    return run


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("read ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_names_what_it_used(run):
    assert yaml.safe_load((run / "run/recipe.yaml").read_text())["plugins"] == ["parts==1.0"]
    assert json.loads((run / "run/environment.json").read_text())["plugins"] == ["parts==1.0"]
    description = load_weights(run / "run/best.safetensors")[1]
    assert description["plugins"] == ["parts==1.0"]
    assert "plugins" not in description["recipe"]


def test_every_command_finds_the_installed_plugin_again(run, capsys):
    for arguments in (
        ["predict", "--model", "run", "set/val.json", "--out", "found"],
        ["report", "run", "--out", "r.html"],
        ["train", "run", "--resume", "--set", "train.epochs=1"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err


def test_without_the_plugin_each_command_says_which_and_how_and_imports_nothing(uninstalled, capsys):
    (uninstalled / "parts.py").write_text("raise SystemExit('imported on the word of a file')")
    for arguments, file in (
        (["predict", "--model", "run", "set/val.json", "--out", "found"], "run/best.safetensors"),
        (["export", "run", "--out", "m.onnx"], "run/best.safetensors"),
        (["explain", "run", "--gt", "set/val.json", "--out", "looks"], "run/best.safetensors"),
        (["benchmark", "run"], "run/best.safetensors"),
        (["report", "run", "--out", "r.html"], "run/recipe.yaml"),
        (["train", "run", "--resume"], "run/recipe.yaml"),
        (["profile", "run/recipe.yaml"], "run/recipe.yaml"),
    ):
        line = refused(capsys, *arguments)
        assert line.startswith(
            f"error: {file}: it needs the plugin 'parts', version 1.0, which is neither installed nor given"
        )
        assert line.endswith("pip install it, or give it with --plugin parts, if you trust it")
        assert "parts" not in sys.modules


def test_given_by_hand_it_serves_as_well(uninstalled, capsys):
    (uninstalled / "parts.py").write_text(f"__version__ = '1.0'\n{PARTS}")
    assert main(["predict", "--model", "run", "set/val.json", "--out", "found", "--plugin", "parts"]) == 0
    assert "made with" not in capsys.readouterr().err


def test_a_changed_plugin_is_one_warning(uninstalled, capsys, caplog):
    (uninstalled / "parts.py").write_text(f"__version__ = '2.0'\n{PARTS}")
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        assert main(["predict", "--model", "run", "set/val.json", "--out", "found", "--plugin", "parts"]) == 0
        words = "run/best.safetensors: made with parts==1.0, now it runs with parts==2.0: results may differ"
        assert [text for text in caplog.messages if "made with" in text] == [words]
        caplog.clear()
        assert main(["train", "run", "--resume", "--plugin", "parts"]) == 0, capsys.readouterr().err
        assert sum("made with" in text for text in caplog.messages) <= 1


def test_a_recipe_may_name_a_plugin_and_only_name_it(outside, capsys):
    folder = outside(evil="raise SystemExit('imported on the word of a file')")
    (folder / "recipe.yaml").write_text("plugins: [evil]\ndata: {train: a.json, val: b.json}\n")
    line = refused(capsys, "train", "recipe.yaml")
    assert "recipe.yaml: it needs the plugin 'evil', which is neither installed nor given" in line
    assert "evil" not in sys.modules
    sys.path.append(str(folder))
    with pytest.raises(UserError, match="needs the plugin 'evil'"):
        parse_recipe({"plugins": ["evil"], "data": {"train": "a", "val": "b"}})
    assert "evil" not in sys.modules


@pytest.mark.parametrize("wrong", ["parts", "{parts: 1}", "[1]"])
def test_a_wrong_list_of_plugins_is_one_line(outside, capsys, wrong):
    (outside() / "recipe.yaml").write_text(f"plugins: {wrong}\ndata: {{train: a.json, val: b.json}}\n")
    assert "plugins" in refused(capsys, "train", "recipe.yaml")


def test_the_keys_of_a_plugins_transform_are_checked(outside, install, capsys):
    folder = outside()
    install("my-parts", "1.0", parts=PARTS)
    for extra, words in (
        ("{name: darker, buy: 0.5}", "unknown key 'buy'; did you mean 'by'"),
        ("{name: darker}", "'by' is missing"),
        ("{name: drker, by: 0.5}", "no transform 'drker'"),
        ("{by: 0.5}", "name"),
    ):
        (folder / "recipe.yaml").write_text(f"data: {{train: a, val: b}}\naugment: {{extra: [{extra}]}}\n")
        line = refused(capsys, "train", "recipe.yaml", "--print-config")
        assert words in line
        assert "recipe.yaml" in line


def test_a_recipe_with_transforms_is_written_out_and_read_back(outside, install, capsys):
    folder = outside()
    install("my-parts", "1.0", parts=PARTS)
    text = "data: {train: a, val: b}\naugment: {extra: [{name: darker, by: 0.5}, {name: mosaic, at: start, size: [64, 64]}]}\n"
    (folder / "recipe.yaml").write_text(text)
    recipe = load_recipe(folder / "recipe.yaml")
    assert main(["train", "recipe.yaml", "--print-config"]) == 0
    (folder / "again.yaml").write_text(capsys.readouterr().out)
    assert load_recipe(folder / "again.yaml") == recipe
    assert [step.build() for step in recipe.augment.extra][1].size == (64, 64)  # type: ignore[attr-defined]


def test_transforms_stand_where_they_are_put(outside, install):
    from flyspeck.data.readers import read_annotations
    from flyspeck.train.inputs import augmentation

    folder = outside()
    install("my-parts", "1.0", parts=PARTS)
    write_tiny_set(folder / "set")
    extra = [{"name": "darker", "by": 0.5}, {"name": "resize", "at": "start", "size": [64, 64]}]
    content = {"data": {"train": "a", "val": "b"}, "augment": {"flip": 0.5, "extra": extra}}
    steps = augmentation(parse_recipe(content).augment, read_annotations(folder / "set/train.json")).steps  # type: ignore[attr-defined]
    assert [type(step).__name__ for step in steps] == ["Resize", "RandomFlip", "Darker"]
