"""What mutation testing rests on: mutants are sound Python of as many lines, and loaded functions take their code."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path
from types import ModuleType

import pytest
from areas import AREAS, EQUIVALENT
from exchanged_code import exchange, loaded_functions
from mutants import mutants
from watched_lines import TOLD, telling

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''\
"""Words that stay."""
LIMIT = 3


def inside(a: int, b: int = 2) -> bool:
    """Text."""
    if a < b and not (
        a == 0
    ):
        raise ValueError(f"{a + 1} of {b}")
    return min(a, b) + 1 > LIMIT


class Held:
    def __init__(self, a):
        self.a = a
        self.told: int = 0

    def grow(self):
        self.a += 1
        for one in range(self.a):
            if one:
                continue
            print(one)
        return lambda: self.a * 2
'''


def test_every_kind_of_change() -> None:
    found = {(one.line, one.text()) for one in mutants(SOURCE)}
    assert (2, "3 → (3 + 1)") in found
    assert (7, "a < b → (a <= b)") in found
    assert (11, "min → max") in found
    assert (11, "min(a, b) + 1 > LIMIT → (min(a, b) + 1 >= LIMIT)") in found
    assert (11, "min(a, b) + 1 → (min(a, b) - 1)") in found
    assert (20, "self.a += 1 → pass") in found
    assert (23, "continue → break") in found
    assert (24, "print(one) → pass") in found
    assert (25, "self.a * 2 → (self.a / 2)") in found
    assert any(text.endswith("→ pass") and line == 10 for line, text in found)
    assert not any("of {b" in text and "+ 1) of" in text for _, text in found)  # what is said stays


def test_mutants_keep_their_lines_and_are_python() -> None:
    for one in mutants(SOURCE):
        changed = one.applied(SOURCE)
        assert changed != SOURCE
        assert changed.count("\n") == SOURCE.count("\n")
        ast.parse(changed)
    assert {one.line for one in mutants(SOURCE) if not one.inside} == {2, 5}


def test_loaded_functions_take_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "loaded.py")
    module = ModuleType("loaded_for_mutants")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(SOURCE, path, "exec"), module.__dict__)
    held, functions = module.Held(1), loaded_functions(path)
    assert {one.__name__ for one in functions} == {"inside", "__init__", "grow"}
    assert held.grow()() == 4
    assert exchange(path, SOURCE.replace("self.a * 2", "self.a * 5"), functions)
    assert held.grow()() == 15
    assert not exchange(path, SOURCE.replace("def grow", "def shrink"), functions)


def test_functions_tell_the_lines_that_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = "watched_for_mutants.py", set()
    module = ModuleType("watched_for_mutants")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(SOURCE, path, "exec"), module.__dict__)
    monkeypatch.setattr(
        builtins,
        TOLD,
        lambda file, first, last: seen.update((file, line) for line in range(first, last + 1)),
        raising=False,
    )
    assert exchange(path, telling(SOURCE, 7), loaded_functions(path))
    assert module.inside(2, 1) is False
    assert seen == {(7, line) for line in (6, 7, 8, 9, 11)}  # the text, the whole head of the condition, not the raise
    seen.clear()
    held = module.Held(0)
    held.a = -1
    assert held.grow()() == 0
    assert seen == {(7, line) for line in (16, 17, 20, 21, 25)}  # the loop's head, none of its body


def test_areas_name_what_is_there() -> None:
    for patterns, words in AREAS.values():
        assert all(list((ROOT / "src").glob(pattern)) for pattern in patterns)
        for file, _, test in (word.partition("::") for word in words):
            assert (ROOT / file).exists()
            assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
    for (file, piece, change), reason in EQUIVALENT.items():
        source = (ROOT / "src" / file).read_text(encoding="utf-8")
        lines = [number for number, line in enumerate(source.splitlines(), 1) if piece in line]
        found = mutants(source, lambda one, lines=lines, change=change: one.line in lines and one.text() == change)
        assert found, f"{file}: {change}: the code moved, move the entry with it"
        assert len(reason) > 20
