"""The recipes of the papers' sets read a set of that layout, after the commands that their own heads name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flyspeck.cli.main import main
from flyspeck.data.bands import PixelRule
from flyspeck.train.config import load_recipe
from flyspeck.train.inputs import read_sets, training_loader
from flyspeck_lab.cli.main import main as lab
from flyspeck_lab.prepare import SETS
from paper_sets import MAKERS

ROOT = Path(__file__).resolve().parents[2] / "recipes"
PAPERS = sorted((ROOT / "papers").rglob("*.yaml"))
PRETRAINING = re.findall(r"^flyspeck (pretrain .*)$", (ROOT / "papers" / "README.md").read_text("utf-8"), flags=re.M)
COMMANDS = {"flyspeck": main, "flyspeck-lab": lab}


def test_the_papers_sets_have_recipes() -> None:
    words = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "papers").rglob("*") if path.is_file())
    assert [name for name in SETS if name not in words] == []


def commands(recipe: Path) -> list[list[str]]:
    """The commands that make data in a recipe's head; a student's data is its teacher's.

    "(and …)" stands for the same command with the validation set.
    """
    text = recipe.read_text(encoding="utf-8")
    if recipe.stem.endswith("_student"):
        text = recipe.with_name(recipe.name.replace("student", "teacher")).read_text(encoding="utf-8")
    found = []
    for line, more in re.findall(r"^# +(flyspeck(?: data|-lab prepare) .*?)(  +\(and .*\))?$", text, flags=re.M):
        found += [line] + ([line.replace("train", "val")] if more else [])
    return [line.split() for line in found]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(ROOT / "papers")))
def test_a_papers_recipe_reads_its_set(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(path.parent, tmp_path / path.parent.relative_to(ROOT.parent))
    todo = commands(path)
    if not todo:  # WIDER FACE is read as it is
        MAKERS["widerface"](tmp_path / "data" / "widerface")
    for command in todo:
        program, verb, *words = command
        if verb == "prepare":
            MAKERS[words[0]](tmp_path / words[words.index("--root") + 1])
            words = [*words, "--anyway"]  # one image is not the whole set
        assert COMMANDS[program]([verb, *words]) == 0, command
    recipe = load_recipe(tmp_path / path.relative_to(ROOT.parent))
    train, val = read_sets(recipe.data)
    assert train.num_boxes >= 1
    assert val.num_boxes >= 1
    assert train.classes == val.classes
    assert all(table.path(row).is_file() for table in (train, val) for row in range(len(table)))
    one = recipe.train.model_copy(update={"batch_size": 1, "accumulate": 1, "workers": 0})
    loader = training_loader(
        recipe.model_copy(update={"train": one}),
        train,
        rule=PixelRule(channels=recipe.data.channels or 3),
        rank=0,
        world_size=1,
        divisor=32,
    )
    images, targets, _ = next(loader.epoch(0))
    height, width = images.pixels.shape[-2:]
    if recipe.data.short_side is not None:
        assert min(height, width) >= recipe.data.short_side
    if recipe.augment.crop is not None:
        assert height <= recipe.augment.crop[0] + 31  # padded to a multiple of 32
        assert width <= recipe.augment.crop[1] + 31
    boxes = targets[0].boxes
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()


@pytest.mark.parametrize("line", PRETRAINING, ids=lambda line: line.split()[2])
def test_a_papers_pretraining_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, data, *options = line.split()
    MAKERS[Path(data).name.replace("cifar-100-python", "cifar100")](tmp_path / data)
    short = ["--epochs", "1", "--batch-size", "2", "--warmup-steps", "0", "--width", "0.25", "--out", "out"]
    assert main(["pretrain", "bh_resnet14", data, *options, *short]) == 0
    assert (tmp_path / "out" / "backbone.safetensors").is_file()
