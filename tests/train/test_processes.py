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
from accelerate import Accelerator
from PIL import Image

from flyspeck.data.bands import rule_of
from flyspeck.data.readers import read_annotations
from flyspeck.files import read_jsonl
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.config import Recipe, dump_recipe
from flyspeck.train.measure import measure
from flyspeck.train.viewing import viewing_of
from tiny_sets import dynamic_recipe

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


@pytest.mark.slow
def test_two_processes_measure_the_weights_that_are_kept(
    make_recipe: RecipeMaker, tiny_set: Path, tmp_path: Path
) -> None:
    """The averaged weights, with the main process's norm statistics, on every process; large images in tiles on one of them."""
    content = json.loads((tiny_set / "val.json").read_text())
    for number, size in enumerate(((300, 200), (260, 220)), 100):
        Image.effect_noise(size, 90).save(tiny_set / f"images/large{number}.png")
        image = {"id": number, "file_name": f"images/large{number}.png", "width": size[0], "height": size[1]}
        content["images"].append(image)
    (tiny_set / "val_large.json").write_text(json.dumps(content))
    settings = {"epochs": 2, "eval_every": 1, "ema": 0.9}
    model = {"norm": "bn", "freeze_norms": False, "min_score": 0.001}
    recipe = make_recipe(train=settings, model=model, data={"val": str(tiny_set / "val_large.json")})
    done = subprocess.run(
        command(write(recipe, tmp_path), tmp_path / "two", processes=2), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    best, description = load_described(tmp_path / "two")
    annotations = read_annotations(recipe.data.val)
    viewing = viewing_of(recipe, description, best, rule_of(description))
    assert [viewing.goes_whole((int(h), int(w))) for h, w in annotations.sizes[-3:]] == [True, False, False]
    found = measure(best, annotations, protocol="flyspeck", viewing=viewing, accelerator=Accelerator(cpu=True))
    (tmp_path / "one").mkdir()
    found.write(tmp_path / "one", annotations)
    one, two = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) > 20
    assert [d["image_id"] for d in one] == [d["image_id"] for d in two]
    torch.testing.assert_close(*(torch.tensor([d["score"] for d in part]) for part in (one, two)), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_train_a_detector_and_the_predictor_of_its_factors(tiny_set: Path, tmp_path: Path) -> None:
    """The predictor is the main process's: it waits for none of the others, which have gone."""
    recipe = write(dynamic_recipe(tiny_set), tmp_path)
    done = subprocess.run(
        command(recipe, tmp_path / "two", processes=2), env=ENVIRONMENT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ap50_tiny@dpnet" in done.stdout
    assert (tmp_path / "two" / "dpnet" / "detections.json").is_file()
