"""A trained detector as one function of tensors: bytes in, boxes out. What is traced; `export.frame` stands around it.

Input `windows (B, H, W, C)`: uint8, or float32 in [0, 255] (16-bit images); padded already. Outputs `boxes (B, D, 4)`: xyxy
pixels of the window, `scores (B, D)`, best first, `labels (B, D)` int64 and `counts (B,)` int64, how many of the D are
detections. B, H and W are free; D is the detector's `max_detections` (which grows with the window, `models.counts`), or fewer
where a window has fewer candidates.
"""

from __future__ import annotations

import copy
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.counts import counts_for
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import PooledStage
from flyspeck.models.fake_quantised import set_rounding
from flyspeck.models.fold import fold_norms, probe_images
from flyspeck.models.layers import ConvTower, places

INPUT = "windows"
OUTPUTS = ("boxes", "scores", "labels", "counts")


class DetectorGraph(nn.Module):
    """A copy of `detector` in evaluation mode, its norms folded, that detects as tensors."""

    mean: Tensor
    per_std: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        check_exportable(detector)
        mine = copy.deepcopy(detector).eval().requires_grad_(False)
        for parent, name, child in list(places(mine)):
            if isinstance(child, ConvTower):
                setattr(parent, name, LevelTowers(child))
        norm = mine.pixel_norm
        probe = probe_images(int(norm.mean.shape[1]), 256)
        size = (256, 256)

        def run() -> list[Tensor]:
            maps = mine.pyramid(probe)
            mine.head.detect(maps, size, [size])  # its norms are seen, its choice of boxes is not compared
            return maps

        set_rounding(mine, False)  # the file rounds by operators of its own (`export.quantize`)
        self.num_folded = len(fold_norms(mine, run).folded)
        _fix_pools(mine)
        self.backbone, self.neck, self.head = mine.backbone, mine.neck, mine.head
        self.channels = norm.channels
        self.counts_area = mine.counts_area
        self.register_buffer("mean", 255 * norm.mean)
        self.register_buffer("per_std", 1 / (255 * norm.std))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the head of this module."""
        return self.detect(self.backbone(self.normalised(windows)), windows)

    def normalised(self, windows: Tensor) -> Tensor:
        """What the backbone takes."""
        x = (windows.permute(0, 3, 1, 2).to(torch.float32) - self.mean) * self.per_std
        # Not expanded: OpenVINO's integer passes take one channel for three then.
        return torch.cat([x] * self.channels, 1) if x.shape[1] == 1 else x

    def detect(self, maps: list[Tensor], windows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs, from the backbone's maps; of `windows` only the size counts."""
        size = (windows.shape[1], windows.shape[2])
        with counts_for(self.head, size, self.counts_area):
            limit = self.head.suppression.max_detections
            boxes, scores, labels = self.head.decode_batch(self.neck(maps), size).best(limit)
        return boxes, scores, labels, (scores > 0).sum(1)


class FixedResize(nn.Module):
    """A `PooledStage`'s resize by one factor, in whole numbers, as sizes that are symbols need."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.ratio = Fraction(str(factor))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the sides that `models.dynamic.pooling.resized` gives."""
        if self.ratio == 1:
            return x
        up, down = self.ratio.numerator, self.ratio.denominator
        size = [(2 * up * side + down) // (2 * down) for side in x.shape[-2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _fix_pools(detector: Detector) -> None:
    """Replaces the pooled stage of a detector of one factor, in place."""
    if not isinstance(detector.backbone, StagedBackbone):
        return
    for name, stage in detector.backbone.stages.items():
        if isinstance(stage, PooledStage):
            factor = stage.switch.active * (2 if stage.kept else 1)
            detector.backbone.stages[name] = nn.Sequential(FixedResize(factor), *stage.pools, *stage.children())


class LevelTowers(nn.Module):
    """A `ConvTower` whose levels have convolutions of their own (equal weights): each then takes up its level's norms."""

    def __init__(self, tower: ConvTower) -> None:
        super().__init__()
        levels = [None] if tower.norms is None else list(tower.norms)
        self.levels = nn.ModuleList(_chain(tower, norms) for norms in levels)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """As the tower's."""
        return self.levels[level if len(self.levels) > 1 else 0](x)


def _chain(tower: ConvTower, norms: nn.Module | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, conv in enumerate(tower.convs):
        layers.append(copy.deepcopy(conv))
        if norms is not None:
            layers.append(norms[i])  # type: ignore[index]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def check_exportable(detector: Detector) -> None:
    """Raises UserError for what a graph cannot hold."""
    head = detector.head
    if not head.implements("decode_batch"):
        raise head.lacks("decode_batch", "be exported", instead="use the run folder itself")
    rule = head.suppression
    if rule.soft is not None:
        raise UserError(
            "soft-NMS has no operator in ONNX",
            where="model.soft_nms",
            fix="export with --hard-nms IOU, which suppresses the usual way",
        )
    if rule.score < 0:
        raise UserError(f"a score threshold of {rule.score}", where="model.min_score", fix="0 or more")
