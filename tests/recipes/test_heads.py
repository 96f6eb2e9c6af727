"""Every recipe's head names its commands, complete; with a perfect detector each of them runs and finds everything."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fakes import FOLDERS
from heads import RECIPES, ROOT, all_commands, commands, head_lines, name_of, prose
from perfect import VERBS, path_of, walk

from flyspeck.evaluate import PROTOCOLS
from flyspeck_lab.prepare import SETS
from verb_tree import parse

PAPERS = [path for path in RECIPES if "papers" in path.relative_to(ROOT).parts]
OWN = {
    "tinyperson": {"tinybenchmark_ap"},
    "citypersons": {"citypersons_mr"},
    "tiny_citypersons": {"flyspeck_tinyperson"},
    "coco": {"coco_bbox"},
    "coco100": {"coco_bbox", "tinycoco"},
    "voc": {"voc_devkit_py"},
    "visdrone": {"visdrone"},
    "dota": {"dota_v1.0_task2"},
    "widerface": {"widerface_val"},
}
"""Of each set, by its name for `prepare`, the protocol that its papers' numbers are of; two papers differ on COCO100."""
TRAINING = ("flyspeck train", "flyspeck distill")


def name(path: Path) -> str:
    return name_of(path).removeprefix("recipes/")


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_head_says_how_its_recipe_is_run(path: Path) -> None:
    said = commands(path)
    unknown = [" ".join(words) for words in said if not path_of(words)]
    assert unknown == [], "tests/recipes/perfect.py must know what these verbs do"
    verbs = [path_of(words) for words in said]
    assert any(verb in TRAINING and name_of(path) in words for verb, words in zip(verbs, said, strict=True))
    for words in said:
        given = parse(words, VERBS)
        assert "..." not in words, "a command is whole: without dots"
        assert given.get("protocol", "flyspeck") in PROTOCOLS
        assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    loose = re.sub(r"`[^`]*`", "", prose(path))
    assert re.findall(r"flyspeck(?:-lab)? [a-z]\w+", loose) == [], "a command is a line of its own, or within backticks"


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_a_papers_recipe_says_how_it_is_scored(path: Path) -> None:
    said = commands(path)
    assert any(path_of(words) == "flyspeck predict" for words in said)
    used = {parse(words, VERBS)["protocol"] for words in said if path_of(words) == "flyspeck eval"}
    prepared = [words[2] for words in said if path_of(words) == "flyspeck-lab prepare"]
    (of,) = prepared or ["widerface"]  # read as it is
    assert len(used) == 1
    assert used <= OWN[of]


def test_every_papers_set_of_boxes_has_its_protocol() -> None:
    assert set(OWN) == {name for name, known in SETS.items() if known.parts} | {"widerface"}


def folders_named(said: list[list[str]], path: Path) -> list[str]:
    """The folders of downloads that commands name, or the recipe itself."""
    text = " ".join(word for words in said for word in words) + path.read_text(encoding="utf-8")
    return [folder for folder in FOLDERS if re.search(rf"(?<![\w-]){re.escape(folder)}(?![\w-])", text)]


def lay_out(folder: Path, path: Path) -> list[list[str]]:
    """The recipes and the downloads that the head of `path` names, below `folder`; returns its commands."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    said = all_commands(path)
    for place in folders_named(said, path):
        FOLDERS[place](folder / place)
    return said


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_with_a_perfect_detector_every_command_runs_and_finds_all(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in lay_out(tmp_path, path):
        walk(words)


def test_the_dots_of_a_shortened_command_are_found(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(
        "# About.\n#   flyspeck predict a.json --model x \\\n#       --out y  # so\n# See `flyspeck eval`.\nname: a\n"
    )
    assert commands(recipe) == [["flyspeck", "predict", "a.json", "--model", "x", "--out", "y"]]
    assert prose(recipe) == "About. See `flyspeck eval`."
    assert len(head_lines(recipe)) == 4
