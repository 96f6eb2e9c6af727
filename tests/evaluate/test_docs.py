"""The examples of docs/evaluation.md run as they stand."""

from __future__ import annotations

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
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for line in blocks["bash"].strip().splitlines():
        words = shlex.split(line, comments=True)
        assert main(words[1:]) == 0, line
    assert (tmp_path / "numbers.json").is_file()
    exec(compile(blocks["python"], str(PAGE), "exec"), {})
    assert "optimal LRP" in capsys.readouterr().out


def test_every_protocol_is_documented() -> None:
    from flyspeck.evaluate import PROTOCOLS

    text = PAGE.read_text(encoding="utf-8")
    for name in PROTOCOLS:
        assert name in text or f"`{name.removeprefix('tinybenchmark_ap')}`" in text, name
