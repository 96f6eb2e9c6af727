"""What one run finds and another does not: counts by hand, and the section of the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.report import RunReport, build_report
from flyspeck.report.diagnosis import diagnose
from flyspeck.report.gains import gains


def run(annotations: Annotations, name: str, rows: list[int]) -> RunReport:
    """A run that finds the given objects exactly, and nothing else."""
    detections = DetectionTable.from_columns(
        image_index=annotations.image_index[rows],
        boxes=annotations.boxes[rows],
        scores=np.full(len(rows), 0.9),
        labels=annotations.labels[rows],
    )
    return RunReport(name, annotations, detections, evaluate(annotations, detections, "flyspeck"))


@pytest.fixture
def four(tmp_path: Path) -> Annotations:
    """Four objects of 4, 4, 10 and 25 px in one of two images."""
    corners = [(10, 10, 4), (40, 10, 4), (80, 40, 10), (120, 90, 25)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 160} for i in (1, 2)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, y, w, w], "area": w * w, "iscrowd": 0}
            for n, (x, y, w) in enumerate(corners, 1)
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "gt.json")


def test_gains_by_hand(four: Annotations) -> None:
    """One finds the 10 and the 25 px, the other a tiny one and the 25: a tiny gained, the 10 lost, 25 both, one neither."""
    found = gains(diagnose(run(four, "x1", [2, 3])), diagnose(run(four, "x2", [0, 3])))
    assert found["2-8"] == {"both": 0, "gained": 1, "lost": 0, "neither": 1}
    assert found["8-12"] == {"both": 0, "gained": 0, "lost": 1, "neither": 0}
    assert found["20-32"] == {"both": 1, "gained": 0, "lost": 0, "neither": 0}
    assert sum(found["12-20"].values()) == sum(found["32+"].values()) == 0


def test_the_page_has_a_chart_for_every_further_run(four: Annotations, tmp_path) -> None:
    made = [run(four, "x1", [2, 3]), run(four, "x2", [0, 3]), run(four, "x4", [0, 1, 3])]
    text = build_report(made, tmp_path / "r.html", images=0).read_text(encoding="utf-8")
    assert 'id="gains"' in text
    assert "Objects by what finds them: x4 against x1" in text
    assert "<td>+100.0</td>" in text  # of the two tiny ones x4 gains both
    alone = build_report(made[:1], tmp_path / "one.html", images=0).read_text(encoding="utf-8")
    assert 'id="gains"' not in alone


def test_runs_on_other_objects_are_refused(four: Annotations, runs) -> None:
    with pytest.raises(ValueError, match="different objects"):
        gains(diagnose(run(four, "x1", [2])), diagnose(runs[0]))
