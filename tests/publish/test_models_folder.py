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
from flyspeck.evaluate.score_curve import ScoreCurve
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
    curve = ScoreCurve.of(description)
    assert curve is not None
    assert f"`--score auto`, from {curve.best.score:.2f} on" in card
    assert f"is of {curve.images} of the" in card


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_predict_takes_the_folder_and_knows_what_its_scores_are_worth(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "scenes", num_images=1, seed=0, height=128, width=160)
    out = tmp_path / "found"
    folder = str(path.parent)  # as in a clone
    assert main(["predict", str(tmp_path / "scenes"), "--model", folder, "--out", str(out), "--draw", "0"]) == 0
    assert "best F1 in validation: precision" in capsys.readouterr().out
    names = {category["name"] for category in json.loads((out / "images.json").read_text())["categories"]}
    assert names == set(load_weights(path)[1]["classes"])
    assert isinstance(json.loads((out / "detections.json").read_text()), list)
