"""Table files: what they refuse, what a row's definition depends on, and every shipped table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flyspeck.errors import UserError
from flyspeck.models.build import build_backbone
from flyspeck.train.build import build_detector
from flyspeck_lab.cli.main import main
from flyspeck_lab.results import read_results
from flyspeck_lab.table import find_tables, jobs, load_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "benchmarks" / "tables").glob("*.yaml"))
RESULTS = ROOT / "benchmarks" / "results"


def table(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump({"data": {"train": "a", "val": "b"}, "train": {"epochs": 3}}))
    content = {
        "name": "t",
        "title": "T",
        "source": "S",
        "sets": {"d": {"train": "d/train.json", "val": "d/val.json", "make": "by hand"}},
        "grades": {"cpu": {"base": "base.yaml", "data": "d"}},
        "rows": [
            {"name": "a", "seeds": [0, 1]},
            {"name": "b", "set": {"model.weights": "${run:a}/best.safetensors"}, "seeds": [1, 2]},
        ],
    }
    path = folder / "t.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_jobs_come_by_turns_of_seeds_and_bring_what_they_need(tmp_path: Path) -> None:
    loaded = load_table(table(tmp_path))
    assert [job.key for job in jobs(loaded, "cpu")] == ["cpu/a/0", "cpu/b/1", "cpu/a/1", "cpu/b/2"]
    assert [job.key for job in jobs(loaded, "cpu", rows=["b"], seeds=1)] == ["cpu/a/0", "cpu/b/1"]
    needs = {job.key: [need.key for need in job.needs()] for job in jobs(loaded, "cpu", rows=["b"])}
    assert needs["cpu/b/1"] == ["cpu/a/1"]  # the same seed where there is one
    assert needs["cpu/b/2"] == ["cpu/a/0"]  # else the first


def test_extra_rows_come_after_every_seed_of_the_others(tmp_path: Path) -> None:
    rows = [{"name": "a", "extra": True, "seeds": [0, 1]}, {"name": "b", "seeds": [0, 1]}]
    loaded = load_table(table(tmp_path, rows=rows))
    keys = [job.key for job in jobs(loaded, "cpu")]
    assert keys == ["cpu/b/0", "cpu/b/1", "cpu/a/0", "cpu/a/1"]
    plain = [{key: value for key, value in row.items() if key != "extra"} for row in rows]
    before = {job.key: job.definition for job in jobs(load_table(table(tmp_path, rows=plain)), "cpu")}
    assert {job.key: job.definition for job in jobs(loaded, "cpu")} == before  # the order decides no result


def test_a_definition_knows_the_recipe_but_no_path(tmp_path: Path) -> None:
    def definitions(path: Path) -> dict[str, str]:
        return {job.key: job.definition for job in jobs(load_table(path), "cpu")}

    before = definitions(table(tmp_path))
    assert len(set(before.values())) == 4
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert definitions(table(moved)) == before
    changed = table(tmp_path, rows=[{"name": "a", "seeds": [0, 1], "set": {"train.lr": 0.5}}])
    assert definitions(changed)["cpu/a/0"] != before["cpu/a/0"]
    # What every run had before it could be said changes no result; anything else does.
    for said, same in (("data", True), ("imagenet", False)):
        rows = yaml.safe_load(table(tmp_path).read_text())["rows"]
        rows[0].setdefault("set", {})["model.pixel_norm"] = said
        assert (definitions(table(tmp_path, rows=rows))["cpu/a/0"] == before["cpu/a/0"]) == same
    # What a row needs is a part of it.
    both = yaml.safe_load(table(tmp_path).read_text())["rows"]
    both[0]["set"] = {"train.lr": 0.5}
    assert definitions(table(tmp_path, rows=both))["cpu/b/1"] != before["cpu/b/1"]


def test_rows_that_share_a_mapping_do_not_change_each_other(tmp_path: Path) -> None:
    shared = {"model": {"levels": [2], "head": {}}}
    rows = [{"name": "a", "set": {**shared, "model.name": "x"}}, {"name": "b", "set": shared}]
    path = table(tmp_path, rows=rows)
    assert "&id" in path.read_text()  # written once, with an anchor, as a table's author would
    forth = {job.row.name: job.definition for job in jobs(load_table(path), "cpu")}
    back = {job.row.name: job.definition for job in reversed(list(jobs(load_table(path), "cpu")))}
    assert forth == back
    content = {job.row.name: job.content for job in jobs(load_table(path), "cpu")}
    assert content["a"]["model"]["name"] == "x"
    assert "name" not in content["b"]["model"]


def test_recipes_get_the_paths_of_this_machine(tmp_path: Path) -> None:
    loaded = load_table(table(tmp_path))
    _, b, *_ = jobs(loaded, "cpu")
    recipe = b.recipe(data=tmp_path / "data", runs=tmp_path / "runs")
    assert recipe.data.train == str((tmp_path / "data/d/train.json").resolve())
    assert recipe.train.seed == 1
    assert recipe.model.weights is not None
    assert Path(recipe.model.weights).parent == b.needs()[0].folder(tmp_path / "runs").resolve()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows are called 'a'"),
        ({"rows": [{"name": "b", "set": {"model.weights": "${run:a}/x"}}, {"name": "a"}]}, "above it"),
        ({"rows": [{"name": "a", "grades": ["huge"]}]}, "huge"),
        (
            {"rows": [{"name": "a", "extra": True}, {"name": "b", "set": {"model.weights": "${run:a}/x"}}]},
            "'b' needs 'a', which is extra",
        ),
        ({"claims": [{"text": "x", "row": "a", "than": "c"}]}, "row in a claim called 'c'"),
        ({"claims": [{"text": "x", "row": "a"}]}, "either row and than"),
        ({"metric": ["ap50_tiny"]}, "metric"),
        ({"withdrawn": "a fault"}, "set revision to 2"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_table(table(tmp_path, **changes))


def test_a_misspelt_table_finds_its_neighbour(tmp_path: Path) -> None:
    table(tmp_path).rename(tmp_path / "strides.yaml")
    with pytest.raises(UserError, match="strides"):
        find_tables(["stride"], tmp_path)


def test_all_is_every_table_and_none_comes_twice(tmp_path: Path) -> None:
    alpha, strides = tmp_path / "alpha.yaml", tmp_path / "strides.yaml"
    alpha.touch()
    strides.touch()
    assert find_tables(["all"], tmp_path) == [alpha, strides]
    assert find_tables(["strides", "all", str(alpha)], tmp_path) == [strides, alpha]
    with pytest.raises(UserError, match="no table 'all'"):
        find_tables(["all"], tmp_path / "empty")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_of_every_shipped_table_builds(path: Path, tmp_path: Path) -> None:
    loaded = load_table(path)
    assert {"cpu", "full"} <= set(loaded.grades) <= {"cpu", "full", "gpu", "choose"}
    built = set()
    for grade in loaded.grades:
        for job in jobs(loaded, grade, seeds=1):
            places = {"data": tmp_path, "runs": tmp_path}
            if job.row.kind == "pretrain":
                wanted = job.pretraining(**places)
                assert loaded.sets[wanted.data].folder is not None
                with torch.device("meta"):
                    build_backbone(wanted.backbone, width=wanted.width)
            elif job.row.kind != "external":
                recipe = job.recipe(**places)
                # What is taken from the training set is left out here.
                model = recipe.model.model_copy(update={"fusion": None, "assigner": None})
                if model.model_dump_json() in built:
                    continue
                built.add(model.model_dump_json())
                with torch.device("meta"):
                    build_detector(model, classes=("object",), mean=(0.5,), std=(0.5,), load=False)


def test_the_page_of_results_is_the_one_that_the_stored_results_make(tmp_path: Path) -> None:
    """So the tables of earlier versions are read, and nobody has written between the markers by hand."""
    page = ROOT / "docs" / "results.md"
    again = tmp_path / "results.md"
    again.write_bytes(page.read_bytes())
    assert main(["page", "--docs", str(again), "--tables", str(TABLES[0].parent), "--results", str(RESULTS)]) == 0
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_every_stored_result_of_a_table_is_read() -> None:
    stored = [path for path in TABLES if (RESULTS / f"{path.stem}.json").is_file()]
    assert len(stored) >= 8
    for path in stored:
        results = read_results(RESULTS, path.stem)
        assert results.entries
        assert all(entry.metrics and results.draws[entry.key] for entry in results.entries), path.stem
