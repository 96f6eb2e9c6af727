"""The page of a run that trains: what it says while, after and when killed; that it reaches nothing; that it stays small."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.cli.main import main
from flyspeck.files import read_records
from flyspeck.train.curves import POINTS, Curves
from flyspeck.train.progress import Fanout, RunFiles

STEP = {"losses": {"cls": 0.5, "box": 0.25}, "images_per_second": 20.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 6
        return self.now


def content(folder: Path) -> dict[str, Any]:
    text = (folder / "curves.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def reloads(folder: Path) -> bool:
    return 'http-equiv="refresh"' in (folder / "curves.html").read_text(encoding="utf-8")


def series(folder: Path, title: str) -> dict[str, tuple[list[float], list[float]]]:
    (chart,) = [one for one in content(folder)["charts"] if one["title"] == title]
    return {one["name"]: (one["x"], one["y"]) for one in chart["series"]}


def page(folder: Path, **options: Any) -> Curves:
    return Curves(folder, **{"name": "run", "epochs": 3, "best": "ap50_tiny", "clock": Clock(), **options})


def test_a_run_as_it_goes(tmp_path: Path) -> None:
    curves = page(tmp_path)
    curves.start(total_steps=30, done_steps=0)
    assert content(tmp_path)["words"].startswith("Training, before the first line of the log")
    curves.step({"step": 5, "epoch": 1, "lr": 0.01, **STEP})
    curves.step({"step": 10, "epoch": 1, "lr": 0.005, **STEP})
    curves.epoch({"step": 10, "epoch": 1, "losses": STEP["losses"], "metrics": {"ap50_tiny": 0.2, "ap50_all": -1.0}})
    found = content(tmp_path)
    assert found["words"].startswith("Training: epoch 1 of 3, step 10 of 30, 0:0")
    assert "left, 20.0 images/s; " in found["words"]
    assert found["share"] == pytest.approx(1 / 3)
    assert reloads(tmp_path)
    assert series(tmp_path, "Loss") == {
        "at each line of the log": ([5, 10], [0.75, 0.75]),
        "mean of an epoch": ([10], [0.75]),
    }
    assert series(tmp_path, "Losses by part") == {"cls": ([5, 10], [0.5, 0.5]), "box": ([5, 10], [0.25, 0.25])}
    assert series(tmp_path, "Validation") == {"ap50_tiny": ([1], [20.0]), "ap50_all": ([], [])}  # -1: nothing to find
    assert series(tmp_path, "Learning rate") == {"lr": ([5, 10], [0.01, 0.005])}
    curves.close()
    assert content(tmp_path)["state"] == "stopped"
    assert not reloads(tmp_path)
    curves.finish()
    assert content(tmp_path)["words"].startswith("Done: epoch 1 of 3, step 10 of 30; ")


def test_by_the_clock_and_ended_early(tmp_path: Path) -> None:
    curves = page(tmp_path)
    curves.start(total_steps=0, done_steps=0)
    curves.step({"step": 5, "epoch": 1, "lr": 0.01, "share": 0.25, "seconds_left": 90.0, **STEP})
    found = content(tmp_path)
    assert found["words"].startswith("Training: epoch 1, step 5, 0:01:30 left, 20.0 images/s; ")
    assert found["share"] == 0.25
    curves.epoch({"step": 6, "epoch": 1, "losses": {}, "stopped": "no gain"})
    assert content(tmp_path)["remarks"] == ["Ended before its time: no gain"]


def test_what_was_logged_before_a_stop_stays(tmp_path: Path) -> None:
    for done in (0, 4):
        curves = page(tmp_path)
        both = Fanout([RunFiles(tmp_path), curves])
        both.start(total_steps=8, done_steps=done)
        for step in range(done + 1, done + 6):  # the fifth is beyond the checkpoint
            both.step({"step": step, "epoch": 1, "lr": 0.01, **STEP})
    assert series(tmp_path, "Learning rate")["lr"][0] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_an_epoch_that_is_evaluated_again_is_there_once(tmp_path: Path) -> None:
    """A run that is killed between an epoch's line and its checkpoint evaluates it again when it is resumed."""
    for done, again in ((0, 0.25), (8, 0.5)):
        both = Fanout([RunFiles(tmp_path), curves := page(tmp_path)])
        both.start(total_steps=12, done_steps=done)
        for step, value in ((4, 0.125), (8, again)):
            if step >= done:
                both.epoch({"step": step, "epoch": step // 4, "losses": {"cls": 1.0}, "metrics": {"ap50_tiny": value}})
    found = [(r["epoch"], r["metrics"]["ap50_tiny"]) for r in read_records(tmp_path / "metrics.jsonl")]
    assert found == [(1, 0.125), (2, 0.5)]
    assert [r["metrics"]["ap50_tiny"] for r in curves.of_epochs] == [0.125, 0.5]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_a_finished_run_says_what_its_curves_say(tmp_path: Path) -> None:
    curves = page(tmp_path)
    curves.start(total_steps=12, done_steps=0)
    for epoch in range(1, 13):
        metrics = {"ap50_tiny": 0.05 * epoch}
        curves.epoch({"step": epoch, "epoch": epoch, "losses": {"cls": 1.0}, "metrics": metrics})
    assert content(tmp_path)["remarks"] == []
    curves.finish()
    (said,) = content(tmp_path)["remarks"]
    assert "still rising" in said


def test_a_long_run_s_page_stays_small_and_a_name_is_no_markup(tmp_path: Path) -> None:
    curves = page(tmp_path, name="</script><script>alert(1)</script>", clock=lambda: 1e9)
    curves.start(total_steps=0, done_steps=0)
    for step in np.arange(1, 5 * POINTS + 1).tolist():
        curves.step({"step": step, "epoch": 1, "lr": 0.01, "share": 0.5, "seconds_left": 1.0, **STEP})
    curves.close()
    text = (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "alert(1)</script>" not in text
    assert content(tmp_path)["name"] == "</script><script>alert(1)</script>"
    steps = series(tmp_path, "Learning rate")["lr"][0]
    assert steps[0] == 1
    assert steps[-1] == 5 * POINTS
    assert len(steps) <= 2 * POINTS + 2


def test_the_page_reaches_nothing(tmp_path: Path) -> None:
    page(tmp_path).start(total_steps=1, done_steps=0)
    text = (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(
        r"""(?:src|href)\s*=|url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org/2000/svg)""", text
    )


def test_a_training_leaves_it_done(make_recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from flyspeck.train.run import train

    with caplog.at_level(logging.INFO, logger="flyspeck"):
        train(make_recipe(train={"epochs": 5, "lr": 0.02}), tmp_path / "run")
    assert content(tmp_path / "run")["state"] == "done"
    assert f"curves, while it trains: {tmp_path / 'run' / 'curves.html'}" in caplog.messages
    said = content(tmp_path / "run")["remarks"]
    assert [text for text in caplog.messages if "train longer" in text or "over-fitted" in text] == said
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    for line in said:
        assert line in (tmp_path / "r.html").read_text()
