"""Mistakes that are plain before anything slow is loaded are said at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys; from flyspeck.cli.main import main; code = main({words}); print(code, 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "gone.yaml"], "error: gone.yaml: no such recipe"),
        (["train", ".", "--minutes", "0"], "error: --minutes: 0 minutes; give a number above 0"),
        (
            ["auto", "a.json", "--out", "runs/a", "--minutes", "-1"],
            "error: --minutes: -1 minutes; give a number above 0",
        ),
    ],
    ids=["recipe", "train", "auto"],
)
def test_a_mistake_is_said_before_torch_is_loaded(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(words=words)], capture_output=True, text=True, check=True)
    assert done.stderr.startswith(said)
    assert done.stdout == "2 False\n"


def _coco(path: Path, count: int, *, ignored: bool | None = False) -> None:
    """A COCO json of `count` images that are not there, with a box each (None: with none)."""
    box = {"bbox": [1, 1, 3, 3], "area": 9, "category_id": 1, "iscrowd": 0, "ignore": int(bool(ignored))}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(count)],
        "annotations": [] if ignored is None else [{"id": i, "image_id": i, **box} for i in range(count)],
        "categories": [{"id": 1, "name": "a"}],
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("verb", ["auto", "init"])
def test_what_is_wrong_with_the_data_is_said_before_torch_is_loaded(tmp_path: Path, verb: str) -> None:
    (tmp_path / "cut.json").write_text('{"images": [')
    (tmp_path / "bytes.json").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    _coco(tmp_path / "none.json", 0)
    _coco(tmp_path / "bare.json", 5, ignored=None)
    _coco(tmp_path / "ignored.json", 5, ignored=True)
    _coco(tmp_path / "gone.json", 5)
    said = {
        "nowhere.json": "no such file",
        "cut.json": "not valid json",
        "bytes.json": "not UTF-8",
        "folder": "the folder holds no images and no annotations",
        "none.json": "no images; give annotations of some",
        "bare.json": "no object to learn",
        "ignored.json": "no object to learn: 5 ignore regions only",
        "gone.json": "5 of 5 images cannot be used",
    }
    code = "import sys; from flyspeck.cli.main import main\n"
    code += f"for name in {[str(tmp_path / name) for name in said]}:\n"
    code += f"    code = main([{verb!r}, name, '--out', {str(tmp_path / 'new')!r}, '--minutes', '3'])\n"
    code += "    if code != 2 or 'torch' in sys.modules: sys.exit(f'of {name}: {code}, {len(sys.modules)} modules')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    for line, words in zip(lines, said.values(), strict=True):
        assert line.startswith("error: ")
        assert words in line
    assert not (tmp_path / "new").exists()


def test_data_that_a_recipe_names_and_that_are_not_there_are_said_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "set.json").touch()
    recipe, broken = tmp_path / "a.yaml", tmp_path / "b.yaml"
    recipe.write_text("data: {train: set.json, val: gone.json}")
    broken.write_text("data: {train: set.json")
    for path, said in ((recipe, "gone.json: no such file or folder"), (broken, "b.yaml, line 1")):
        code = CODE.format(words=["train", str(path), "--set", "train.epochs=1"])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said in done.stderr
        assert done.stdout == "2 False\n"
