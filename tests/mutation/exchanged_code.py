"""Mutants without importing anything anew: in a forked process the code of loaded functions is exchanged, and tests run on it."""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from watched_lines import TOLD, WatchedLines, telling

UNFIT = 77
"""Exit code of a process that could not take the code."""


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those within it."""
    yield code
    for inside in code.co_consts:
        if isinstance(inside, CodeType):
            yield from codes(inside)


def exchange(path: str, source: str | ast.Module, functions: Sequence[FunctionType]) -> bool:
    """Gives the loaded `functions` of the file `path` the code that `source` has for them; False where one cannot take it.

    Functions within functions are made anew at every call, from the code of the outer one.
    """
    new: dict[tuple[str, int], list[CodeType]] = {}
    for code in codes(compile(source, path, "exec", dont_inherit=True)):
        new.setdefault((code.co_qualname, code.co_firstlineno), []).append(code)
    for function in functions:
        old = function.__code__
        found = new.get((old.co_qualname, old.co_firstlineno), [])
        if len(found) != 1 or len(found[0].co_freevars) != len(old.co_freevars):
            return False
        function.__code__ = found[0]
    return True


def loaded_functions(path: str) -> list[FunctionType]:
    """All functions that live and come from a file."""
    return [one for one in gc.get_objects() if type(one) is FunctionType and one.__code__.co_filename == path]


def telling_now(path: str, number: int) -> bool:
    """Has the functions of a file tell their lines, loaded as it may be only later; whether all can."""
    place = next(Path(one) for one in sys.path if one and Path(path).is_relative_to(one))
    importlib.import_module(".".join(Path(path).relative_to(place).with_suffix("").parts).removesuffix(".__init__"))
    functions = [
        one for one in loaded_functions(path) if one.__name__ != "<lambda>"
    ]  # whoever made them tells their line
    return exchange(path, telling(Path(path).read_text(encoding="utf-8"), number), functions)


def forked(work: Callable[[], int], *, seconds: float, log: Path) -> str:
    """What becomes of `work` in a forked process that prints to `log`: passed (it gives 0), failed, unfit (`UNFIT`), timeout."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            with log.open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            code = work()
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(code)
    until = time.time() + seconds
    while time.time() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "passed", UNFIT: "unfit"}.get(code, "failed")
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


class Exchanging:
    """A pytest plugin that collects once, and then runs what it is told, each in a forked process."""

    def __init__(self, files: Sequence[str], log: Path, temporary: Path, told: Callable[[Exchanging], None]) -> None:
        """`told` is called when all is collected; it calls `watch` and `outcome`."""
        self.files, self.log, self.temporary, self.told = files, log, temporary, told
        self.items: dict[str, pytest.Item] = {}
        self.functions: dict[str, list[FunctionType]] = {}
        self.failed = ""
        """The test that failed last, in a forked process."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In the place of the usual one."""
        self.items = {item.nodeid: item for item in session.items}
        self.functions = {path: loaded_functions(path) for path in self.files}
        gc.freeze()
        self.told(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a failure."""
        if report.failed and not self.failed:
            self.failed = report.nodeid
            print("FAILED", report.nodeid, str(report.longrepr)[-1500:], flush=True)

    def _run(self, tests: Sequence[str]) -> int:
        items = [self.items[test] for test in tests]
        for place, item in enumerate(items):
            following = items[place + 1] if place + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0

    def _clean(self) -> None:
        for place in self.temporary.glob("*"):
            shutil.rmtree(place, ignore_errors=True)

    def watch(self, kept: Path) -> None:
        """Runs all tests, and writes what they reach as `WatchedLines` says."""
        import json

        if not self.items:
            raise RuntimeError("no test was collected")

        def work() -> int:
            watching = WatchedLines(self.files)
            setattr(builtins, TOLD, lambda *line: None)
            for number, path in enumerate(self.files):
                if not telling_now(path, number):
                    raise RuntimeError(f"{path}: its functions cannot be watched")
            (manager,) = {
                id(item.config.pluginmanager): item.config.pluginmanager for item in self.items.values()
            }.values()
            manager.register(watching)
            for test in self.items:
                self._run([test])
                self.failed = ""
            kept.write_text(json.dumps(watching.to_json()), encoding="utf-8")
            return 0

        outcome = forked(work, seconds=1800, log=self.log)
        self._clean()
        if outcome != "passed":
            raise RuntimeError(f"{outcome}: {self.log.read_text(errors='replace')[-3000:]}")

    def outcome(self, path: str, source: str, tests: Sequence[str], seconds: float) -> str:
        """Of `tests` with the file `path` as `source`: passed, failed, timeout, or unfit: its functions cannot take that code."""

        def work() -> int:
            if not exchange(path, source, self.functions[path]):
                return UNFIT
            return self._run(tests)

        found = forked(work, seconds=seconds, log=self.log)
        self._clean()
        return found


def kept_temporary(folder: Path) -> list[str]:
    """The words for pytest."""
    usual: list[Any] = ["-p", "no:cacheprovider", "-p", "no:randomly", "-q", "-s", "-n", "0", f"--basetemp={folder}"]
    return list(map(str, usual))
