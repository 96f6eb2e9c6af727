"""The demo runs from nothing to its page. How good it is, and how long it takes, is for the slow run to show."""

from __future__ import annotations

import json

import pytest
import yaml

from flyspeck.cli.demo import BIG, FAIR_EPOCHS, RECIPE, _left, _too_short
from flyspeck.cli.main import main
from flyspeck.train.config import parse_recipe


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


def test_the_training_gets_what_the_rest_leaves():
    """Of four and a half minutes, painting took 33 s: the large scene takes half as much, on a fast machine and on a slow one."""
    assert _left(4.5, 33.0, BIG) == pytest.approx(4.5 - 49.5 / 60)
    assert _left(4.5, 66.0, BIG) == pytest.approx(4.5 - 99 / 60)
    assert _left(4.5, 33.0, (300, 400)) == pytest.approx(4.5 - 38 / 60)  # five seconds at least
    assert _left(0.1, 33.0, BIG) == 0.5
    for length in ("minutes: 3.67", "epochs: 21"):
        content = yaml.safe_load(RECIPE.format(length=length, precision="fp32", seed=3))
        assert parse_recipe(content).train.seed == 3


def test_a_training_that_was_too_short_is_said_and_how_long_a_fair_one_takes():
    """Of four epochs fewer than are fair, at 30 s each, two minutes are missing."""
    history = [{"seconds": 30.0}] * (FAIR_EPOCHS - 4)
    assert "`--minutes 6`" in _too_short(history, 4.0)
    assert f"{FAIR_EPOCHS - 4} of the {FAIR_EPOCHS} times" in _too_short(history, 4.0)
    assert _too_short(history * 2 + history[:2], 4.0) == ""
    assert "0 of the" in _too_short([], 4.0)


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
