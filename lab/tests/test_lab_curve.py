"""The trade-off of a run that chooses its factor, by the command line and from Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.train.dynamic_fit import open_run
from flyspeck_lab.cli.main import main
from flyspeck_lab.dynamic_curve import Candidates, cheapest_equal, lines, tradeoff
from flyspeck_lab.dynamic_run import oracle_places
from tiny_sets import train_dynamic, write_tiny_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two factors and a predictor."""
    folder = tmp_path_factory.mktemp("dpnet")
    train_dynamic(write_tiny_set(folder / "set"), folder / "run")
    return folder / "run"


def test_the_curve_on_the_command_line(run: Path, capsys: Any) -> None:
    assert main(["curve", str(run), "--random", "2", "--points", "3", "--bootstrap", "20", "--oracle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["random"]) == 2
    assert [p["factor"] for p in found["static"]] == [0.5, 0.25]
    assert found["curve"][0]["shares"] == {"0.5": 0.0, "0.25": 1.0}
    assert found["curve"][-1]["metric"] == pytest.approx(found["static"][0]["metric"])
    assert set(found["oracle"]) == {
        f"{a}, {b}" for a in ("guidance loss", "own loss") for b in ("least", "cheapest within T")
    }
    written = json.loads((run / "dpnet" / "evaluation.json").read_text())["rows"]
    routed = next(
        r["value"] for r in written if r.get("iou") == 0.5 and r.get("area") == "tiny" and r["metric"] == "AP"
    )
    assert found["chosen"]["metric"] == pytest.approx(routed, abs=1e-6)  # what was measured is what was put together
    assert (run / "dpnet" / "tradeoff.json").is_file()


def test_the_oracle_takes_a_slack(run: Path, capsys: Any) -> None:
    """With room for any loss, every image takes the cheapest factor; without room, the one with the least loss."""
    command = ["curve", str(run), "--random", "0", "--points", "2", "--bootstrap", "0", "--json"]
    assert main([*command, "--oracle", "--slack", "1000"]) == 0
    found = json.loads(capsys.readouterr().out)["oracle"]
    assert found["guidance loss, cheapest within slack 1000"]["shares"] == {"0.5": 0.0, "0.25": 1.0}
    assert found["own loss, cheapest within slack 1000"]["shares"] == {"0.5": 0.0, "0.25": 1.0}
    assert main([*command, "--oracle", "--slack", "0"]) == 0
    found = json.loads(capsys.readouterr().out)["oracle"]
    least = found["own loss, least"]["shares"]
    assert found["own loss, cheapest within slack 0"]["shares"] == least != {"0.5": 0.0, "0.25": 1.0}
    assert main([*command, "--slack", "1"]) == 2
    assert "give --oracle too" in capsys.readouterr().err


def test_the_oracle_s_slack_is_the_predictor_s_own_where_none_is_given(run: Path) -> None:
    opened = open_run(run / "dpnet")
    assert not any("slack" in name for name in oracle_places(opened, opened.sets()[1]))
    told = {**opened.description, "predictor_trained": {"config": {"slack": 0.25}}}
    names = oracle_places(replace(opened, description=told), opened.sets()[1])
    assert {n for n in names if "slack" in n} == {
        f"{a}, cheapest within slack 0.25" for a in ("guidance loss", "own loss")
    }


def test_a_run_without_a_predictor_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["curve", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    for file in ("recipe.yaml", "best.safetensors"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    assert main(["curve", str(tmp_path)]) == 2
    assert "flyspeck dpnet fit RUN" in capsys.readouterr().err


def forty(folder: Path) -> Annotations:
    """Forty images with one object of 8 px each, at the same place."""
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(40)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [10, 10, 8, 8], "area": 64, "iscrowd": 0}
            for i in range(40)
        ],
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return read_annotations(folder / "gt.json")


def found_in(rows: np.ndarray) -> DetectionTable:
    """Detections that find the object of the given images."""
    count = len(rows)
    return DetectionTable.from_columns(
        image_index=rows, scores=np.full(count, 0.9), labels=np.zeros(count), xywh=[[10, 10, 8, 8]] * count
    )


def test_the_cheapest_point_that_cannot_be_told_from_the_largest_factor(tmp_path: Path) -> None:
    """The small factor finds nothing in the first half of the images and all in the second, which the predictor knows."""
    annotations = forty(tmp_path)
    tables = found_in(np.arange(40)), found_in(np.arange(20, 40))
    candidates = Candidates(annotations, (0.5, 0.25), tables, (1.0, 0.4), 0.01, "flyspeck", "ap50_all")
    knows = np.array([[0.9, 0.1]] * 20 + [[0.9, 0.8]] * 20)
    found = tradeoff(candidates, knows, decision=Decision(), draws=1, steps=4, samples=50)
    assert found["alike"]["shares"] == {"0.5": 0.5, "0.25": 0.5}
    assert found["alike"]["metric"] == pytest.approx(1.0)
    assert found["alike"]["against"]["difference"] == pytest.approx(0.0)
    assert any("cheapest alike" in line for line in lines(found))
    without = tradeoff(candidates, knows, decision=Decision(), draws=1, steps=4, samples=0)
    assert without["alike"] is None
    assert lines(without)


@pytest.mark.parametrize(("metric", "values"), [("ap50_all", (0.6, 0.6, 0.4)), ("mr50_reasonable", (0.4, 0.4, 0.6))])
def test_the_cheapest_that_is_as_good_by_a_metric_of_which_more_or_less_is_better(
    metric: str, values: list[float]
) -> None:
    largest, half, quarter = (
        {"metric": value, "gflops": cost} for value, cost in zip(values, (1.0, 0.5, 0.3), strict=True)
    )
    found = {"metric": metric, "static": [largest, quarter], "curve": [largest, half, quarter]}
    assert cheapest_equal(found) is half
    assert cheapest_equal(found, drop=0.3) is quarter


def test_a_good_choice_beats_random_ones_at_its_cost(tmp_path: Path) -> None:
    """Two factors, each of which finds the object of every other image: the right choice finds all, a random one half."""
    annotations = forty(tmp_path)
    tables = tuple(found_in(np.arange(kind, 40, 2)) for kind in (0, 1))
    candidates = Candidates(annotations, (0.5, 0.25), tables, (1.0, 0.4), 0.01, "flyspeck", "ap50_all")
    sure = np.array([[0.9, 0.1], [0.1, 0.9]] * 20)
    found = tradeoff(candidates, sure, decision=Decision(), draws=3, steps=4, samples=50)
    assert found["chosen"]["metric"] == pytest.approx(1.0)
    assert found["chosen"]["gflops"] == pytest.approx(0.71)  # half of 1.0 and 0.4, and the predictor
    assert all(p["metric"] < 0.8 for p in found["random"])
    assert all(p["shares"] == found["chosen"]["shares"] for p in found["random"])
    assert found["static"][0]["metric"] == pytest.approx(found["static"][1]["metric"], abs=0.02)
    assert found["against_static"]["difference_low"] > 0
    with pytest.raises(UserError, match="no metric 'ap50_huge'"):
        tradeoff(
            Candidates(annotations, (0.5, 0.25), tables, (1.0, 0.4), 0.01, "flyspeck", "ap50_huge"),
            sure,
            decision=Decision(),
        )
