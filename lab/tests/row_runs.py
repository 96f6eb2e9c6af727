"""The rows of the papers' tables, run: prepare, two steps of training, prediction and evaluation on fake sets.

    python lab/tests/row_runs.py [ROW...]    # writes papers/on_fakes.yaml (with tests/ and tests/recipes on PYTHONPATH)

A training is run once for all rows that differ in pre-trained weights (which are not there) or in numbers of fusion factors.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fakes import FOLDERS
from heads import commands
from limits import limit_recipes
from perfect import run

from flyspeck.errors import UserError
from flyspeck.files import write_text
from flyspeck_lab.paper_recipes import write_recipes
from flyspeck_lab.paper_rows import FOLDER, Found, all_rows, find

MAKING = ("prepare", "train", "data")
"""Verbs that leave what another row starts from."""
SEEING = ("predict", "eval")
NOT_THERE = re.compile(r"\$\{runs\}/pretrained/[^\"]+|IMAGENET1K_V1|\$\{data\}/weights/[^\"]+")
FUSION = re.compile(r"\"fusion\": \[[^]]*\]")


def alike(found: Found) -> str:
    """The same of all rows whose training is one on a fake: pre-trained weights and the numbers of fusion factors apart."""
    content = json.dumps(found.content(), sort_keys=True)
    content = FUSION.sub("factors", NOT_THERE.sub("weights", content))
    content = re.sub(r"\$\{run:([^}]+)\}", lambda m: alike(find(m[1])).replace('"', "'"), content)
    return f"{content} {found.inherited('of')}"


def groups() -> dict[str, list[Found]]:
    """Rows with a recipe whose training is one; first the one with most commands, which fits a predictor of factors too."""
    found: dict[str, list[Found]] = {}
    for row in all_rows():
        if row.kind == "recipe":
            found.setdefault(alike(row), []).append(row)
    return {key: sorted(rows, key=lambda row: row.row.factor is not None) for key, rows in found.items()}


def listed(rows: list[Found]) -> list[list[str]]:
    """Every command of the first row, those that it starts from before its own; of the others what differs after training."""
    first, *others = rows
    said: list[list[str]] = []
    for before in first.needs("run"):
        said += [words for words in listed([before]) if words[1] in MAKING]
    said += commands(write_recipes(first, Path("runs/recipes"))[-1])
    views = {_view(first)}
    for row in others:
        if _view(row) not in views:
            views.add(_view(row))
            own = commands(write_recipes(row, Path("runs/recipes"))[-1])
            said += [
                [word.replace(row.run_name, first.run_name) for word in words] for words in own if words[1] in SEEING
            ]
    return [words for i, words in enumerate(said) if words not in said[:i]]


def _view(row: Found) -> str:
    """How the trained detector is used and measured."""
    return f"{row.row.factor} {row.table.protocols} {row.inherited('predict')}"


def run_rows(rows: list[Found]) -> str:
    """`runs`, or the command at which the rows of one training ended; in the working folder, which is empty."""
    said = listed(rows)
    text = " ".join([word for words in said for word in words] + [f"data/{rows[0].inherited('of')}"])
    for place in FOLDERS:
        if re.search(rf"(?<![\w-]){re.escape(place)}(?![\w-])", text):
            FOLDERS[place](Path(place))
    for words in said:
        try:
            run(words)
        except (AssertionError, UserError, RuntimeError, ValueError):
            traceback.print_exc()
            return f"ends at `{' '.join(words[:2])}`"
    return "runs"


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """In another working folder, with recipes limited to two steps of a narrow network."""
    before = Path.cwd()
    patch = pytest.MonkeyPatch()
    limit_recipes(patch)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        patch.undo()


def main() -> None:
    """Runs the rows that are not in the file yet (whose names begin with one of the words), and writes what became of them."""
    from flyspeck.plugins import load_plugin

    load_plugin("flyspeck_lab.comparators")
    wanted, results = sys.argv[1:], {}
    path = FOLDER / "on_fakes.yaml"
    known = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for rows in sorted(groups().values(), key=len, reverse=True):
        begins = any(row.id.startswith(tuple(wanted or [""])) for row in rows)
        if not begins or all(row.id in known for row in rows):
            results |= {row.id: known[row.id] for row in rows if row.id in known}
            continue
        with tempfile.TemporaryDirectory() as folder, within(Path(folder)):
            outcome = run_rows(rows)
        print(f"{rows[0].id} (of {len(rows)}): {outcome}", flush=True)
        results |= {row.id: outcome for row in rows}
        head = "# What became of each row's recipe on a fake set of two steps; written by lab/tests/row_runs.py.\n"
        kept = known | results
        write_text(path, head + "".join(f"{name}: {kept[name]}\n" for name in sorted(kept)))


if __name__ == "__main__":
    main()
