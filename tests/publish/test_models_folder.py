"""The published detectors: each weights file is the one that its card describes, and `predict` takes it by its path."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from flyspeck.cli.main import main
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.train.checkpoint import load_weights

FOLDER = Path(__file__).resolve().parents[2] / "models"
MODELS = sorted(FOLDER.glob("*/model.safetensors"))


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for entry in value.values() for text in strings(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in strings(entry)]
    return [value] if isinstance(value, str) else []


def test_every_model_is_in_the_list_and_the_list_has_no_other() -> None:
    listed = re.findall(r"\]\((\w+)/README\.md\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.parent.name for path in MODELS]
    assert MODELS
    assert sum(path.stat().st_size for path in MODELS) < 25e6  # a clone should stay small


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_the_card_is_of_these_weights(path: Path) -> None:
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    state, description = load_weights(path)
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    assert f"Classes: {', '.join(description['classes'])}." in card
    for words in ("Weights' licence", "**Protocol**", "| tiny1 |", "## Recipe"):
        assert words in card, words
    assert [text for text in strings(description) if text.startswith("/")] == []


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_predict_takes_the_weights_by_their_path(path: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", num_images=1, seed=0, height=128, width=160)
    out = tmp_path / "found"
    assert main(["predict", str(tmp_path / "scenes"), "--model", str(path), "--out", str(out), "--draw", "0"]) == 0
    names = {category["name"] for category in json.loads((out / "images.json").read_text())["categories"]}
    assert names == set(load_weights(path)[1]["classes"])
    assert isinstance(json.loads((out / "detections.json").read_text()), list)
