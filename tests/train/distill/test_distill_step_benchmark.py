"""The benchmark of a distilled step runs and says what it measured."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "distill_step.py"


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    out = tmp_path / "cost.json"
    arguments = ["--runs", "1", "--batch", "1", "--method", "fine_grained", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(before)
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["method"] == "fine_grained"
    assert set(found["cpu_seconds"]) == {"teacher", "teacher_folded", "student", "distilled", "cached"}
    assert min(found["cpu_seconds"].values()) > 0
