"""Every row of the papers' tables: printed as the papers print it, its recipe complete, and equal to what is written by hand."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from heads import ROOT, commands, prose
from perfect import VERBS, path_of

from flyspeck.evaluate import PROTOCOLS
from flyspeck.train.build import build_detector
from flyspeck.train.config import Recipe, load_recipe, resolve_paths
from flyspeck_lab.cli.main import main
from flyspeck_lab.paper_listing import bottom_heavy_gains, summary
from flyspeck_lab.paper_recipes import recipe_of, write_recipes
from flyspeck_lab.paper_rows import Found, all_rows, base_content, find, papers, seen_to_run
from flyspeck_lab.table import load_table
from verb_tree import parse

SHARED = Path(os.environ.get("FLYSPECK_SHARED", ROOT.parent / "shared"))
ROWS = list(all_rows())
RECIPES = [found for found in ROWS if found.kind == "recipe"]
COUNTS = {
    "000": {"table1": 9, "table2": 5, "table3": 18, "table4": 9, "table5": 5, "table6": 5, "table7": 2, "table8": 10},
    "002": {"table2": 9, "table3": 8, "table5": 18, "table6": 18, "table7": 34, "table8": 8, "table9": 4},
    "003": {"table1": 6, "table2": 3, "table3": 17, "table4": 17, "table5": 4, "table6": 3, "table7": 3},
    "004": {"table1": 4, "table2": 12, "table3": 5, "table4": 8},
}
"""Rows of each printed table, counted in the papers (a row of 002's Table 5 has three columns, each a pre-training)."""


def name(found: Found) -> str:
    return found.id


def test_no_row_of_a_table_is_left_out() -> None:
    assert {p: {t: len(papers()[p].tables[t].rows) for t in tables} for p, tables in COUNTS.items()} == COUNTS
    assert {f"figure{n}" for n in (1, 2, 3, 5, 7)} <= set(papers()["003"].tables)
    assert {f"figure{n}" for n in (1, 2, 6)} <= set(papers()["004"].tables)
    assert set(papers()) == {"000", "001", "002", "003", "004"}
    for found in ROWS:
        assert set(found.table.protocols) <= {*PROTOCOLS, "none"}, found.id
        printed = found.table_name.startswith("table") and found.paper.paper != "001"
        assert found.row.published or not printed, f"{found.id}: a table prints numbers"


@pytest.mark.parametrize("paper", ["000", "002", "003", "004"])
def test_the_numbers_are_those_that_are_printed(paper: str) -> None:
    """All numbers of a row stand in one line of the paper's text, in this order, and no two rows are taken for each other."""
    texts = list((SHARED / "seeds").glob(f"{paper}_*.txt"))
    if not texts:
        pytest.skip("the papers' texts are not there")
    lines = [re.sub(r"</?\w+>", "", line) for line in texts[0].read_text(encoding="utf-8").splitlines()]
    known = [[float(n) for n in re.findall(r"[+-]?\d+(?:\.\d+)?", line)] for line in lines]
    for found in all_rows(paper):
        numbers = [number for number in found.row.published or [] if isinstance(number, float | int)]
        if numbers:
            assert any(_in_order(numbers, line) for line in known), f"{found.id}: {numbers}"


def _in_order(wanted: list[float], line: list[float]) -> bool:
    rest = iter(line)
    return all(any(number == other for other in rest) for number in wanted)


def test_table_8_follows_from_tables_6_and_7() -> None:
    for row, entry in papers()["002"].tables["table8"].rows.items():
        if row != "average":
            assert bottom_heavy_gains(row) == pytest.approx(entry.published, abs=0.005), row
    # Of the printed averages, 3.96 and 2.04 are not those of the printed rows.
    assert bottom_heavy_gains("average") == pytest.approx([2.54, 4.08, 1.91], abs=0.005)


def test_rows_point_at_what_is_there() -> None:
    tables = {path.stem: load_table(path) for path in (ROOT / "benchmarks" / "tables").glob("*.yaml")}
    for found in ROWS:
        assert found.trained.kind in (found.kind, "recipe")
        assert all(
            one.kind == "recipe" for kind in ("run", "recipe") for one in found.needs(kind) if found.kind != "missing"
        )
        if found.row.here:
            table, _, row = found.row.here.partition("/")
            assert tables[table].row(row.partition("@")[0])


def test_what_is_written_by_hand_is_a_row_or_its_base() -> None:
    """Each file of recipes/papers is named once, and its recipe is that row's but for the names."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes" / "papers").rglob("*.yaml")}
    by_row = {found.row.file: found for found in ROWS if found.row.file}
    by_base = {base.file: (paper, key) for paper in papers().values() for key, base in paper.bases.items() if base.file}
    assert sorted(files) == sorted([*by_row, *by_base])
    for file in files:
        folder = (ROOT / file).parent
        written = load_recipe(ROOT / file)
        if file in by_row:
            made = resolve_paths(recipe_of(by_row[file], Path(os.path.relpath(folder, ROOT))), folder)
        else:
            paper, key = by_base[file]
            row = next(found for found in all_rows(paper.paper) if found.kind == "recipe" and not found.row.same)
            made = _of_base(row, key, folder)
        assert _comparable(made) == _comparable(written), file


def _of_base(row: Found, key: str, folder: Path) -> Recipe:
    """A recipe of the base alone."""
    alone = row.row.model_copy(update={"base": key, "set": {}})
    table = row.table.model_copy(update={"rows": {row.name: alone}})
    paper = row.paper.model_copy(update={"tables": {row.table_name: table}})
    found = Found(paper, row.table_name, row.name)
    assert found.content() == base_content(paper, key)
    return resolve_paths(recipe_of(found, Path(os.path.relpath(folder, ROOT))), folder)


def _comparable(recipe: Recipe) -> dict[str, object]:
    content = recipe.model_dump(mode="json")
    content.pop("name")
    if content["distill"] is not None:
        content["distill"]["teacher"] = "a recipe beside it"
    return content


def test_every_recipe_parses_and_its_model_is_built() -> None:
    """On the meta device, each distinct model once."""
    built = set()
    for found in RECIPES:
        recipe = recipe_of(found, Path("runs/recipes"))
        model = recipe.model.model_copy(update={"weights": None, "start": None})
        if model.fusion == "statistic":
            model = model.model_copy(update={"fusion": None})  # counted from the data
        key = (model.name, model.levels, model.norm, type(model.fusion), model.assigner is None, model.sigma)
        if key not in built:
            built.add(key)
            with torch.device("meta"):
                build_detector(model, classes=["a"], mean=[0.5] * 3, std=[0.5] * 3, load=False)
    assert len(built) > 40


@pytest.mark.parametrize("row", ["003/table4/retinanet-sm-s-alpha", "001/voc/hierarchical", "000/table1/mf-anm-0.33"])
def test_a_recipe_is_complete(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", row, "--out", "recipes/rows"]) == 0
    found = find(row)
    *needed, path = write_recipes(found, Path("recipes/rows"))
    content = yaml.safe_load(path.read_text())
    assert list(content) == list(Recipe.model_fields)
    assert content["name"] == found.run_name
    assert path.read_text().count("\n  # ") > 60  # a sentence above each field
    assert load_recipe(path).data.train == str(tmp_path / load_recipe(path).data.train.removeprefix(f"{tmp_path}/"))
    said = commands(path)
    for words in said:
        parse(words, VERBS)
        assert path_of(words), words
    assert any(str(path) in words for words in said)
    assert all(str(one) in prose(path) for one in needed) or found.needs("recipe")
    assert {path_of(words) for words in said} >= {"flyspeck predict", "flyspeck eval"}


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--tables", str(ROOT / "benchmarks/tables"), "--results", str(ROOT / "benchmarks/results")]
    assert main(["rows", "003/table4", *places]) == 0
    out = capsys.readouterr().out
    assert "003/table4: Average precision, TinyPerson (tinybenchmark_ap)" in out
    assert "RetinaNet+SM with S-α: AP50_tiny 52.56" in out
    assert re.search(r"run here: ap50_tiny \d+\.\d \(alpha/statistic, cpu, 3 seeds\)", out)
    assert out.splitlines()[-1].startswith("17 rows: 17 by a recipe")
    assert main(["rows", "004/table3", "--json", *places]) == 0
    found = {entry["row"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["004/table3/rfb-net"]["published"]["AP small"] == 11.9
    assert not found["004/table3/rfb-net"].get("missing")
    assert main(["rows", "002/table8", *places]) == 0
    assert "from Tables 6 and 7: CIFAR-100 +3.51, ImageNet32 +4.79, ImageNet +4.68" in capsys.readouterr().out
    for wrong in ("003/table9", "005"):
        assert main(["rows", wrong, *places]) == 2
        assert capsys.readouterr().err.startswith("error: no ")
    assert main(["recipe", "003/table4/retinanet-sm-s-alfa"]) == 2
    assert "retinanet-sm-s-alpha" in capsys.readouterr().err
    assert main(["recipe", "002/table3/lsfhi"]) == 2
    assert "not built here" in capsys.readouterr().err
    assert main(["recipe", "004/table4/base"]) == 2
    assert "stride_runtimes" in capsys.readouterr().err


def test_what_was_seen_to_run_are_rows_with_recipes() -> None:
    assert set(seen_to_run()) <= {found.id for found in RECIPES}
    assert summary(RECIPES).startswith(f"{len(RECIPES)} rows: {len(RECIPES)} by a recipe")
