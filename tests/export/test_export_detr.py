"""A trained detection transformer exports with free sizes and batches, to ONNX and OpenVINO, and finds the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_batch import differences

from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.postprocess import Suppression
from learning import learn_on, make_squares
from needs import TRANSFORMERS

pytestmark = [TRANSFORMERS, pytest.mark.slow]
SIZES = ((128, 160), (67, 97), (101, 77), (150, 190))


def scenes() -> list[list[np.ndarray]]:
    """Of each size some images of squares on noise: noise alone holds nothing that a trained detector finds."""
    found = []
    for number, (height, width) in enumerate(SIZES):
        pixels = make_squares(7, seed=number + 10).images.pixels.permute(0, 2, 3, 1).numpy()
        whole = np.random.default_rng(number).integers(96, 160, (7, height, width, 3)).astype(np.uint8)
        rows, columns = min(height, 128), min(width, 160)
        whole[:, :rows, :columns] = pixels[:, :rows, :columns]
        found.append(list(whole))
    return found


@pytest.mark.parametrize("kind", ["dfine", "rtdetrv2"])
def test_the_exported_files_find_what_the_detector_finds(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    squares = make_squares(4)
    options: dict[str, Any] = {"layers": 2, "heads": 4, "expansion": 0.5, "queries": 40, "noise_queries": 10}
    detector = build(
        f"{kind}:resnet18", classes=squares.classes, pixel_norm=PixelNorm((0.5,) * 3, (0.25,) * 3), width=0.125,
        channels=16, levels="2-5", suppression=Suppression(score=0.05, max_detections=60), **options,
    )  # fmt: skip
    assert isinstance(detector, Detector)
    assert (
        learn_on(squares, detector, steps=60, lr=6e-3, clip=1.0) > 0.5
    )  # so that its scores differ: enough to compare
    found = differences(detector.eval(), tmp_path, images=scenes())
    assert len(found) == 2 * 4 * len(SIZES)  # engines, batches
    assert all(one.same and one.boxes > 0 for one in found.values()), {k: v.text for k, v in found.items()}
