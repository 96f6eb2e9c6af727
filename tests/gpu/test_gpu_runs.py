"""Whole runs on a GPU: training, going on, distillation, prediction, and the runtimes of exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flyspeck
from conftest import PLAYED
from flyspeck.train.config import Recipe, dump_recipe, parse_recipe
from flyspeck.train.distill.stages import distill
from flyspeck.train.run import train
from same_detections import assert_same_detections
from small_training import base_recipe, write_squares
from tiny_sets import train_dynamic, write_tiny_set

KINDS = ("retinanet:mobilenet_v2", "faster_rcnn:mobilenet_v2", "fcos:mobilenet_v2")


@pytest.fixture(autouse=True)
def trained_there(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """A real GPU is taken unasked; a played one is put in its place."""
    if PLAYED:
        from accelerate import Accelerator

        monkeypatch.setattr(Accelerator, "device", property(lambda _: device))


def recipe(folder: Path, **changes: Any) -> Recipe:
    content = base_recipe()
    where = write_squares(folder) / "data" / "squares"
    content["data"] |= {"train": str(where / "train.json"), "val": str(where / "val.json")}
    if not changes.get("model", {}).get("name", "retinanet").startswith("retinanet"):
        content["model"] = {name: content["model"][name] for name in ("width", "channels")}
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value}
    return parse_recipe(content, where="test")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_and_its_detections(name: str, precision: str, tmp_path: Path, device: torch.device) -> None:
    if PLAYED and precision == "bf16":
        pytest.skip("mixed precision is a property of real kernels")
    plan = recipe(tmp_path, model={"name": name}, train={"precision": precision, "ema": 0.9})
    metrics = train(plan, tmp_path / "run")
    assert "ap50_all" in metrics
    image = next((tmp_path / "data" / "squares").glob("val*.png"))
    options = {"score_threshold": 0.0, "tile": "off"}
    (there,) = flyspeck.load_predictor(tmp_path / "run", device=str(device), **options).predict([image])
    (here,) = flyspeck.load_predictor(tmp_path / "run", device="cpu", **options).predict([image])
    assert_same_detections([there], [here], box_px=0.05, score=1e-3, strays=0.05)


def test_it_goes_on(tmp_path: Path, cuda: torch.device) -> None:
    train(recipe(tmp_path, train={"epochs": 1, "eval_every": 1}), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", map_location="cpu", weights_only=True)
    assert state
    metrics = train(recipe(tmp_path, train={"epochs": 1, "eval_every": 1}), tmp_path / "run", resume=True)
    assert "ap50_all" in metrics


@pytest.mark.parametrize("cached", [False, True])
def test_a_student_learns_from_a_teacher(cached: bool, tmp_path: Path, device: torch.device) -> None:
    teacher = recipe(tmp_path, model={"channels": 24}, train={"epochs": 1})
    (tmp_path / "teacher.yaml").write_text(dump_recipe(teacher))
    section: dict[str, Any] = {"teacher": str(tmp_path / "teacher.yaml"), "weight": 0.1}
    section |= {"cache": str(tmp_path / "cache")} if cached else {}
    plan = recipe(tmp_path, augment={"photometric": 0}, train={"epochs": 1, "eval_every": 1}, distill=section)
    table = distill(plan, tmp_path / "run")
    assert [row.name for row in table.rows] == ["teacher", "run (hierarchical)"]


def test_factors_are_learnt_and_chosen(tmp_path: Path, device: torch.device) -> None:
    metrics = train_dynamic(write_tiny_set(tmp_path / "set"), tmp_path / "run")
    assert "ap50_tiny@dpnet" in metrics


def test_tiles_of_a_large_image(tmp_path: Path, device: torch.device) -> None:
    train(recipe(tmp_path, train={"epochs": 1, "eval_every": 1}), tmp_path / "run")
    pixels = np.random.default_rng(0).integers(60, 90, (200, 300), np.uint8)
    pixels[50:58, 70:78] = 250
    Image.fromarray(pixels).save(tmp_path / "large.png")
    found = [
        flyspeck.load_predictor(tmp_path / "run", device=place, score_threshold=0.01).predict([tmp_path / "large.png"])[
            0
        ]
        for place in (str(device), "cpu")
    ]
    assert_same_detections([found[0]], [found[1]], box_px=0.05, score=1e-3, strays=0.05)


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_an_exported_file_in_onnx_runtime(provider: str, tmp_path: Path, cuda: torch.device) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if provider not in runtime.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has no {provider}")
    train(recipe(tmp_path), tmp_path / "run")
    flyspeck.export(tmp_path / "run", out=tmp_path / "m.onnx")
    image = next((tmp_path / "data" / "squares").glob("val*.png"))
    (there,) = flyspeck.load_predictor(tmp_path / "m.onnx", device="cuda", score_threshold=0.0).predict([image])
    (here,) = flyspeck.load_predictor(tmp_path / "m.onnx", device="cpu", score_threshold=0.0).predict([image])
    assert_same_detections([there], [here], box_px=0.05, score=1e-3, strays=0.05)
