"""Mistakes that are plain before anything slow is loaded are said at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = "import sys; from flyspeck.cli.main import main; code = main({words}); print(code, 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "gone.yaml"], "error: gone.yaml: no such recipe"),
        (["train", ".", "--minutes", "0"], "error: --minutes: 0 minutes; give a number above 0"),
        (
            ["auto", "a.json", "--out", "runs/a", "--minutes", "-1"],
            "error: --minutes: -1 minutes; give a number above 0",
        ),
    ],
    ids=["recipe", "train", "auto"],
)
def test_a_mistake_is_said_before_torch_is_loaded(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(words=words)], capture_output=True, text=True, check=True)
    assert done.stderr.startswith(said)
    assert done.stdout == "2 False\n"
