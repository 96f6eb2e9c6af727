"""Commands that load PyTorch say so first: what loads it takes seconds, many on a slow or busy machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    "words", [["train", "recipe.yaml"], ["auto", "set.json", "--out", "auto"]], ids=lambda words: words[0]
)
def test_the_first_line_comes_before_pytorch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {train: set.json, val: set.json}")
    (tmp_path / "set.json").write_text("{}")
    call = [sys.executable, "-c", WATCH, *words]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    first = done.stderr.strip().splitlines()[0]
    assert first.startswith(f"flyspeck {words[0]}")
    assert first.endswith(" False")
