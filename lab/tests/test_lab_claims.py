"""Verdicts on resampled metrics made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from flyspeck.publish.score import SAMPLES, interval
from flyspeck_lab.claims import judge, seed_means
from flyspeck_lab.results import Entry, Results, read_results, write_results
from flyspeck_lab.scoring import share_score
from flyspeck_lab.table import Table, jobs

IMAGES = np.linspace(-0.05, 0.05, SAMPLES)
"""What the images of a resample are worth, to every row alike."""


def make(rows: dict[str, list[float]], claim: dict[str, Any], *, noise: float = 0.0) -> tuple[Table, Results]:
    """A table whose rows have these metrics by seed; `noise` is what the resamples add to each row on its own."""
    table = Table(
        name="t",
        title="T",
        source="S",
        sets={"d": {"folder": "d", "make": "x"}},  # type: ignore[dict-item]
        grades={"cpu": {"base": "x", "data": "d"}},  # type: ignore[dict-item]
        rows=[{"name": name, "kind": "external", "seeds": list(range(len(v)))} for name, v in rows.items()],  # type: ignore[misc]
        claims=[{"text": "so it is", **claim}],  # type: ignore[list-item]
        where=Path("t.yaml"),
    )
    results = Results("t")
    rng = np.random.default_rng(0)
    for job in jobs(table, "cpu"):
        value = rows[job.row.name][job.seed]
        entry = Entry(
            "cpu", job.row.name, job.seed, job.definition, metrics={"ap50_tiny": value, "ap50_tiny1": value / 2}
        )
        drawn = value + IMAGES + noise * rng.standard_normal(SAMPLES)
        results.replace([entry], {entry.key: {"ap50_tiny": drawn, "ap50_tiny1": drawn / 2}})
    return table, results


def verdict(rows: dict[str, list[float]], claim: dict[str, Any], **more: float) -> str:
    """Of a claim, without the remark on single seeds."""
    table, results = make(rows, claim, **more)
    (found,) = judge(table, results)
    single = min(map(len, rows.values())) == 1 and found.verdict != "undecided"
    assert found.verdict.endswith("(one seed)") == single
    return found.verdict.removesuffix(" (one seed)")


BETTER = {"row": "a", "than": "b"}


def test_pairs_cancel_what_the_images_do() -> None:
    # The images move both rows by up to 5 points, the rows differ by 1: the paired difference is 1 in every resample.
    assert verdict({"a": [0.41], "b": [0.40]}, BETTER) == "holds"
    assert verdict({"a": [0.40], "b": [0.41]}, BETTER) == "does not hold"
    assert verdict({"a": [0.41], "b": [0.40]}, BETTER, noise=0.02) == "undecided"


def test_margin_and_nearness() -> None:
    rows = {"a": [0.45], "b": [0.40]}
    assert verdict(rows, BETTER | {"margin": 0.1}) == "does not hold"
    assert verdict(rows, BETTER | {"margin": 0.04}) == "holds"
    assert verdict(rows, BETTER | {"relation": "near", "margin": 0.06}) == "holds"
    assert verdict(rows, BETTER | {"relation": "near", "margin": 0.04}) == "does not hold"
    assert verdict(rows, BETTER | {"relation": "near", "margin": 0.05}, noise=0.01) == "undecided"


def test_seeds_that_disagree_leave_it_undecided() -> None:
    # Means 0.42 and 0.40, but one seed of a is far below: resamples that draw it thrice turn the sign.
    assert verdict({"a": [0.48, 0.48, 0.30], "b": [0.40, 0.40, 0.40]}, BETTER) == "undecided"
    assert verdict({"a": [0.48, 0.47, 0.46], "b": [0.40, 0.41, 0.39]}, BETTER) == "holds"


def test_more_at_compares_differences() -> None:
    # 4 points at tiny, 2 at tiny1.
    rows = {"a": [0.44], "b": [0.40]}
    assert verdict(rows, BETTER | {"metric": "ap50_tiny", "more_at": "ap50_tiny1"}) == "holds"
    assert verdict(rows, BETTER | {"metric": "ap50_tiny1", "more_at": "ap50_tiny"}) == "does not hold"


def test_the_best_of_several() -> None:
    rows = {"a": [0.3], "b": [0.4], "c": [0.35]}
    assert verdict(rows, {"best_of": ["b"], "among": ["a", "b", "c"]}) == "holds"
    assert verdict(rows, {"best_of": ["a", "c"], "among": ["a", "b", "c"]}) == "does not hold"
    assert verdict(rows, {"best_of": ["b"], "among": ["a", "b", "c"]}, noise=0.05) == "undecided"


def test_a_missing_row_is_named() -> None:
    table, results = make({"a": [0.3], "b": [0.2]}, BETTER)
    results.entries = results.entries[:1]
    (found,) = judge(table, results)
    assert (found.verdict, found.detail) == ("not run", "missing: b")


def test_the_mean_over_seeds_is_the_mean_of_the_drawn_seeds() -> None:
    _, results = make({"a": [0.2, 0.4], "b": [0.1]}, BETTER)
    own = [e for e in results.entries if e.row == "a"]
    means = seed_means("a", own, "ap50_tiny", results) - IMAGES
    # Two of two seeds with replacement: 0.2, 0.3 (twice as often) or 0.4.
    values, counts = np.unique(means.round(6), return_counts=True)
    assert_allclose(values, [0.2, 0.3, 0.4], atol=1e-6)
    assert counts[1] > counts[0]
    assert counts[1] > counts[2]


def test_results_survive_their_files(tmp_path: Path) -> None:
    table, results = make({"a": [0.41], "b": [0.40]}, BETTER)
    results.draws["cpu/a/0/"]["ap50_tiny"][3] = np.nan
    results.verdicts = judge(table, results)
    write_results(tmp_path, results)
    again = read_results(tmp_path, "t")
    assert again.entries == results.entries
    assert again.verdicts == results.verdicts
    # Sixteen bits for [0, 1]: half a step is 1 / 131,068.
    assert_allclose(again.draws["cpu/a/0/"]["ap50_tiny"], results.draws["cpu/a/0/"]["ap50_tiny"], atol=8e-6)


def test_intervals() -> None:
    assert interval(np.array([0.5, np.nan])) is None
    assert interval(np.arange(1001) / 1000) == [0.025, 0.975]
    low, high = share_score(0.25, 10_000).intervals["top1"]
    # 1.96 sqrt(.25 .75 / 10,000) = 0.0085.
    assert low == pytest.approx(0.2415, abs=0.002)
    assert high == pytest.approx(0.2585, abs=0.002)
