"""The suite under other processors' instructions: `python3 bootstrap.py test --processors [pytest's options]`.

Sums are done in another order by every instruction set, so that the last digits differ, and what hangs on them: the order
of equal scores, which of two equal boxes stays. A newer processor can be told to work as an older one does: PyTorch's own
kernels by ATEN_CPU_CAPABILITY, oneDNN's (convolutions, products) by ONEDNN_MAX_CPU_ISA. The suite runs once as the processor
is and once under each pair, one after the other; a table says what came of it and which pairs this processor lacks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("DEFAULT", "AVX2", "AVX512")
"""PyTorch's capabilities of an x86 processor, each of which holds those before it."""


@dataclass(frozen=True)
class Pair:
    """Instructions that PyTorch and oneDNN are held to; None: whatever the processor has."""

    aten: str | None
    onednn: str | None

    @property
    def name(self) -> str:
        return "native" if self.aten is None else f"{self.aten} / {self.onednn}"

    @property
    def environment(self) -> dict[str, str]:
        """What is added to a run's environment."""
        said = {"ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}
        return {name: value for name, value in said.items() if value is not None}

    def lacking(self, capability: str) -> bool:
        """Whether a processor of `capability`, as PyTorch names it, lacks the instructions: to ask for them would crash."""
        if self.aten is None:
            return False
        return capability not in LEVELS or LEVELS.index(self.aten.upper()) > LEVELS.index(capability)


PAIRS = (Pair(None, None), Pair("default", "SSE41"), Pair("avx2", "AVX2"), Pair("avx512", "AVX512_CORE"))


@dataclass(frozen=True)
class Result:
    """What a run of the suite gave."""

    tests: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float
    code: int

    @property
    def text(self) -> str:
        if self.code not in (0, 1) or (self.code and not self.failed):
            return f"pytest ended with {self.code}"
        passed = self.tests - self.skipped - len(self.failed)
        return f"{passed} passed, {self.skipped} skipped, {len(self.failed)} failed in {self.seconds:.0f} s"


def capability() -> str:
    """This processor's, as PyTorch names it, whatever the environment holds it to."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    held = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    return subprocess.run(
        [sys.executable, "-c", code], env=held, capture_output=True, text=True, check=True
    ).stdout.strip()


def run(pair: Pair, options: Sequence[str]) -> Result:
    """Runs pytest with `options` under a pair; what it prints passes through."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **pair.environment}).returncode
        if not report.is_file():
            return Result(0, (), 0, 0.0, code)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    wrong = [
        case for case in suite.iter("testcase") if any(case.find(kind) is not None for kind in ("failure", "error"))
    ]
    names = tuple(f"{case.get('classname')}::{case.get('name')}" for case in wrong)
    return Result(int(suite.get("tests", 0)), names, int(suite.get("skipped", 0)), float(suite.get("time", 0)), code)


def main(options: Sequence[str], pairs: Sequence[Pair] = PAIRS) -> int:
    """Runs every pair that the processor has and prints the table; 1 if anything failed."""
    has, lines, code = capability(), [], 0
    for pair in pairs:
        if pair.lacking(has):
            lines.append((pair.name, f"lacking on this processor ({has})"))
            continue
        print(f"--- {pair.name}", flush=True)
        result = run(pair, options)
        code = max(code, min(result.code, 1))
        lines += [(pair.name, result.text), *(("", f"  {name}") for name in result.failed)]
    print(f"\nPyTorch / oneDNN on a processor of {has}" + ("" if amx() else ", without AMX"))
    print("\n".join(f"{name:<22}{text}" for name, text in lines))
    return code


def amx() -> bool:
    """Whether the processor has matrix instructions (Linux tells), which no pair above uses: `native` then does."""
    told = Path("/proc/cpuinfo")
    return told.is_file() and " amx_tile" in told.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
