"""A whole table on a small set: rows that are done, broken off or changed, the files they leave, the page made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flyspeck.errors import UserError
from flyspeck_lab import runner
from flyspeck_lab.cli.main import main
from flyspeck_lab.kinds import Folders
from flyspeck_lab.page import BEGIN, END, markdown, overview, write_page
from flyspeck_lab.results import read_results, write_results
from flyspeck_lab.runner import Order, rejudge, rescore_table, run_tables, states
from flyspeck_lab.table import Table, load_table


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Bit for bit needs one order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TABLE: dict[str, Any] = {
    "name": "small",
    "title": "A small table",
    "source": "nowhere",
    "sets": {"squares": {"train": "squares/train.json", "val": "squares/val.json", "make": "the test"}},
    "grades": {"cpu": {"base": "base.yaml", "data": "squares"}},
    "rows": [
        {"name": "plain", "seeds": [0, 1]},
        {"name": "again", "set": {"model.weights": "${run:plain}/best.safetensors", "train.epochs": 1}},
        {"name": "strict", "kind": "evaluate", "weights_of": "plain", "set": {"model.min_score": 0.9}},
        {"name": "other", "kind": "external"},
    ],
    "claims": [
        {"text": "training on helps", "row": "again", "than": "plain", "metric": "ap50_all"},
        {"text": "another tool is worse", "row": "plain", "than": "other", "metric": "ap50_all"},
    ],
}


@pytest.fixture
def place(squares: Path, base: dict[str, Any]) -> Path:
    """A folder with data, a base recipe and a table."""
    (squares / "base.yaml").write_text(yaml.safe_dump(base))
    (squares / "small.yaml").write_text(yaml.safe_dump(TABLE))
    return squares


def load(place: Path) -> tuple[Table, dict[str, Any]]:
    places = Folders(data=place / "data", runs=place / "runs")
    return load_table(place / "small.yaml"), {"places": places, "results_folder": place / "results"}


def test_rows_are_run_once_and_leave_results(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, where = load(place)
    assert run_tables([table], Order("cpu", **where)) == (4, 1)  # the other tool has left nothing yet
    results = read_results(place / "results", "small")
    assert [(e.row, e.seed) for e in results.entries] == [("plain", 0), ("again", 0), ("strict", 0), ("plain", 1)]
    first = results.entries[0]
    low, high = first.intervals["ap50_all"]
    assert 0 <= low <= high <= 1
    assert first.facts["parameters"] > 0
    assert first.facts["validation_images"] == 5
    assert str(place) not in "".join(p.read_text() for p in (place / "results").glob("small.[jc]*"))
    # A stricter score threshold cannot find more.
    assert results.entries[2].metrics["ar50_all"] <= first.metrics["ar50_all"]
    assert [verdict.verdict for verdict in results.verdicts][1] == "not run"

    def never(*_: object) -> None:
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(runner, "run", never)
    with pytest.raises(AssertionError):  # only what is left: the external row
        run_tables([table], Order("cpu", **where))
    assert run_tables([table], Order("cpu", rows=["plain", "again"], **where)) == (0, 0)


def test_the_same_seed_gives_the_same_number(place: Path) -> None:
    table, where = load(place)
    run_tables([table], Order("cpu", rows=["plain"], **where))
    first = read_results(place / "results", "small")
    shutil.rmtree(place / "runs")
    shutil.rmtree(place / "results")
    run_tables([table], Order("cpu", rows=["plain"], **where))
    second = read_results(place / "results", "small")
    assert [e.metrics for e in first.entries] == [e.metrics for e in second.entries]
    assert first.entries[0].metrics != first.entries[1].metrics  # another seed


def test_a_broken_run_goes_on_and_a_changed_row_begins_anew(place: Path, base: dict[str, Any]) -> None:
    table, where = load(place)
    folder = states(table, "cpu", place / "results", place / "runs")[0].job.folder(place / "runs")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("killed before its first checkpoint")
    assert run_tables([table], Order("cpu", rows=["plain"], seeds=1, **where)) == (1, 0)
    assert [s.status for s in states(table, "cpu", place / "results", place / "runs", rows=["plain"])] == [
        "done",
        "left",
    ]
    (place / "base.yaml").write_text(yaml.safe_dump(base | {"augment": {"flip": 0.0}}))
    table, _ = load(place)
    assert next(s.status for s in states(table, "cpu", place / "results", place / "runs", seeds=1)) == "changed"


def test_withdrawn_rows_are_run_again_into_new_folders(place: Path) -> None:
    def statuses() -> list[str]:
        found = states(table, "cpu", place / "results", place / "runs", rows=["plain", "strict"], seeds=1)
        return [state.status for state in found]

    table, where = load(place)
    assert run_tables([table], Order("cpu", rows=["plain", "strict"], seeds=1, **where)) == (2, 0)
    old = states(table, "cpu", place / "results", place / "runs")[0].job.folder(place / "runs")
    assert statuses() == ["done", "done"]
    (place / "small.yaml").write_text(yaml.safe_dump({**TABLE, "revision": 2, "withdrawn": "the code was wrong"}))
    table, _ = load(place)
    rejudge(table, place / "results")
    assert statuses() == ["withdrawn", "withdrawn"]
    assert {verdict.verdict for verdict in read_results(place / "results", "small").verdicts} == {"not run"}
    assert "| small | cpu | 0 of 5 | all | - | - |" in overview([table], place / "results")
    page = markdown(table, place / "results")
    assert "Withdrawn: the code was wrong" in page
    assert page.count("| plain |") == 1
    assert run_tables([table], Order("cpu", rows=["plain"], seeds=1, **where)) == (1, 0)
    assert statuses() == ["done", "withdrawn"]
    assert len(list(old.parent.iterdir())) == 2
    assert markdown(table, place / "results").count("to be run again") == 1
    assert run_tables([table], Order("cpu", rows=["strict"], seeds=1, **where)) == (1, 0)
    assert statuses() == ["done", "done"]
    assert "ithdrawn" not in markdown(table, place / "results")


def test_an_extra_row_without_its_data_is_passed_over(place: Path) -> None:
    nowhere = {"train": "nowhere/train.json", "val": "nowhere/val.json", "make": "the test"}
    content = TABLE | {
        "sets": TABLE["sets"] | {"nowhere": nowhere},
        "rows": [{"name": "missing", "data": "nowhere", "extra": True}],
        "claims": [],
    }
    (place / "small.yaml").write_text(yaml.safe_dump(content))
    table, where = load(place)
    assert run_tables([table], Order("cpu", **where)) == (0, 1)
    with pytest.raises(UserError, match="no such file"):
        run_tables([table], Order("cpu", rows=["missing"], **where))


def test_weights_are_measured_under_the_factors_that_training_counted(place: Path) -> None:
    rows = [
        {"name": "counted", "set": {"model.fusion": "statistic"}},
        {
            "name": "missed",
            "kind": "evaluate",
            "weights_of": "counted",
            "set": {"model.fusion": "statistic", "evaluate.protocol": "tinybenchmark_mr"},
            "extra": True,
        },
    ]
    (place / "small.yaml").write_text(yaml.safe_dump(TABLE | {"rows": rows, "claims": []}))
    table, where = load(place)
    assert run_tables([table], Order("cpu", **where)) == (2, 0)
    assert 0 <= read_results(place / "results", "small").entries[1].metrics["mr50_tiny"] <= 1


def test_the_page_says_what_was_to_be_run_and_what_was(place: Path) -> None:
    table, where = load(place)
    rows = [row.model_copy(update={"extra": row.name == "again"}) for row in table.rows]
    table = table.model_copy(update={"rows": rows})
    assert "| small | cpu | 0 of 4 | all | 0 of 1 | - |" in overview([table], place / "results")
    run_tables([table], Order("cpu", rows=["plain"], seeds=1, **where))
    assert "| small | cpu | 1 of 4 | strict, other, plain (seed 1) | 0 of 1 | 0.0 |" in overview(
        [table], place / "results"
    )


def test_no_row_begins_after_the_minutes(place: Path) -> None:
    table, where = load(place)
    done, left = run_tables([table], Order("cpu", minutes=0.0, rows=["plain"], **where))
    assert (done, left) == (0, 2)


def test_extra_rows_of_several_tables_come_after_what_must_run(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, where = load(place)
    content = yaml.safe_load((place / "small.yaml").read_text())
    rows = [{"name": "plain"}, {"name": "more", "set": {"train.lr": 0.002}, "extra": True}]
    for name in ("one", "two"):
        (place / f"{name}.yaml").write_text(yaml.safe_dump(content | {"name": name, "rows": rows, "claims": []}))
    tables = [load_table(place / f"{name}.yaml") for name in ("one", "two")]
    with caplog.at_level("INFO", logger="flyspeck"):
        assert run_tables(tables, Order("cpu", **where)) == (4, 0)
    begun = [record.getMessage() for record in caplog.records if " of 4)" in record.getMessage()]
    assert begun == [
        "one cpu/plain/0 (1 of 4)",
        "two cpu/plain/0 (2 of 4)",
        "one cpu/more/0 (3 of 4)",
        "two cpu/more/0 (4 of 4)",
    ]
    assert {path.name for path in (place / "results").glob("*.json")} == {"one.json", "two.json"}


def test_another_tools_detections_are_scored(place: Path) -> None:
    table, where = load(place)
    job = next(s.job for s in states(table, "cpu", place / "results", place / "runs") if s.job.row.name == "other")
    folder = job.folder(place / "runs")
    with pytest.raises(UserError, match="no detections of another tool"):
        run_tables([table], Order("cpu", rows=["other"], **where))
    truth = json.loads((place / "data/squares/val.json").read_text())["annotations"]
    found = [{key: box[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for box in truth]
    folder.mkdir(parents=True)
    (folder / "detections.json").write_text(json.dumps(found))
    about = {"tool": "by hand", "version": "7", "gflops": 0.0, "epochs": 3, "settings": "patience"}
    (folder / "about.json").write_text(json.dumps(about))
    run_tables([table], Order("cpu", rows=["other"], **where))
    (entry,) = read_results(place / "results", "small").entries
    assert entry.metrics["ap50_all"] == 1.0
    assert entry.facts["tool"] == "by hand"
    page = markdown(table, place / "results")
    assert "Row `other` is by another tool, by hand 7 (3 epochs; patience)." in page
    assert "flyspeck 7" not in page
    (folder / "detections.json").write_text(json.dumps(found[:1]))  # the tool's second try
    assert rescore_table(table, "cpu", **where) == 1
    assert read_results(place / "results", "small").entries[0].metrics["ap50_all"] < 1.0


def test_a_pretraining_and_a_distillation_are_rows_too(place: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for brightness, name in ((40, "dark"), (200, "bright")):
            folder = place / "data" / "small" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = (brightness + rng.integers(0, 20, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    student = {"teacher": "${run:teacher}", "method": "hierarchical", "levels": [3, 4, 5]}
    content = TABLE | {
        "sets": TABLE["sets"] | {"small": {"folder": "small", "make": "the test"}},
        "grades": {
            "cpu": {
                "base": "base.yaml",
                "data": "squares",
                "set": {"train.epochs": 1},
                "pretrain": {"data": "small", "width": 0.25, "epochs": 1, "batch_size": 4, "size": 32},
            }
        },
        "rows": [
            {"name": "classifier", "kind": "pretrain", "set": {"backbone": "mobilenet_v2"}, "seeds": [3]},
            {"name": "teacher", "set": {"model.weights": "${run:classifier}/backbone.safetensors"}},
            {"name": "student", "kind": "distill", "set": {"distill": student}},
        ],
        "claims": [],
    }
    (place / "small.yaml").write_text(yaml.safe_dump(content))
    table, where = load(place)
    assert run_tables([table], Order("cpu", rows=["student"], **where)) == (3, 0)
    first, *_, last = read_results(place / "results", "small").entries
    assert set(first.metrics) == {"top1"}
    assert first.facts["validation_images"] == 8
    assert "ap50_all" in last.metrics
    assert "top1" in markdown(table, place / "results")
    # The weights are elsewhere, say after a clone: what the student needs is trained again, what is finished stays.
    shutil.rmtree(place / "runs")
    results = read_results(place / "results", "small")
    results.entries.pop()
    write_results(place / "results", results)
    assert run_tables([table], Order("cpu", **where)) == (1, 0)
    assert read_results(place / "results", "small").entries[-1].metrics == last.metrics


def test_runs_are_scored_again_and_the_page_keeps_what_is_hand_written(place: Path) -> None:
    table, where = load(place)
    run_tables([table], Order("cpu", rows=["plain"], seeds=1, **where))
    before = read_results(place / "results", "small").entries
    assert rescore_table(table, "cpu", **where) == 1
    rejudge(table, place / "results")
    assert read_results(place / "results", "small").entries == before
    page = place / "results.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nlast words\n")
    assert write_page(page, [table], place / "results") == 1
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("last words\n")
    assert "old" not in text
    assert "| plain | 1 |" in text
    assert "2 of 4 rows" not in text
    assert "3 of 4 rows have not been run" in text
    write_page(page, [table], place / "results")
    assert page.read_text() == text  # writing twice changes nothing


def test_a_run_is_timed_again_only_where_the_table_asks_for_another_number_of_runs(place: Path) -> None:
    content = yaml.safe_load((place / "small.yaml").read_text())

    def scored(runs: int) -> dict[str, Any]:
        (place / "small.yaml").write_text(yaml.safe_dump(content | {"latency_runs": runs}))
        table, where = load(place)
        run_tables([table], Order("cpu", rows=["plain"], seeds=1, **where))
        rescore_table(table, "cpu", **where)
        return read_results(place / "results", "small").entries[0].facts

    first = scored(2)
    assert first["ms_runs"] == 2
    assert first["ms"] > 0
    assert scored(2)["ms"] == first["ms"]
    again = scored(5)
    assert again["ms_runs"] == 5
    assert again["seconds"] == first["seconds"]  # trained once
    page = place / "results.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    write_page(page, [load(place)[0]], place / "results")
    assert "ms is the median of 5 runs of one image" in page.read_text()
    results = read_results(place / "results", "small")
    results.entries[0].facts["hardware"] = "another machine"
    write_results(place / "results", results)
    assert scored(3)["ms_runs"] == 5  # what is measured here would stand beside that machine's name
    results.entries[0].facts["hardware"] = first["hardware"]
    write_results(place / "results", results)
    assert "ms" not in scored(0)


def test_the_command_lists_and_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(place / "data"), "--runs", str(place / "runs"), "--results", str(place / "results")]
    assert main(["run", str(place / "small.yaml"), "--list", *options]) == 0
    assert capsys.readouterr().out.count("left") == 5
    assert main(["run", str(place / "small.yaml"), "--rows", "plane", *options]) == 2
    assert "plain" in capsys.readouterr().err
    assert main(["run", "small", str(place / "small.yaml"), "--tables", str(place), "--list", *options]) == 0
    assert capsys.readouterr().out.count("left") == 5  # one table, named twice
    shutil.copy(place / "small.yaml", place / "twin.yaml")
    assert main(["run", "small", "twin", "--tables", str(place), "--rows", "plain", *options]) == 2
    assert "the one table" in capsys.readouterr().err
    assert main(["page", "--docs", str(place / "none.md"), "--tables", str(place / "tables")]) == 2
    assert "no such page" in capsys.readouterr().err
    assert main(["run", "smal", "--tables", str(place)]) == 2
    assert "small" in capsys.readouterr().err
    shutil.rmtree(place / "data")
    assert main(["run", str(place / "small.yaml"), *options]) == 2
    assert "give another --data" in capsys.readouterr().err
