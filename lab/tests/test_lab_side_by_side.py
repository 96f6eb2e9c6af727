"""Rows by two processes at once: all of them once, in the order of what they need, and what fails stops nothing else."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import Timeout

from flyspeck.errors import UserError
from flyspeck_lab import side_by_side
from flyspeck_lab.cli.main import main
from flyspeck_lab.results import read_results, write_results
from flyspeck_lab.table import load_table

TABLE: dict[str, Any] = {
    "name": "beside",
    "title": "Rows side by side",
    "source": "nowhere",
    "sets": {"squares": {"train": "squares/train.json", "val": "squares/val.json", "make": "the test"}},
    "grades": {
        "cpu": {"base": "base.yaml", "data": "squares", "rows": ["plain", "again", "lost", "after"]},
        "other": {"base": "base.yaml", "data": "squares"},
    },
    "rows": [
        {"name": "plain", "seeds": [0, 1]},
        {"name": "again", "set": {"model.weights": "${run:plain}/best.safetensors", "train.epochs": 1}},
        {"name": "lost", "set": {"model.weights": "nowhere.safetensors"}},
        {"name": "after", "set": {"model.weights": "${run:lost}/best.safetensors"}},
        {"name": "elsewhere"},
    ],
    "claims": [{"text": "training on helps", "row": "again", "than": "plain", "metric": "ap50_all"}],
}


def test_two_processes_do_all_that_can_be_done(
    squares: Path, base: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    (squares / "base.yaml").write_text(yaml.safe_dump(base))
    (squares / "beside.yaml").write_text(yaml.safe_dump(TABLE))
    words = ["run", str(squares / "beside.yaml"), "--data", str(squares / "data"), "--runs", str(squares / "runs")]
    words += ["--results", str(squares / "results"), "--threads", "1"]

    assert main([*words, "--processes", "2"]) == 0
    told = capfd.readouterr()
    assert "3 done, 2 left" in told.out
    assert "beside cpu/lost/0 failed: " in told.err
    assert "after" not in told.err
    results = read_results(squares / "results", "beside")
    assert sorted((e.row, e.seed) for e in results.entries) == [("again", 0), ("plain", 0), ("plain", 1)]
    assert results.verdicts[0].verdict != "not run"

    # Results are here and their weights are not: what a row builds on is run again, and only that.
    results.entries = [entry for entry in results.entries if entry.row != "again"]
    shutil.rmtree(squares / "runs" / "beside" / "cpu")
    write_results(squares / "results", results)
    assert main([*words, "--rows", "again", "--seeds", "1", "--processes", "2"]) == 0
    assert "1 done, 0 left" in capfd.readouterr().out


def test_a_grade_names_rows_that_are_there(squares: Path) -> None:
    (squares / "beside.yaml").write_text(yaml.safe_dump(TABLE))
    table = load_table(squares / "beside.yaml")
    assert [row.name for row in table.rows_of("cpu")] == ["plain", "again", "lost", "after"]
    assert len(table.rows_of("other")) == 5
    wrong = {**TABLE, "grades": {"cpu": {"base": "base.yaml", "data": "squares", "rows": ["plane"]}}}
    (squares / "beside.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(UserError, match="no row in a grade called 'plane'"):
        load_table(squares / "beside.yaml")


def test_a_gpu_without_its_service_of_several_processes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "pipes"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not side_by_side._takes_turns()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert side_by_side._takes_turns()
    (tmp_path / "pipes").mkdir()
    assert not side_by_side._takes_turns()


def test_what_a_dead_process_had_taken_is_waited_for_by_nobody(tmp_path: Path) -> None:
    for name, text in (("its-0", "taken 7"), ("done-0", "done"), ("another-1", "taken 71")):
        (tmp_path / name).write_text(text)
    side_by_side._give_up(tmp_path, 7)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "its-0": "failed",
        "done-0": "done",
        "another-1": "taken 71",
    }


def _hold(taken: Path, held: Any) -> None:
    with side_by_side.turn(taken):
        held.set()
        time.sleep(600)


def test_a_process_that_dies_while_it_has_the_turn_stops_no_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(Timeout):
        side_by_side.turn(tmp_path).acquire(timeout=0.2)
    process.kill()
    process.join()
    with side_by_side.turn(tmp_path).acquire(timeout=30):
        pass
