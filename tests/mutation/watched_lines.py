"""A pytest plugin: which lines of some files each test reaches, how long it takes, and whether it passes.

The functions of the files tell it themselves (`telling`): a trace of the interpreter would slow down all other code too, and an
export takes minutes then.
"""

from __future__ import annotations

import ast
import builtins
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import pytest

TOLD = "_told_a_watched_line"
"""What a statement calls before it is run, among the builtins: with the number of its file, its first and its last line."""


def telling(source: str, file: int) -> ast.Module:
    """A module whose functions say which statement is next; no line changes its number."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in _blocks(node):
                block[:] = [both for one in block for both in (_call(one, file), one)]
    return ast.fix_missing_locations(tree)


def _blocks(statement: ast.AST) -> Iterator[list[ast.stmt]]:
    """The lists of statements of a function or below a statement; functions and classes within are asked for their own."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list) and block:
            for inner in block:
                if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield from _blocks(inner)
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield from _blocks(part)


def _call(statement: ast.stmt, file: int) -> ast.stmt:
    within = [] if isinstance(statement, ast.Try | ast.Match) else [block[0].lineno for block in _blocks(statement)]
    last = min(within) - 1 if within else statement.end_lineno or statement.lineno
    numbers: list[ast.expr] = [ast.Constant(number) for number in (file, statement.lineno, max(last, statement.lineno))]
    return ast.copy_location(ast.Expr(ast.Call(ast.Name(TOLD, ast.Load()), numbers, [])), statement)


class WatchedLines:
    """To be given to `pytest.main`, where the code of `files` is `telling`, each by its place among them."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        """Absolute paths."""
        self.lines: dict[str, set[tuple[str, int]]] = {}
        """Test to (file, line)."""
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}
        """Seconds of the processor: they say nothing about what else the machine does."""
        self.failed: set[str] = set()
        """Those that did not pass; also those that were skipped."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, None, None]:
        """Watches one test with its fixtures."""
        seen: set[tuple[int, int, int]] = set()
        setattr(builtins, TOLD, lambda *line: seen.add(line))
        begun = time.process_time()
        try:
            yield
        finally:
            self.busy[item.nodeid] = self.busy.get(item.nodeid, 0.0) + time.process_time() - begun
            setattr(builtins, TOLD, lambda *line: None)
            mine = self.lines.setdefault(item.nodeid, set())
            mine |= {(self.files[file], line) for file, first, last in seen for line in range(first, last + 1)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the time and the outcome."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def to_json(self) -> dict[str, Any]:
        """Of those that passed."""
        return {
            test: {"seconds": self.seconds.get(test, 0.0), "busy": self.busy[test], "lines": sorted(lines)}
            for test, lines in self.lines.items()
            if test not in self.failed and test in self.seconds
        }
