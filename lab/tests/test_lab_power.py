"""What claims will be able to see, from trainings whose spread is known by construction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.publish.score import SAMPLES
from flyspeck_lab.claims import SEEN
from flyspeck_lab.power import Spread, foretold, known_spread
from flyspeck_lab.results import Entry, Results, write_results
from flyspeck_lab.table import Table, jobs

METHODS, ACCIDENT, TRAINING = 0.004, 0.003, 0.01
"""Standard deviations: of the images' taste in methods (one row's), of their luck with a training, and from seed to seed."""


def made(
    rows: dict[str, int], claims: list[dict[str, Any]], *, name: str = "t", run: bool = True
) -> tuple[Table, Results]:
    """A table with so many seeds a row, and results whose spread is as above."""
    table = Table(
        name=name,
        title="T",
        source="S",
        sets={"d": {"train": "d/train.json", "val": "d/val.json", "make": "x"}},  # type: ignore[dict-item]
        grades={"cpu": {"base": "x", "data": "d"}},  # type: ignore[dict-item]
        rows=[{"name": key, "kind": "external", "seeds": list(range(count))} for key, count in rows.items()],  # type: ignore[misc]
        claims=[{"text": f"claim {n}", **claim} for n, claim in enumerate(claims)],  # type: ignore[misc]
        where=Path("t.yaml"),
    )
    results, rng = Results(name), np.random.default_rng(0)
    images = 0.02 * rng.standard_normal(SAMPLES)  # to all rows alike
    taste = {key: METHODS * rng.standard_normal(SAMPLES) for key in rows}
    for job in jobs(table, "cpu") if run else ():
        value = 0.4 + TRAINING * rng.standard_normal()
        entry = Entry("cpu", job.row.name, job.seed, job.definition, metrics={"ap50_tiny": value})
        luck = ACCIDENT * rng.standard_normal(SAMPLES)
        results.replace([entry], {entry.key: {"ap50_tiny": value + images + taste[job.row.name] + luck}})
    return table, results


def test_the_spread_is_what_it_was_made_of() -> None:
    table, results = made(dict.fromkeys("abcdef", 12), [{"row": "a", "than": "b"}])
    spread = known_spread(table.claims[0], "d/val.json", [(table, results)])
    assert math.sqrt(spread.methods) == pytest.approx(math.sqrt(2) * METHODS, rel=0.1)
    assert math.sqrt(spread.training) == pytest.approx(math.hypot(TRAINING, ACCIDENT), rel=0.2)
    other = known_spread(table.claims[0], "e/val.json", [(table, results)])
    assert math.isnan(other.seen([3, 3]))


def test_a_difference_that_is_seen_is_seen_four_times_in_five() -> None:
    spread, rng = Spread(2 * METHODS**2, TRAINING**2), np.random.default_rng(1)
    error = math.sqrt(spread.methods + 2 * spread.training / 5)
    found = spread.seen([5, 5]) + error * rng.standard_normal(20000)
    assert (np.abs(found) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)


def test_seeds_that_see_two_points() -> None:
    spread = Spread(0.004**2, 0.01**2)
    count = spread.needed(0.02)
    assert count is not None
    assert spread.seen([count, count]) <= 0.02 < spread.seen([count - 1, count - 1])
    assert Spread((0.02 / SEEN) ** 2, 0.0).needed(0.02) is None
    assert Spread(0.0, 0.0).needed(0.02) == 1


def test_lines_of_a_table_from_its_own_results_and_from_others(tmp_path: Path) -> None:
    claims = [
        {"row": "a", "than": "b"},
        {"best_of": ["a"], "among": ["a", "b"]},
        {"row": "a", "than": "b", "metric": "ap50_all"},
    ]
    table, _ = made({"a": 3, "b": 1}, claims, run=False)
    assert foretold(table, "cpu", [table], tmp_path) == [f"nothing tells yet what it sees: claim {n}" for n in (0, 2)]
    other, results = made({"x": 3, "y": 3}, [{"row": "x", "than": "y"}], name="other")
    write_results(tmp_path, results)
    first, second = foretold(table, "cpu", [table, other], tmp_path)
    assert first.startswith("sees ")
    assert "with 3 seeds and 1 seed (2 with " in first
    assert second.startswith("nothing tells")
    (once, _) = foretold(table, "cpu", [table, other], tmp_path, seeds=1)
    assert "with 1 seed (" in once
