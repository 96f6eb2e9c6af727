"""The tests of the GPU on a machine without one: no tensor is made on another device than it is needed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


ALL_MODELS = "test_it_trains_and_finds_as_on_the_processor"


@pytest.mark.parametrize(
    "which",
    [f"not {ALL_MODELS} or resnet18", pytest.param(ALL_MODELS, marks=pytest.mark.slow)],
    ids=["parts", "models"],
)
def test_no_device_is_mixed(which: str, tmp_path: Path) -> None:
    """In a process of its own, which knows a device more."""
    pytest.importorskip("timm")
    options = ("-x", "-m", "gpu", "-k", which, "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "runs"))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/gpu"],
        env={**os.environ, "FLYSPECK_GPU": "played", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert int(ran.stdout.rpartition(" passed")[0].rpartition("\n")[2].split()[-1]) > 30
