"""A run folder of a tiny detector with random weights, and its exported files, made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from flyspeck.models.deformable import DeformableConv
from flyspeck.models.detector import Detector
from flyspeck.models.postprocess import Suppression
from flyspeck.train.build import build_detector, describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig
from spread_scores import spread_scores

CLASSES = ("dot", "dash")
HEIGHT, WIDTH = 96, 128
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RULE = Suppression(score=0.02, iou=0.5, max_detections=50)
"""How the detectors of `make_detector` suppress, unless they are told otherwise."""


def make_detector(
    name: str, *, classes: Sequence[str] = CLASSES, bands: int = 3, **model: object
) -> tuple[Detector, ModelConfig]:
    """A detector of the zoo, narrow, in evaluation mode, whose scores are spread out as a trained one's are."""
    content = {"name": name, "width": 0.125, "channels": 16, "levels": "4-5", "min_score": 0.02, "max_detections": 50}
    config = ModelConfig.model_validate({**content, **model})
    torch.manual_seed(0)
    detector = build_detector(config, classes=classes, mean=MEAN[:bands], std=STD[:bands]).eval()
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, DeformableConv):  # it starts as a plain convolution
                module.offset.weight.normal_(0, 0.1)
    spread_scores(detector)
    return detector, config


def write_images(folder: Path, number: int, *, seed: int, name: str) -> Path:
    """Grey noise with bright squares of 6 to 24 px, and its COCO json."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for i in range(number):
        pixels = rng.integers(60, 120, (HEIGHT, WIDTH, 3), np.uint8)
        for _ in range(4):
            side = int(rng.integers(6, 24))
            x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
            pixels[y : y + side, x : x + side] = rng.integers(150, 255, 3)
            box = {"image_id": i + 1, "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "category_id": 1 + len(boxes) % 2, **box})
        Image.fromarray(pixels).save(folder / f"{name}{i}.png")
        images.append({"id": i + 1, "file_name": f"{name}{i}.png", "height": HEIGHT, "width": WIDTH})
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": i + 1, "name": c} for i, c in enumerate(CLASSES)],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def write_run(folder: Path, name: str, **model: object) -> Path:
    """A run folder with everything that exporting reads."""
    folder.mkdir(parents=True)
    detector, config = make_detector(name, **model)
    train, val = (write_images(folder, n, seed=n, name=part) for n, part in ((6, "train"), (4, "val")))
    description = {
        **describe_model(config, classes=CLASSES, mean=MEAN, std=STD),
        "training_size": [64, 96],
        "object_side_99": 24.0,
        "enlarge": {"factor": 1.5, "short_side": None},
        "protocol": "flyspeck",
        "metrics": {"ap50_tiny": 0.01},
    }
    save_weights(folder / "best.safetensors", detector.state_dict(), description)
    recipe = {
        "name": "tiny",
        "data": {"train": str(train), "val": str(val), "enlarge": 1.5},
        "model": config.model_dump(mode="json", exclude_defaults=True),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@dataclass(frozen=True)
class Exports:
    """The run and what was made of it."""

    run: Path
    onnx: Path
    said: str
    core: Any
    """What was traced, before it got its frame."""


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """An FCOS exported to ONNX by the library's own call."""
    from flyspeck.export import package
    from flyspeck.export.onnx import trace

    folder = tmp_path_factory.mktemp("exports")
    run = write_run(folder / "run", "fcos:resnet18", norm="bn", head={"depth": 1})
    said: list[str] = []
    cores: list[Any] = []

    def keep(*given: Any, **named: Any) -> Any:
        cores.append(trace(*given, **named))
        return cores[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "trace", keep)
        package.export_model(run, folder / "model.onnx", package.ExportOptions(), say=said.append)
    return Exports(run, folder / "model.onnx", "\n".join(said), cores[0])
