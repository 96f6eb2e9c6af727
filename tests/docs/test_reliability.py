"""The page of what campaigns measured is the one that its numbers make."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def writer() -> Any:
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    spec = importlib.util.spec_from_file_location("write_reliability", DOCS / "write_reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_its_numbers() -> None:
    numbers = json.loads((DOCS / "reliability.json").read_text(encoding="utf-8"))
    assert writer().page(numbers) == (DOCS / "reliability.md").read_text(encoding="utf-8")


def test_a_campaign_is_added_to_those_before() -> None:
    numbers: dict[str, Any] = {
        "fuzz": {"campaigns": 1, "by_kind": {"images": {"answer": 2}}},
        "mended": ["a"],
        "known": ["b"],
    }
    writer().added(numbers, {"by_kind": {"images": {"answer": 1, "hang": 1}, "videos": {"one line": 5}}})
    assert numbers["fuzz"] == {
        "campaigns": 2,
        "by_kind": {"images": {"answer": 3, "hang": 1}, "videos": {"one line": 5}},
    }
    numbers["crashes"] = {
        "train": {"operations": 7, "tried": {"kill": 7, "torn": 4}, "survived": {"kill": 7, "torn": 3}}
    }
    faults = [
        {
            "fault": "a loop",
            "file": "a.py",
            "found": True,
            "as": "hang: a.py:3",
            "surface": "annotations voc",
            "inputs": 9,
        },
        {"fault": "a name", "file": "b.py", "found": False, "inputs": 1234},
    ]
    numbers["planted"] = {"seed": 1, "minutes": 2.0, "faults": faults}
    survivor = {"file": "c.py", "line": 3, "change": "a | b → (a & b)", "how": "2 tests pass"}
    survivors = [{**survivor, "why": "the bits never meet"}, {**survivor, "line": 4, "why": ""}]
    numbers["mutants"] = {
        "merge": {"mutants": 400, "tried": 11, "seed": 1, "killed": 9, "first": 4, "survivors": survivors}
    }
    text = writer().page(numbers)
    assert "| images | 4 | 3 | 0 | 1 |" in text
    assert "most 2 minutes of the processor (`python tests/fuzz/planted_faults.py`): **1 of 2 found**" in text
    assert "| a name | `b.py` | **not found** | – | 1,234 |" in text
    assert "| merge | 400 | 11 (1) | 1 | 4 of 10 (40 %) | 9 of 10 (90 %) | 2 |" in text
    assert "- `c.py:3`, `a \\| b → (a & b)`: the bits never meet" in text
    assert "- `c.py:4`, `a \\| b → (a & b)`: **no test notices it**" in text
    assert "| train | 7 | 7 of 7 | 3 of 4 (57%) | – | – | – | – | – |" in text
    assert "9 inputs in 2 campaigns" in text


def test_crashes_take_the_place_of_those_of_their_kind() -> None:
    merged, survived = writer().merged, writer().survived
    before = {"operations": 7, "tried": {"kill": 7, "torn": 0}, "survived": {"kill": 7, "torn": 0}}
    short = {"operations": 7, "tried": {"short": 31, "kill": 0}, "survived": {"short": 31, "kill": 0}}
    both = merged(before, short)
    assert [survived(both, mode) for mode in ("kill", "torn", "short")] == ["7 of 7", "–", "all 31"]
    other = {"operations": 8, "tried": {"kill": 8}, "survived": {"kill": 6}}
    assert merged(both, other) == other  # the work has changed: nothing of before holds
    assert survived(merged(None, other), "kill") == "6 of 8"
    assert survived({"operations": 8, "tried": {"short": 9}, "survived": {}}, "short") == "**not survived** (9)"
    spread = {
        "operations": 8,
        "tried": {"kill": 5, "io": 5},
        "survived": {"kill": 5, "io": 4},
        "places": {"kill": 5, "io": 5},
    }
    some = merged(other, spread)
    assert [survived(some, mode) for mode in ("kill", "io")] == ["5 of 5 places", "4 of 5 places"]
    some = merged(some, {"operations": 8, "tried": {"io": 8}, "survived": {"io": 8}})
    assert [survived(some, mode) for mode in ("kill", "io")] == ["5 of 5 places", "8 of 8"]
