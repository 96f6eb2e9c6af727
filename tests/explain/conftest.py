"""A detector without weights, whose maps and scores are known by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.postprocess import RawDetections
from flyspeck.types import FeatureSpec


class Means(nn.Module):
    """The image's means over cells of 4 and of 8 px: one map each, three channels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(x, 4), F.avg_pool2d(x, 8)]


class Same(nn.Module):
    """A neck that changes nothing."""

    features = (FeatureSpec(3, 4), FeatureSpec(3, 8))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(maps)


class Probe(Head):
    """Two detections: the log-odds of the first are channel 0 of cell (2, 3) of P2, of the second channel 1 of P3, summed."""

    num_classes = 2

    def losses(self, maps, targets, padded, sizes):
        return {}

    def detect(self, maps, padded, sizes):
        odds = torch.stack([maps[0][0, 0, 2, 3], maps[1][0, 1].sum()])
        boxes = torch.tensor([[12.0, 8, 16, 12], [0, 0, 8, 8]])
        return [RawDetections(boxes, odds.sigmoid(), torch.tensor([0, 1]))]


@pytest.fixture
def known() -> Callable[[], Detector]:
    """Builds the detector; its input is the image in [0, 1] itself."""
    return lambda: Detector(Means(), Same(), Probe(), pixel_norm=PixelNorm([0.0] * 3, [1.0] * 3), classes=("a", "b"))
