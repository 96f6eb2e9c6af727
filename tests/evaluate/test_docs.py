"""The examples of docs/evaluation.md run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from flyspeck.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def test_examples(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = shared / "golden" / "quirk_id0"
    for source, name in (("gt.json", "val.json"), ("det.json", "detections.json"), ("det.json", "other.json")):
        shutil.copyfile(case / source, tmp_path / name)
    shutil.copyfile(shared / "golden" / "merge_a" / "merged_gt.json", tmp_path / "whole.json")
    on_tiles = json.loads((shared / "golden" / "merge_a" / "det.json").read_text())
    on_tiles = [
        one | {"image_id": one["image_id"] + 1} for one in on_tiles
    ]  # the benchmark numbers tiles from 0, we from 1
    (tmp_path / "on_tiles.json").write_text(json.dumps(on_tiles))
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            continue
        for line in block.strip().splitlines():
            words = shlex.split(line, comments=True)
            assert main(words[1:]) == 0, line
    assert (tmp_path / "numbers.json").is_file()
    assert "optimal LRP" in capsys.readouterr().out


def test_every_protocol_is_documented() -> None:
    from flyspeck.evaluate import PROTOCOLS

    text = PAGE.read_text(encoding="utf-8")
    for name in PROTOCOLS:
        assert name in text or f"`{name.removeprefix('tinybenchmark_ap')}`" in text, name
