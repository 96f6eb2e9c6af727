#!/usr/bin/env python3
"""Would the tests notice? Mutants of whole modules, each tried by the nearby tests that reach its line.

    python tests/mutation/campaign_of_mutants.py --areas merge,readers --most 60 --seed 1 --json mutants.json

The package is copied; of each area `--most` mutants are drawn with the seed. A mutant runs in a process of its own, forked from
one that has loaded all; the tests that reach its line run from the fastest on, and end with the first that fails.
`--again FILE:LINE` tries all mutants of a line, `--survivors mutants.json` those that survived before.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from areas import AREAS, why  # noqa: E402
from exchanged_code import Exchanging, forked, kept_temporary  # noqa: E402
from mutants import Mutant, mutants  # noqa: E402

LIBRARIES = ("torch", "torchvision", "numpy", "PIL.Image", "scipy.io", "yaml", "onnx", "onnxruntime", "openvino")
SLOWEST, MOST = 20.0, 120
"""A test that takes more seconds of the processor is not asked, nor one beyond so many that are faster."""


_SCREEN = os.dup(2)
"""Where forked processes, whose own output goes to a log, tell how it goes."""


def say(text: str) -> None:
    """A line on the screen."""
    os.write(_SCREEN, f"{text}\n".encode())


@dataclass
class Verdict:
    """What became of one mutant."""

    file: str
    mutant: Mutant
    killed: bool
    how: str
    """failed, timeout, or why it survived."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {"file": self.file, "line": self.mutant.line, "change": self.mutant.text(), "how": self.how}
        return {**found, "killed": self.killed}

    def text(self) -> str:
        """On one line."""
        what = f"{self.file}:{self.mutant.line} {self.mutant.text()}"
        return f"killed ({self.how}) {what}" if self.killed else f"SURVIVED ({self.how}) {what}"


