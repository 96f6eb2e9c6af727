"""A data set and a recipe that train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_set(folder: Path, name: str, num_images: int, seed: int) -> None:
    """Dark 64x48 images with one or two bright squares of 6-10 px."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for i in range(1, num_images + 1):
        pixels = rng.integers(60, 90, (48, 64)).astype(np.uint8)
        images.append({"id": i, "file_name": f"{name}{i}.png", "width": 64, "height": 48})
        for x in (4, 36)[: 1 + i % 2]:
            side, y = int(rng.integers(6, 11)), int(rng.integers(0, 36))
            pixels[y : y + side, x : x + side] = 250
            box = {"image_id": i, "bbox": [x, y, side, side], "area": side**2, "category_id": 1, "iscrowd": 0}
            boxes.append(box | {"id": len(boxes) + 1})
        Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / f"{name}.json").write_text(json.dumps(content))


def write_squares(folder: Path) -> Path:
    """Writes `data/squares/train.json` (8 images) and `val.json` (5) below `folder`, which it returns."""
    write_set(folder / "data" / "squares", "train", 8, 1)
    write_set(folder / "data" / "squares", "val", 5, 2)
    return folder


def base_recipe() -> dict[str, Any]:
    """A recipe's mapping without the paths of its data."""
    return {
        "data": {"channels": 1},
        "model": {
            "name": "retinanet:mobilenet_v2",
            "width": 0.25,
            "channels": 16,
            "norm": "gn",
            "anchors": {"octaves": 1},
            "head": {"depth": 1},
        },
        "train": {"epochs": 2, "batch_size": 4, "warmup_steps": 2, "workers": 0, "eval_every": 2},
        "evaluate": {"best": "ap50_all"},
    }
