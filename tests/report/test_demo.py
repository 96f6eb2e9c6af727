"""The demo runs from nothing to its page. How good it is, and how long it takes, is for the slow run to show."""

from __future__ import annotations

import json

import pytest

from flyspeck.cli.main import main


def test_a_very_short_demo_goes_all_the_way(tmp_path, capsys):
    out = tmp_path / "demo"
    small = ["--num-images", "8", "--num-val-images", "4", "--epochs", "1", "--big", "300x400"]
    assert main(["demo", "--out", str(out), *small]) == 0
    said = capsys.readouterr().out
    assert "Protocol" in (out / "report.html").read_text(encoding="utf-8")
    assert "One large image" in (out / "report.html").read_text(encoding="utf-8")
    assert "The same with your own images" in said
    assert (out / "large" / "annotated.png").is_file()
    assert json.loads((out / "run" / "evaluation.json").read_text())["protocol"] == "flyspeck"
    # what it learnt from and what it is measured on are different scenes
    names = [
        {i["file_name"] for i in json.loads((out / s / "annotations.json").read_text())["images"]}
        for s in ("train", "val")
    ]
    assert not names[0] & names[1]
    assert main(["demo", "--out", str(out), *small]) == 2
    assert "there already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_finds_half_of_the_tiny_things(tmp_path):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    rows = json.loads((out / "run" / "evaluation.json").read_text())["rows"]
    (tiny,) = [
        r["value"]
        for r in rows
        if r["metric"] == "AP" and r.get("iou") == 0.5 and r.get("area") == "tiny" and "cls" not in r
    ]
    assert tiny >= 0.5
