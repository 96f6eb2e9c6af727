"""The terminal, drawings and files show the same objects: those from one score threshold on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.errors import counted
from flyspeck.evaluate.score_curve import KEY, ScoreCurve, ScorePoint
from flyspeck.infer import job

MODULE = """
import numpy as np

def three(windows):
    return [np.array([[5, 5, 9, 9, 0.9, 0], [20, 20, 24, 24, 0.4, 0], [30, 5, 34, 9, 0.1, 0]]) for _ in windows]
three.classes, three.tile = ["spot"], (48, 64)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"three_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    Image.fromarray(np.full((48, 64, 3), 60, np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:three"


def shown(capsys: pytest.CaptureFixture[str], model: str, *asked: str) -> tuple[int, str]:
    """Boxes that everything for people shows, and what was said."""
    formats = "coco,csv,geojson,yolo,gpkg,labelme"
    assert main(["predict", "a.png", "--model", model, "--out", "o", "--to", formats, "--overwrite", *asked]) == 0
    said = capsys.readouterr().out
    counts = {
        len(list(csv.DictReader(Path("o/detections.csv").read_text().splitlines()))),
        len(json.loads(Path("o/geojson/a.geojson").read_text())["features"]),
        len(Path("o/labels/a.txt").read_text().splitlines()),
        len(json.loads(Path("o/labelme/a.json").read_text())["shapes"]),
    }
    (count,) = counts
    assert f"{counted(count, 'box')}: spot {count}" in said
    assert f"o: {counted(count, 'box')} in 1 image" in said
    # The drawing: an outline of the class's colour around each box, and nothing else.
    drawn = np.asarray(Image.open("o/drawn/a.png").convert("RGB")).astype(int)[:48, :64]
    assert np.any(np.ptp(drawn, axis=2) > 30) == (count > 0)
    return count, said


def kept() -> int:
    return len(json.loads(Path("o/detections.json").read_text()))


def test_without_scores_of_a_validation(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    count, said = shown(capsys, model)
    assert (count, kept()) == (2, 3)
    assert "score >= 0.3 (the model does not say which is best)" in said
    assert shown(capsys, model, "--score", "0.5")[0] == 1
    assert shown(capsys, model, "--score", "0.08")[0] == 3
    assert shown(capsys, model, "--score", "0.5", "--keep-score", "0.3")[0] == 1
    assert kept() == 2
    shown(capsys, model, "--score", "0.05", "--keep-score", "0.3")
    assert kept() == 3  # never fewer than what is reported
    assert main(["predict", "a.png", "--model", model, "--out", "o", "--score", "precision=0.9"]) == 2
    assert "no scores of a validation set" in capsys.readouterr().err
    assert main(["predict", "a.png", "--model", model, "--out", "o", "--show-score", "0.9"]) == 2
    assert "--show-score of `flyspeck predict` is --score now" in capsys.readouterr().err


def test_with_scores_of_a_validation(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ScorePoint(0.8, 1.0, 0.5, 0.0), ScorePoint(0.35, 0.75, 0.75, 0.2), ScorePoint(0.1, 0.3, 0.9, 2.0)
    curve = ScoreCurve(points, 10, 20).to_dict()
    load = job.load_model

    def with_scores(*args: object, **rest: object) -> object:
        network, told = load(*args, **rest)  # type: ignore[arg-type]
        return network, {**told, KEY: curve}

    monkeypatch.setattr(job, "load_model", with_scores)
    count, said = shown(capsys, model)
    assert count == 2
    assert "score >= 0.35 (best F1 in validation: precision 0.75, recall 0.75)" in said
    assert shown(capsys, model, "--score", "precision=0.9")[0] == 1
    count, said = shown(capsys, model, "--score", "false-positives=5")
    assert count == 3
    assert "score >= 0.1 (false-positives=5 in validation: precision 0.30, recall 0.90)" in said
