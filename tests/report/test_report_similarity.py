"""The similarity of student and teacher through a training, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flyspeck.report import build_report
from flyspeck.report.similarity import similarity_history


def records(values: list[float]) -> tuple[dict, ...]:
    """Epoch records as a distillation writes them."""
    return tuple(
        {"kind": "epoch", "epoch": e, "losses": {"box": 1.0}, "observed": {"similarity_P2": v, "similarity_P3": v / 2}}
        for e, v in enumerate(values, 1)
    )


def test_history_by_level() -> None:
    found = similarity_history([*records([0.2, 0.6]), {"epoch": 3, "losses": {}}])
    assert found == {"P2": [(1.0, 0.2), (2.0, 0.6)], "P3": [(1.0, 0.1), (2.0, 0.3)]}
    assert similarity_history([{"epoch": 1, "observed": {"other": 1.0}}]) == {}


def test_a_report_of_a_distilled_run_draws_its_levels(runs, tmp_path: Path) -> None:
    plain, student = runs[0], replace(runs[1], history=records([0.25, 0.75]))
    text = build_report([plain, student], tmp_path / "report.html", title="both").read_text(encoding="utf-8")
    assert text.count("similarity to the teacher, ") == 1
    assert "similarity to the teacher, poor &lt;b&gt;&amp;" in text
    row = text.index("Similarity to the teacher: poor", text.index("<caption>Similarity"))
    assert [text.find(cell, row) > 0 for cell in ("P2", "0.25", "0.75", "P3", "0.12")] == [True] * 5
