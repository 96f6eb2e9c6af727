"""What the allocator does with freed maps, counted in page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flyspeck import allocator
from flyspeck.allocator import freed_memory_kept

COUNT = """
import contextlib, resource, sys, torch
from flyspeck.allocator import _mallopt, freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with freed_memory_kept():
    faults()
    inside = faults()
print(int(_mallopt() is not None), outside, inside)
"""


def counted(**environment: str) -> tuple[bool, int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-c", COUNT], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    known, outside, inside = map(int, out.stdout.split())
    return bool(known), outside, inside


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's allocator only")
def test_freed_maps_are_taken_again_without_page_faults() -> None:
    known, outside, inside = counted()
    if not known:
        pytest.skip("the C library is not GNU's")
    if outside < 1000:
        pytest.skip("the system's pages are too large to count")
    assert inside < outside / 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's allocator only")
def test_whoever_tunes_the_allocator_is_left_alone() -> None:
    assert counted(MALLOC_ARENA_MAX="2")[0] is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's allocator only")
def test_what_is_inside_another_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda *one: told.append(one))
    with freed_memory_kept(give_back=False):
        first = len(told)
        with freed_memory_kept(give_back=False):
            assert len(told) == first
        assert len(told) == first
    assert len(told) == 2 * first
