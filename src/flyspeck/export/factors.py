"""A detector that chooses its factor (DPNet), as graphs: what no factor changes, with the predictor; and one graph a factor.

One graph with a branch was the other way. A graph a factor holds plain convolutions, into which that factor's private norms are
folded, and every engine takes it; the driver (`flyspeck.infer.factor_model`) is a few lines of NumPy.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.export.graph import DetectorGraph
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.norms import at_factor
from flyspeck.models.dynamic.pooling import split_stage
from flyspeck.models.dynamic.predictor import BasicBlock
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.models.fold import fold_norms, probe_images


class HalvingPool(nn.Module):
    """The predictor's shortcut, a 2x2 mean that rounds up, for engines that pool no map smaller than the window."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, ceil(H/2), ceil(W/2))`."""
        # An odd side's last row or column doubled is what a mean over the cells that exist gives; an even side's is not reached.
        x = torch.cat([x, x[..., -1:, :]], -2)
        return F.avg_pool2d(torch.cat([x, x[..., -1:]], -1), 2)


class PrefixGraph(nn.Module):
    """Windows `(B, H, W, C)` to probabilities `(B, m)`, largest factor first, and the maps that `FactorGraph` takes."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        router = detector.router
        assert isinstance(router, FactorRouter)
        self.whole = DetectorGraph(at_factor(detector, router.switch.factors[0]))
        self.stop = split_stage(detector)
        self.predictor = copy.deepcopy(router.predictor).eval().requires_grad_(False)
        for block in self.predictor.blocks:
            if isinstance(block, BasicBlock) and isinstance(block.shortcut, nn.AvgPool2d):
                block.shortcut = HalvingPool()
        windows = 255 * probe_images(int(self.whole.mean.shape[1]), 256).pixels.permute(0, 2, 3, 1)
        shared = self._backbone.run(self.whole.normalised(windows), stop=self.stop)[-1]
        fold_norms(self.predictor, lambda: self.predictor(shared))

    @property
    def mean(self) -> Tensor:
        """The buffer of the pixels' means, one a channel of the files."""
        return self.whole.mean

    @property
    def _backbone(self) -> StagedBackbone:
        assert isinstance(self.whole.backbone, StagedBackbone)
        return self.whole.backbone

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, the map before the resize, and the feature maps before that."""
        maps = self._backbone.run(self.whole.normalised(windows), stop=self.stop)
        logits, _ = self.predictor(maps[-1])
        return logits.sigmoid(), maps[-1], *maps[:-1]


class FactorGraph(nn.Module):
    """What follows the resize, at one factor: windows (for their size) and the maps of `PrefixGraph` to `graph.OUTPUTS`."""

    def __init__(self, detector: Detector, factor: float) -> None:
        super().__init__()
        self.start = split_stage(detector)
        self.whole = DetectorGraph(at_factor(detector, factor))

    def forward(self, windows: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `DetectorGraph.forward`."""
        backbone = self.whole.backbone
        assert isinstance(backbone, StagedBackbone)
        shared, *before = maps
        if self.start in backbone.outputs:
            before = [*before, shared]
        return self.whole.detect([*before, *backbone.run(shared, start=self.start)], windows)
