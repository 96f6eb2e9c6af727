"""Comparing an evaluation with what a reference evaluator printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.testing import assert_allclose

KEYS = ("metric", "iou", "area", "setup", "setting", "cls", "category_id", "max_dets")
COMPARED = {*KEYS, "protocol", "value", "miss_rate_at_fppi"}


def expected(case: Path) -> dict[str, list[dict[str, Any]]]:
    """The reference's rows by protocol."""
    rows = json.loads((case / "expected.json").read_text())["results"]
    return {
        name: [row for row in rows if row["protocol"] == name]
        for name in dict.fromkeys(row["protocol"] for row in rows)
    }


def differences(rows: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = 1e-9) -> list[str]:
    """One line for every reference row that `rows` lack or contradict, and for rows that the reference does not have."""
    by_key: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(tuple(row.get(name) for name in KEYS), []).append(row)
    wrong = [] if len(rows) == len(wanted) else [f"{len(rows)} rows, the reference has {len(wanted)}"]
    for want in wanted:
        key = {name: want[name] for name in KEYS if name in want}
        found = by_key.get(tuple(want.get(name) for name in KEYS), [])
        if len(found) != 1:
            wrong.append(f"{len(found)} rows with {key}")
        elif not _equal(found[0]["value"], want["value"], tolerance):
            wrong.append(f"{key}: {found[0]['value']!r} instead of {want['value']!r}")
        else:
            wrong += [
                f"{key} {name}: {found[0].get(name)!r} instead of {value!r}"
                for name, value in want.items()
                if name not in COMPARED and not _same(found[0].get(name), value, tolerance)
            ]
            wrong += _curve_differences(found[0], want, key)
    return wrong


def _equal(value: float | None, want: float | None, tolerance: float) -> bool:
    if want is None or value is None or value != value:
        return want is None and (value is None or value != value)
    return abs(value - want) <= tolerance


def _same(value: Any, want: Any, tolerance: float) -> bool:
    """Counts, names and lists exactly, shares within `tolerance`."""
    return _equal(value, want, tolerance) if isinstance(want, float) else value == want


def _curve_differences(row: dict[str, Any], want: dict[str, Any], key: dict[str, Any]) -> list[str]:
    if "miss_rate_at_fppi" not in want:
        return []
    try:
        assert_allclose(np.array(row["miss_rate_at_fppi"]), np.array(want["miss_rate_at_fppi"]), rtol=0, atol=1e-12)
    except AssertionError:
        return [f"{key} miss_rate_at_fppi"]
    return []
