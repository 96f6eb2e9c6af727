"""The suite under other processors' instructions: a pair takes effect, and the table tells what failed and what is lacking."""

from __future__ import annotations

from pathlib import Path

import pytest

from processors import PAIRS, Pair, capability, main

SUITE = """
import os
import torch

def test_what_it_is_held_to():
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"

def test_fails():
    assert False
"""


@pytest.mark.parametrize(
    ("has", "lacking"), [("DEFAULT", [2, 3]), ("AVX2", [3]), ("AVX512", []), ("NEON", [1, 2, 3]), ("SVE256", [1, 2, 3])]
)
def test_what_a_processor_lacks(has: str, lacking: list[int]) -> None:
    assert [place for place, pair in enumerate(PAIRS) if pair.lacking(has)] == lacking


def test_a_run_under_a_pair(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if capability() not in ("DEFAULT", "AVX2", "AVX512"):
        pytest.skip("needs an x86 processor")
    (tmp_path / "test_it.py").write_text(SUITE)
    unheard = Pair("avx512", "AVX512_CORE")
    object.__setattr__(unheard, "lacking", lambda has: True)
    assert main([str(tmp_path), "-p", "no:cacheprovider", "-c", "/dev/null"], (PAIRS[1], unheard)) == 1
    table = capfd.readouterr().out.partition("PyTorch / oneDNN")[2].splitlines()[1:]
    assert table[0].startswith("default / SSE41       1 passed, 0 skipped, 1 failed in ")
    assert table[1].strip() == "test_it::test_fails"
    assert table[2].startswith("avx512 / AVX512_CORE  lacking on this processor")
