"""Detection transformers learn squares, specks of 2 and 3 px at the rim, and a crowd of 800 without losing any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flyspeck import boxes as box_algebra
from flyspeck.models.detector import Detector
from flyspeck.models.heads.dfine import dfine
from flyspeck.models.heads.rtdetrv2 import rtdetrv2
from flyspeck.models.layers import group_norm
from flyspeck.models.postprocess import Suppression
from flyspeck.types import ImageBatch, Targets
from learning import Squares, learn_on, make_squares
from needs import TRANSFORMERS

pytestmark = TRANSFORMERS
HOSTS = {"dfine": dfine, "rtdetrv2": rtdetrv2}
SMALL: dict[str, Any] = {
    "channels": 32, "layers": 2, "heads": 4, "expansion": 0.5, "queries": 60, "noise_queries": 20, "norm": group_norm,
}  # fmt: skip


@pytest.mark.parametrize("host", ["dfine", pytest.param("rtdetrv2", marks=pytest.mark.slow)])
def test_it_learns(host, learn, small_backbone, pixel_norm):
    squares = make_squares(2)
    small = {**SMALL, "channels": 16, "layers": 1, "queries": 40, "noise_queries": 10}
    detector = HOSTS[host](small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, **small)
    assert learn(detector, on=squares, steps=40, lr=1e-2, clip=1.0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_it_learns_with_layers_that_refine(host, learn, small_backbone, pixel_norm, squares):
    detector = HOSTS[host](small_backbone(), classes=squares.classes, pixel_norm=pixel_norm, **SMALL)
    assert learn(detector, steps=100, lr=4e-3, clip=1.0) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_it_learns_specks(host, learn, small_backbone, pixel_norm, specks):
    detector = HOSTS[host](small_backbone(), classes=specks.classes, pixel_norm=pixel_norm, **SMALL)
    assert learn(detector, on=specks, steps=400, lr=4e-3, clip=1.0) > 0.75


def crowd(count: int, side: int, *, seed: int) -> tuple[torch.Tensor, Targets]:
    """An image of `side` px a side with squares of 3 to 6 px in a grid of places, brighter (0) or darker (1), some at the rim."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(96, 160, (3, side, side)).astype(np.uint8)
    cells = int(np.ceil(count**0.5))
    step = side / cells
    boxes, labels = [], []
    for place in rng.permutation(cells**2)[:count]:
        size = int(rng.integers(3, 7))
        row, column = divmod(int(place), cells)
        x, y = (int(min(k * step + rng.integers(0, max(1, int(step) - size)), side - size)) for k in (column, row))
        label = int(rng.integers(0, 2))
        pixels[:, y : y + size, x : x + size] = 250 if label == 0 else 5
        boxes.append([x, y, x + size, y + size])
        labels.append(label)
    found = torch.tensor(boxes, dtype=torch.float32)
    return torch.from_numpy(pixels), Targets(found, torch.tensor(labels), torch.zeros(count, dtype=torch.bool))


def recall(detector: Detector, images: Squares) -> float:
    """Share of the objects that a detection of their class covers with IoU .5, each by one of its own."""
    hits = total = 0
    for found, truth in zip(detector.eval().detect(images.images), images.targets, strict=True):
        total += len(truth.objects)
        for label in (0, 1):
            mine = found[found.labels == label]
            pairs = box_algebra.iou(mine.boxes, truth.objects[truth.object_labels == label].cpu().numpy())
            free = np.ones(pairs.shape[1], dtype=bool)
            for row in pairs:
                best = int(np.argmax(row * free)) if len(row) else 0
                if len(row) and row[best] * free[best] >= 0.5:
                    free[best] = False
            hits += int((~free).sum())
    return hits / total


@pytest.mark.slow
def test_a_crowd_of_800_objects_is_found(small_backbone, pixel_norm):
    """Half an hour of one thread; on a CUDA device, which it takes where there is one, a few minutes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scenes = [crowd(800, 288, seed=seed) for seed in range(4)]
    pixels = ImageBatch(torch.stack([p for p, _ in scenes]), ((288, 288),) * 4)
    images = Squares(pixels.to(device), [targets.to(device) for _, targets in scenes])
    detector = dfine(
        small_backbone(16), classes=images.classes, pixel_norm=pixel_norm, channels=64, layers=3, expansion=0.5,
        queries=1200, norm=group_norm, suppression=Suppression(score=0.05, max_detections=1500),
    ).to(device)  # fmt: skip
    learn_on(images, detector, steps=600, lr=2e-3, clip=1.0)
    found = recall(detector, images)
    print(f"recall {found:.4f}")
    assert found >= 0.95