class Scratch:
    """A copy of the package, in which one file at a time is changed, and processes that run tests on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "src"
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__"))
        self.log, self.temporary = folder / "log.txt", folder / "temporary"
        self._time = int(time.time()) + 1000
        paths = [self.source, ROOT / "lab" / "src"]
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        sys.path[:] = [str(path) for path in paths] + [p for p in sys.path if not p.endswith(("/src", "/lab/src"))]
        os.chdir(ROOT)
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        assert not any(name.partition(".")[0] == "flyspeck" for name in sys.modules)

    def write(self, file: str, text: str) -> None:
        """A file of the package; its time is new, so that no compiled one is taken for it."""
        path = self.source / file
        path.write_text(text, encoding="utf-8")
        self._time += 10
        os.utime(path, (self._time, self._time))

    def pytest(self, words: list[str], seconds: float, *plugins: Any) -> str:
        """Of pytest in a forked process, which imports the package anew: passed, failed, or timeout."""

        def work() -> int:
            import pytest

            shutil.rmtree(self.temporary, ignore_errors=True)
            return int(pytest.main([*kept_temporary(self.temporary), *words], plugins=list(plugins)))

        return forked(work, seconds=seconds, log=self.log)


class Area:
    """Some modules, the tests near them, and which test reaches which line."""

    def __init__(self, name: str, scratch: Scratch) -> None:
        self.name, self.scratch = name, scratch
        patterns, self.words = AREAS[name]
        self.files = sorted(str(p.relative_to(ROOT / "src")) for one in patterns for p in (ROOT / "src").glob(one))
        self.reached: dict[str, Any] = {}

    def tests_of(self, file: str, mutant: Mutant) -> list[str]:
        """The tests that reach a mutant, the fastest first; of what an import runs, all that reach the file."""
        path = str(self.scratch.source / file)
        wanted = range(mutant.line, mutant.line + mutant.old.count("\n") + 1)
        found = [
            (about["busy"], test)
            for test, about in self.reached.items()
            if about["busy"] < SLOWEST
            and any(one == path and (line in wanted or not mutant.inside) for one, line in about["lines"])
        ]
        return [test for _, test in sorted(found)[:MOST]]

    def seconds_of(self, tests: list[str]) -> float:
        """How long a mutant may take on them."""
        return 30 + 5 * sum(self.reached[test]["seconds"] for test in tests)

    def verdicts(self, chosen: list[tuple[str, Mutant]], told: Callable[[Verdict], None]) -> None:
        """Tries mutants: those in functions where the package is loaded, the others with it imported anew."""
        kept, later = self.scratch.folder / f"{self.name}.json", self.scratch.folder / "later.json"

        def work(exchanging: Exchanging) -> None:
            exchanging.watch(kept)
            self.reached = json.loads(kept.read_text(encoding="utf-8"))
            rest = []
            for number, (file, mutant) in enumerate(chosen):
                verdict = self._tried(file, mutant, exchanging) if mutant.inside else None
                if verdict is None:
                    rest.append(number)
                else:
                    told(verdict)
            later.write_text(json.dumps(rest), encoding="utf-8")

        files = [str(self.scratch.source / file) for file in self.files]
        own = self.scratch.folder / "log-of-mutants.txt"
        plugin = Exchanging(files, own, self.scratch.temporary, work)
        later.unlink(missing_ok=True)
        self.scratch.pytest(list(self.words), 7200, plugin)
        if not later.is_file():
            raise SystemExit(f"{self.name}: {self.scratch.log.read_text(errors='replace')[-3000:]}")
        self.reached = json.loads(kept.read_text(encoding="utf-8"))
        for number in json.loads(later.read_text(encoding="utf-8")):
            verdict = self._tried(*chosen[number], None)
            assert verdict is not None
            told(verdict)

    def _tried(self, file: str, mutant: Mutant, exchanging: Exchanging | None) -> Verdict | None:
        """One mutant; None where the loaded functions cannot take its code."""
        tests = self.tests_of(file, mutant)
        if not tests:
            return Verdict(file, mutant, False, "no nearby test reaches it")
        source = (ROOT / "src" / file).read_text(encoding="utf-8")
        seconds, changed = self.seconds_of(tests), mutant.applied(source)
        self.scratch.write(file, changed)  # for programs that a test starts, too
        try:
            if exchanging is not None:
                outcome = exchanging.outcome(str(self.scratch.source / file), changed, tests, seconds)
            else:
                outcome = self.scratch.pytest(["-x", *tests], seconds)
        finally:
            self.scratch.write(file, source)
        if outcome == "unfit":
            return None
        return Verdict(
            file, mutant, outcome != "passed", outcome if outcome != "passed" else f"{len(tests)} tests pass"
        )

    def all_mutants(self) -> list[tuple[str, Mutant]]:
        """Of all files."""
        return [
            (file, one) for file in self.files for one in mutants((ROOT / "src" / file).read_text(encoding="utf-8"))
        ]


def of_area(name: str, scratch: Scratch, *, seed: int, most: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """The counts of an area, and its survivors; of those drawn `before` with the same seed, only what survived is tried again."""
    area = Area(name, scratch)
    every = area.all_mutants()
    places = sorted(random.Random(seed).sample(range(len(every)), min(most, len(every))))
    drawn = len(places)
    if before is not None:
        assert (before["seed"], before["tried"], before["mutants"]) == (seed, drawn, len(every)), "the code has changed"
        lived = {(one["file"], one["line"], one["change"]) for one in before["survivors"]}
        places = [place for place in places if (every[place][0], every[place][1].line, every[place][1].text()) in lived]
    file = scratch.folder / "verdicts.jsonl"
    file.write_text("")

    def told(verdict: Verdict) -> None:
        """On the screen, and in a file, since most are found in another process."""
        with file.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(verdict.to_json()) + "\n")
        say(f"{name} {verdict.text()}")

    area.verdicts([every[place] for place in places], told)
    verdicts = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    survivors = [one for one in verdicts if not one.pop("killed")]
    for one in survivors:
        code = (ROOT / "src" / one["file"]).read_text(encoding="utf-8").splitlines()[one["line"] - 1]
        one["why"] = why(one["file"], code, one["change"])
    return {
        "mutants": len(every), "tried": drawn, "seed": seed, "killed": drawn - len(survivors),
        "survivors": survivors,
    }  # fmt: skip


def again(spot: str, scratch: Scratch, names: list[str]) -> None:
    """All mutants of one line."""
    file, _, line = spot.rpartition(":")
    for name in names:
        area = Area(name, scratch)
        chosen = [one for one in area.all_mutants() if one[0].endswith(file) and one[1].line == int(line)]
        if chosen:
            area.verdicts(chosen, lambda verdict: say(verdict.text()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", default=",".join(AREAS))
    parser.add_argument("--most", type=int, default=60, help="mutants of an area")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--survivors", type=Path, help="counts of before, whose survivors alone are tried again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", metavar="FILE:LINE")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {}
    before = json.loads(asked.survivors.read_text(encoding="utf-8")) if asked.survivors else {}
    with tempfile.TemporaryDirectory() as place:
        scratch = Scratch(Path(place))
        if asked.again:
            again(asked.again, scratch, asked.areas.split(","))
            return
        for name in asked.areas.split(","):
            found[name] = of_area(name, scratch, seed=asked.seed, most=asked.most, before=before.get(name))
            say(f"{name}: {found[name]['killed']} of {found[name]['tried']} killed")
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
