"""Recipes of the papers' rows, run on fakes: each distinct one, as `papers/on_fakes.yaml` says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyspeck_lab.paper_rows import Found, seen_to_run
from row_runs import groups, run_rows, within

GROUPS = groups()
QUICK = "003/table4/retinanet-s-alpha"


@pytest.mark.slow
@pytest.mark.parametrize("rows", GROUPS.values(), ids=[rows[0].id for rows in GROUPS.values()])
def test_what_is_said_to_run_runs(rows: list[Found], tmp_path: Path) -> None:
    said = {seen_to_run().get(row.id, "runs") for row in rows}
    assert len(said) == 1, "rows of one training have one outcome"
    with within(tmp_path):
        assert run_rows(rows) == said.pop()


def test_a_row_runs(tmp_path: Path) -> None:
    rows = next(rows for rows in GROUPS.values() if any(row.id == QUICK for row in rows))
    with within(tmp_path):
        assert run_rows(rows) == seen_to_run()[QUICK] == "runs"
