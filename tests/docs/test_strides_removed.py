"""The example of strides removed with no fine-tuning: on images of one's own, and its parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from flyspeck.types import Detections, Targets

SCRIPT = Path(__file__).parents[2] / "examples" / "strides_removed.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("strides_removed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(name="retinanet:mobilenet_v2", width=0.25, channels=8, min_score=0.0, max_detections=20)
    statistics = {"classes": ("person",), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    detector = build_detector(config, **statistics)
    save_weights(tmp_path / "best.safetensors", detector.state_dict(), describe_model(config, **statistics))
    return tmp_path / "best.safetensors"


def test_on_ones_own_images(
    example: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ["x", "--run", str(run), "--images", str(tmp_path / "a.png"), "--out", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--eliminate", "S1L0"])
    example.main()
    assert "a.png strided: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"a.strided.png", "a.S1L0.png"}
    monkeypatch.setattr(sys, "argv", [*arguments, "--eliminate", "S1L1"])  # MobileNetV2's layer 1 has no stride
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2
    assert "stride" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x", "--run", str(run)])
    with pytest.raises(SystemExit):
        example.main()
    assert "--run needs --images" in capsys.readouterr().err


def test_shapes_and_recall_by_hand(example: ModuleType) -> None:
    images, targets = example.shapes(3, 1)
    assert tuple(images.pixels.shape) == (3, 3, 192, 192)
    for image, target in zip(images.pixels, targets, strict=True):
        x1, y1, x2, y2 = target.boxes[0].long().tolist()
        assert (image[:, (y1 + y2) // 2, (x1 + x2) // 2] == 230).all()
    small, halves = example.shrunk(images, targets, 2)
    assert tuple(small.pixels.shape) == (3, 3, 96, 96)
    assert_allclose(halves[0].boxes.numpy(), targets[0].boxes.numpy() / 2)
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32)
    truth = Targets(torch.from_numpy(boxes), torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.bool))
    # The first is found; the second too weakly, the third as the other class.
    found = Detections(boxes, np.array([0.9, 0.2, 0.9], np.float32), np.array([0, 0, 0]), (60, 60), ("a", "b"))
    assert example.recall([found], [truth]) == pytest.approx(1 / 3)
