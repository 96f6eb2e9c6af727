"""`eval` of a model, with baselines and a page; reports of detections that no run of ours made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.report import read_run, read_runs
from flyspeck.train.config import parse_recipe
from flyspeck.train.run import train
from tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the tiny set beside it."""
    folder = write_tiny_set(tmp_path_factory.mktemp("set"))
    recipe = parse_recipe(
        {
            "data": {"train": str(folder / "train.json"), "val": str(folder / "val.json")},
            "model": {"name": "fcos:bh_resnet14", "width": 0.25, "channels": 16, "norm": "bn", "levels": "2-5"},
            "train": {"epochs": 2, "batch_size": 4, "lr": 0.003, "optimizer": "adamw", "workers": 0},
        }
    )
    train(recipe, folder / "run")
    return folder / "run"


def test_a_model_is_measured_as_its_training_measured_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "numbers.json", tmp_path / "page.html"
    line = ["eval", "--model", str(run), "--data", str(run.parent / "val.json"), "--out", str(out)]
    assert main([*line, "--baselines", "--html", str(page), "--bootstrap", "20"]) == 0
    written, own = json.loads(out.read_text()), json.loads((run / "evaluation.json").read_text())
    for new, old in zip(written["rows"], own["rows"], strict=True):
        assert new["value"] == pytest.approx(old["value"], abs=2e-3), new
    assert [base["key"] for base in written["baselines"]] == ["background", "count", "boxes", "blobs"]
    text, said = capsys.readouterr()
    assert "flyspeck-eval-" not in said  # a folder that is gone is nothing to look into
    assert "baselines, without a network" in text
    assert "all background" in page.read_text()
    # The same file of detections: named by its folder, in a comparison with itself.
    found = str(run / "detections.json")
    assert main(["eval", "--gt", str(run.parent / "val.json"), "--dt", found, "--against", found]) == 0
    assert "run less run" in capsys.readouterr().out


def test_detections_of_any_program_are_reported(run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.json"
    theirs.write_bytes((run / "detections.json").read_bytes())
    gt, page = str(run.parent / "val.json"), tmp_path / "page.html"
    assert main(["report", str(theirs), str(run), "--gt", gt, "--out", str(page), "--draw", "2"]) == 0
    text = page.read_text()
    assert "theirs" in text
    assert "p-value" in text
    foreign, ours = read_runs([theirs, run], gt=gt)
    assert [row["value"] for row in foreign.evaluation.rows] == [row["value"] for row in ours.evaluation.rows]
    assert read_run(theirs, gt=gt).name == "theirs"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["eval", "--dt", "x.json"], "nothing to score"),
        (["eval", "--model", "m", "--gt", "gone.json"], "no such file"),
        (["eval", "--gt", "GT", "--dt", "DT", "--train", "GT"], "add --baselines"),
        (["eval", "--gt", "GT", "--dt", "DT", "--score", "7"], "--score: a score of 7; give 0 to 1"),
        (["eval", "--gt", "GT", "--dt", "ALONE", "--baselines"], "name it with --train"),
        (["eval", "--gt", "GT", "--dt", "DT", "--model", "RUN"], "a model and detections"),
        (["report", "ALONE"], "give --gt"),
        (["report", "gone.json"], "no such file"),
        (["report", "ALONE", "--gt", "GT", "--baselines"], "name it with --train"),
    ],
)
def test_what_is_missing_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: list[str], words: str
) -> None:
    alone = tmp_path / "alone.json"
    alone.write_text("[]")
    known = {"GT": run.parent / "val.json", "DT": run / "detections.json", "ALONE": alone, "RUN": run}
    assert main([str(known.get(word, word)) for word in line] + (["--out", str(tmp_path / "o")])) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1, told


def test_a_run_without_weights_still_needs_its_detections(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {}")
    with pytest.raises(UserError, match="not finished"):
        read_run(tmp_path)
