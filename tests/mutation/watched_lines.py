"""A pytest plugin: which lines of some files each test reaches, how long it takes, and whether it passes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterable
from types import FrameType
from typing import Any

import pytest


class WatchedLines:
    """To be given to `pytest.main`."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = frozenset(files)
        """Absolute paths."""
        self.lines: dict[str, set[tuple[str, int]]] = {}
        """Test to (file, line)."""
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        """Those that did not pass; also those that were skipped."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, None, None]:
        """Watches one test with its fixtures."""
        seen = self.lines.setdefault(item.nodeid, set())

        def line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                seen.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line if frame.f_code.co_filename in self.files else None

        before = sys.gettrace()
        threading.settrace(call)
        sys.settrace(call)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before)  # type: ignore[arg-type]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the time and the outcome."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def to_json(self) -> dict[str, Any]:
        """Of those that passed."""
        return {
            test: {"seconds": self.seconds.get(test, 0.0), "lines": sorted(lines)}
            for test, lines in self.lines.items()
            if test not in self.failed and test in self.seconds
        }
