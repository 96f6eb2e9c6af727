"""Commands that load PyTorch say so first: what loads it takes seconds, many on a slow or busy machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

WATCH = """
import sys
from flyspeck.cli.main import main

class Heard:
    def write(self, text):
        if text.strip():
            print(text.strip(), "torch" in sys.modules, file=sys.stderr)
            raise SystemExit(0)
    def flush(self):
        pass
    def isatty(self):
        return False

sys.stdout = Heard()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "words", [["train", __file__], ["auto", __file__, "--out", "auto"]], ids=lambda words: words[0]
)
def test_the_first_line_comes_before_pytorch(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", WATCH, *words], capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith(f"flyspeck {words[0]}")
    assert done.stderr.strip().splitlines()[0].endswith("... False")
