"""A data set small enough to train on in seconds, and a finished run that chooses its factor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.run import train


def write_set(folder: Path, num_images: int, *, seed: int = 0, name: str = "set.json") -> Path:
    """Grey 96x64 images of noise with up to three bright squares of 6-12 px, one dark ignore region, COCO json."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for i in range(num_images):
        pixels = rng.integers(90, 150, (64, 96)).astype(np.uint8)
        file_name = f"images/{name.split('.')[0]}{i:03d}.png"
        images.append({"id": i + 1, "file_name": file_name, "width": 96, "height": 64})
        for x in (4, 34, 64)[: int(rng.integers(0, 4))]:
            side, dx, y = int(rng.integers(6, 13)), int(rng.integers(0, 12)), int(rng.integers(0, 50))
            pixels[y : y + side, x + dx : x + dx + side] = 250
            boxes.append({"image_id": i + 1, "bbox": [x + dx, y, side, side], "category_id": 7, "iscrowd": 0})
        if i % 3 == 0:
            pixels[50:60, 80:95] = 10
            boxes.append({"image_id": i + 1, "bbox": [80, 50, 15, 10], "category_id": 7, "iscrowd": 0, "ignore": 1})
        Image.fromarray(pixels).save(folder / file_name)
    for number, box in enumerate(boxes, 1):
        box |= {"id": number, "area": box["bbox"][2] * box["bbox"][3]}
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "square"}]}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def write_tiny_set(folder: Path) -> Path:
    """Writes `train.json` (12 images) and `val.json` (6) into `folder`, which it returns."""
    write_set(folder, 12, seed=1, name="train.json")
    write_set(folder, 6, seed=2, name="val.json")
    return folder


def train_dynamic(tiny_set: Path, folder: Path) -> dict[str, float]:
    """Trains a detector of two factors and its predictor on `tiny_set` into `folder`; returns the run's metrics."""
    return train(dynamic_recipe(tiny_set), folder)


def dynamic_recipe(tiny_set: Path, model: Mapping[str, Any] | None = None, *, predictor_epochs: int = 2) -> Recipe:
    """A detector of two factors and its predictor."""
    small = {"name": "retinanet:mobilenet_v2", "width": 0.25, "channels": 16, "norm": "bn", "head": {"depth": 1}}
    return parse_recipe(
        {
            "data": {"train": str(tiny_set / "train.json"), "val": str(tiny_set / "val.json"), "enlarge": 2.0},
            "model": small if model is None else model,
            "train": {"epochs": 1, "batch_size": 4, "optimizer": "sgd", "lr": 0.01, "warmup_steps": 2, "workers": 0},
            "evaluate": {"batch_size": 4},
            "dynamic": {"factors": [0.5, 0.25], "predictor": {"epochs": predictor_epochs, "batch_size": 4}},
        }
    )
