"""The demo runs from nothing to its page. How good it is, and how long it takes, is for the slow run to show."""

from __future__ import annotations

import json
import os
import re
from multiprocessing import connection

import pytest
import yaml

from flyspeck.cli.demo import _left, _too_short
from flyspeck.cli.demo_recipe import NEW, START, STARTED, form_at_hand
from flyspeck.cli.main import main
from flyspeck.train.config import parse_recipe
from flyspeck.train.launch import processes_for, train_together


def test_a_very_short_demo_goes_all_the_way(tmp_path, capsys):
    out = tmp_path / "demo"
    small = ["--num-images", "8", "--num-val-images", "4", "--epochs", "1", "--big", "300x400"]
    assert main(["demo", "--out", str(out), *small]) == 0
    said = capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Protocol" in page
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert sections[:2] == ["opening-1", "numbers"], "the large picture comes first"
    assert "One large image" in page
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
    """One processor would have painted for 50 s: predicting gets 15 s, and five at least."""
    assert _left(4.5, 33.0, 50.0) == pytest.approx(4.5 - 48 / 60)
    assert _left(4.5, 66.0, 100.0) == pytest.approx(4.5 - 96 / 60)
    assert _left(4.5, 33.0, 4.0) == pytest.approx(4.5 - 38 / 60)
    assert _left(0.1, 33.0, 50.0) == 0.5


@pytest.mark.parametrize("form", [STARTED, NEW])
@pytest.mark.parametrize("length", ["minutes: 3.67", "epochs: 21"])
def test_a_demo_has_a_sound_recipe(form, length):
    recipe = parse_recipe(yaml.safe_load(form.recipe(length=length, precision="fp32", seed=3)))
    assert recipe.train.seed == 3
    assert (recipe.model.start or "") == form.start


def test_a_demo_starts_from_a_trained_detector_where_one_is_at_hand(monkeypatch, tmp_path):
    """A wheel alone brings none: it begins with random weights, and says so."""
    assert form_at_hand() is STARTED
    assert "CC BY-SA" in STARTED.words()
    monkeypatch.setattr("flyspeck.train.start_names.shipped", dict)
    assert form_at_hand() is NEW
    assert START in NEW.words()


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "batch", "processes"),
    [
        (1, 16, 4, 1),
        (2, 16, 4, 2),
        (3, 16, 4, 2),
        (64, 64, 4, 4),
        (64, 4, 4, 2),
        (2, 1, 4, 1),
        (4, 16, 3, 3),
        (2, 16, 5, 1),
    ],
)
def test_as_many_processes_share_a_batch_as_divide_it(cpus, gigabytes, batch, processes):
    assert processes_for(cpus, gigabytes * 10**9, batch) == processes


def test_where_processes_cannot_go_on_together_one_goes_on(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("flyspeck.train.launch.train_together", lambda *words, **more: asked.append(more) or False)
    monkeypatch.setattr("flyspeck.train.launch.processes_for", lambda *words: 2)
    monkeypatch.setattr("flyspeck.cli.demo._left", lambda *words: 0.02)
    small = ["--num-images", "8", "--num-val-images", "4", "--minutes", "0.1", "--big", "300x400", "--device", "cpu"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *small]) == 0
    assert "one process goes on" in capsys.readouterr().out
    assert asked[0]["processes"] == 2
    assert (tmp_path / "demo" / "run" / "evaluation.json").is_file()


@pytest.mark.slow
def test_two_processes_train_a_demo(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("flyspeck.train.launch.processes_for", lambda *words: 2)
    small = ["--num-images", "8", "--num-val-images", "4", "--minutes", "0.1", "--big", "1500x1500", "--device", "cpu"]
    assert main(["demo", "--out", str(tmp_path / "demo"), *small]) == 0
    assert "could not go on" not in capfd.readouterr().out
    assert json.loads((tmp_path / "demo" / "run" / "environment.json").read_text())["processes"] == 2


class _EndsWhileLookedAt:
    """A process that is found running when it is asked first, and ended from then on."""

    def __init__(self, **told):
        self._asked, (self.sentinel, self._other) = 0, os.pipe()
        os.close(self._other)  # so that waiting for it returns at once, as for a process that has ended

    @property
    def exitcode(self):
        self._asked += 1
        return None if self._asked == 1 else 0

    def start(self): ...

    terminate = start

    def join(self, timeout=None): ...


def test_processes_that_end_together_are_not_waited_for_for_ever(tmp_path, monkeypatch):
    """All are ended when what is to be waited for is listed: a wait for nothing never returns."""

    class Context:
        Process = _EndsWhileLookedAt

    waited = []
    real = connection.wait
    monkeypatch.setattr("flyspeck.train.launch.multiprocessing.get_context", lambda name: Context)
    monkeypatch.setattr("flyspeck.train.launch.connection.wait", lambda what: waited.append(len(what)) or real(what, 5))
    assert train_together(tmp_path / "recipe.yaml", tmp_path / "run", processes=2)
    assert all(waited)


@pytest.mark.slow
def test_processes_that_fail_are_told_of(tmp_path, capfd):
    """A recipe that cannot be read: each ends with its line, and none waits for the other."""
    (tmp_path / "recipe.yaml").write_text("data: {}\n")
    assert not train_together(tmp_path / "recipe.yaml", tmp_path / "run", processes=2)
    assert capfd.readouterr().err.count("error: ") == 1


def test_a_training_that_was_too_short_is_said_and_how_long_a_fair_one_takes():
    """Of four epochs fewer than are fair, at 30 s each, two minutes are missing."""
    history = [{"seconds": 30.0}] * 4
    assert "`--minutes 6`" in _too_short(history, 4.0, 8)
    assert "4 of the 8 times" in _too_short(history, 4.0, 8)
    assert _too_short(history, 4.0, 4) == ""
    assert "0 of the" in _too_short([], 4.0, 8)


@pytest.mark.slow
def test_the_demo_finds_half_of_the_tiny_things(tmp_path):
    """Where it starts from a trained detector, as in a clone."""
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    rows = json.loads((out / "run" / "evaluation.json").read_text())["rows"]
    (tiny,) = [
        r["value"]
        for r in rows
        if r["metric"] == "AP" and r.get("iou") == 0.5 and r.get("area") == "tiny" and "cls" not in r
    ]
    assert tiny >= 0.5
