"""docs/how-to/extend.md from beginning to end, in a folder outside the package."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from flyspeck.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extend.md"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_files(folder: Path, only: str = "") -> None:
    """What the page calls a file: all of them, or that one."""
    for _, about, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        name = about.partition("file=")[2].strip()
        if name and only in ("", name):
            (folder / name).write_text(text, encoding="utf-8")


def commands() -> list[list[str]]:
    """The page's commands, without the word flyspeck."""
    blocks = [text for language, _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "bash"]
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def test_the_page_runs(outside, new_process, capsys):
    pytest.importorskip("timm")
    onnx = pytest.importorskip("onnx")
    folder = outside()
    write_files(folder)
    verbs = set()
    for arguments in commands():
        if arguments[0] == "predict":
            new_process()
        assert main(arguments) == 0, f"{arguments}\n{capsys.readouterr().err}"
        verbs |= {arguments[0] if arguments[0] != "data" else arguments[1]}
    assert verbs >= {"inspect", "train", "eval", "predict", "export", "explain", "profile", "report"}
    printed = capsys.readouterr().out
    assert "one_cell:small_mobilenet:bifpn" in printed
    named = ["my_backbone", "my_format", "my_head", "my_neck", "my_rest"]
    recipe = yaml.safe_load((folder / "runs/outside/recipe.yaml").read_text())
    assert [note.partition("==0+")[0] for note in recipe["plugins"]] == named
    environment = json.loads((folder / "runs/outside/environment.json").read_text())
    assert environment["plugins"] == recipe["plugins"]
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "outside.onnx").metadata_props}
    noted = [note for note in recipe["plugins"] if note.startswith(("my_backbone", "my_head", "my_neck"))]
    assert json.loads(metadata["flyspeck"])["plugins"] == noted
    assert {*named} & {*sys.modules} == {"my_format"}  # the exported file ran without the others
    found = [json.loads((folder / name / "detections.json").read_text()) for name in ("found", "found-without")]
    assert len(found[0]) > 100
    assert len(found[0]) == pytest.approx(len(found[1]), rel=0.01)  # some lie on the threshold
