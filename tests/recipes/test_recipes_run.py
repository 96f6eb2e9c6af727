"""The commands of recipes' heads, run: prepare, two steps of training, prediction and evaluation on fakes (see `limits`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes import FOLDERS
from heads import RECIPES, ROOT
from limits import limit_recipes
from perfect import VERBS, path_of, run
from test_heads import lay_out, name

from verb_tree import parse

QUICK = [ROOT / "recipes" / path for path in ("papers/002/tinaface_widerface_standard.yaml", "assigners/rfla.yaml")]


PRETRAINING = re.findall(
    r"^(flyspeck pretrain .*)$", (ROOT / "recipes/papers/README.md").read_text("utf-8"), flags=re.M
)


def run_head(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of a head in an empty folder, and what each leaves."""
    monkeypatch.chdir(folder)
    limit_recipes(monkeypatch)
    for words in lay_out(folder, path):
        run(words)
        verb, given = path_of(words), parse(words, VERBS)
        if verb == "flyspeck predict":
            assert any(given["out"].rglob("*.json")) or any(given["out"].rglob("*.txt")), words
    for weights in (folder / "runs").rglob("best.safetensors"):
        if (weights.parent / "detections.json").is_file():
            assert isinstance(json.loads((weights.parent / "detections.json").read_text("utf-8")), list)


@pytest.mark.parametrize("path", QUICK, ids=name)
def test_a_few_heads_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_head(path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if path not in QUICK], ids=name)
def test_every_head_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_head(path, tmp_path, monkeypatch)


@pytest.mark.parametrize("line", PRETRAINING, ids=lambda line: line.split("/")[1].split()[0])
def test_a_papers_pretraining_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = line.split()
    FOLDERS[words[3]](tmp_path / words[3])
    run(words)
    assert (tmp_path / words[words.index("--out") + 1] / "backbone.safetensors").is_file()
