"""Every detector must learn: a fixed batch of images with small squares, a small backbone, and a short training.

A test builds a detector with `small_backbone()` and calls `learn(detector)`, which trains it on `squares` and returns the
AP at IoU 0.5 on the same images. A head whose targets, decoding or gradients are wrong does not get there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, PixelNorm
from learning import Squares, ap50, build_small_backbone, learn_on, make_squares


@pytest.fixture(scope="session")
def squares() -> Squares:
    """The fixed batch."""
    return make_squares()


@pytest.fixture(scope="session")
def specks() -> Squares:
    """Squares of 2 and 3 px."""
    return make_squares(sides=(2, 3))


@pytest.fixture
def small_backbone() -> Callable[..., StagedBackbone]:
    """`small_backbone(width=8)`, seeded."""
    torch.manual_seed(0)
    return build_small_backbone


@pytest.fixture
def pixel_norm() -> PixelNorm:
    """Grey level 0.5 in, zero out."""
    return PixelNorm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def learn(squares: Squares) -> Callable[..., float]:
    """`learn(detector, steps=80, lr=3e-3, on=squares)`: AdamW on the squares, one-cycle; returns AP at IoU 0.5 on them."""

    def train(detector: Detector, *, on: Squares = squares, **options: float) -> float:
        return learn_on(on, detector, **options)  # type: ignore[arg-type]

    return train


@pytest.fixture
def score(squares: Squares) -> Callable[[Detector], float]:
    """`score(detector)`: AP at IoU 0.5 on the squares."""
    return lambda detector: ap50(detector.detect(squares.images), squares.targets)
