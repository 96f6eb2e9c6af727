"""Two processes with the same global batch follow one process's losses; a real kill is survived. Real launches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flyspeck.files import read_jsonl
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe, dump_recipe

RecipeMaker = Callable[..., Recipe]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command(recipe: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    # Not `accelerate launch --cpu`: on a machine without a GPU that starts one process, whatever number it is given.
    several = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    launch = [sys.executable, *(several if processes > 1 else []), "-m", "flyspeck.cli.main"]
    return [*launch, "train", str(recipe), "--out", str(out), *more]


def write(recipe: Recipe, folder: Path) -> Path:
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder / "recipe.yaml"


def losses(folder: Path) -> torch.Tensor:
    records = [r for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == "step"]
    return torch.tensor([list(r["losses"].values()) for r in records])


@pytest.mark.slow
def test_two_processes_follow_one(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    settings = {"epochs": 17, "eval_every": 17, "ema": 0.9, "log_every": 1}
    recipe = write(make_recipe(train=settings), tmp_path)
    for name, processes in (("one", 1), ("two", 2)):
        done = subprocess.run(
            command(recipe, tmp_path / name, processes=processes), env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads((tmp_path / name / "environment.json").read_text())["processes"] == processes
    one, two = losses(tmp_path / "one")[:50], losses(tmp_path / "two")[:50]
    assert len(one) == len(two) == 50
    assert one[-1].sum() < 0.8 * one[0].sum()  # it has learnt, so that the comparison means something
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_kill_and_resume_ends_with_the_same_weights(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    settings = {"epochs": 6, "eval_every": 6, "checkpoint_every": 2, "optimizer": "adamw", "lr": 0.001}
    recipe = write(make_recipe(train=settings), tmp_path)
    subprocess.run(command(recipe, tmp_path / "whole"), env=ENVIRONMENT, check=True, capture_output=True)
    process = subprocess.Popen(
        command(recipe, tmp_path / "killed"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and len(read_jsonl(metrics)) >= 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(recipe, tmp_path / "killed", "--resume"), env=ENVIRONMENT, check=True, capture_output=True)
    expected = load_weights(tmp_path / "whole" / "last.safetensors")[0]
    got = load_weights(tmp_path / "killed" / "last.safetensors")[0]
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
