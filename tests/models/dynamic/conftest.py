"""Small detectors of every kind, and a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.layers import group_norm
from flyspeck.types import ImageBatch, Targets
from spread_scores import spread_scores

SIZE = (96, 128)
OPTIONS = {
    "retinanet": {"norm": group_norm},
    "fcos": {"norm": group_norm},
    "reppoints": {},
    "faster_rcnn": {"proposals": 20, "train_proposals": 20, "hidden": 16},
}


@pytest.fixture
def small() -> Callable[..., Detector]:
    """`small("fcos", backbone="resnet18")`: two classes, 16 channels, norms away from 0 and 1, scores spread out."""

    def make(kind: str, backbone: str = "resnet18") -> Detector:
        torch.manual_seed(0)
        detector = build(f"{kind}:{backbone}", width=0.125, channels=32, classes=("a", "b"), **OPTIONS[kind])
        assert isinstance(detector, Detector)
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        spread_scores(detector.eval())
        return detector

    return make


@pytest.fixture
def batch() -> tuple[ImageBatch, list[Targets]]:
    """Two images, the second smaller than the padding, with objects of 4 to 20 px and an ignore region."""
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    first = Targets(
        torch.tensor([[10.0, 10, 14, 14], [40, 30, 60, 50], [90, 0, 128, 30]]),
        torch.tensor([0, 1, -1]),
        torch.tensor([False, False, True]),
    )
    second = Targets(torch.tensor([[20.0, 20, 28, 30]]), torch.tensor([1]), torch.tensor([False]))
    return ImageBatch(pixels, (SIZE, (90, 120))), [first, second]
