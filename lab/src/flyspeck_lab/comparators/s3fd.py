"""S3FD: a single-shot face detector whose scales are all alike. Zhang et al., ICCV 2017, arXiv:1708.05237.

Six maps of strides 4 to 128, one square anchor of four strides on each cell: every scale of face has the same density of
anchors, so that a 16 px face has as many near it as one of 512 px (sec. 3.1). Two things are for small faces:

* Scale compensation (`ScaleCompensation`, sec. 3.2): faces between two scales, and the tiniest, match few anchors. After the
  usual matching at IoU 0.35, a face with fewer anchors than the average of all faces takes the best N above 0.1.
* Max-out background (`MaxInOut`, sec. 3.3): the first map has the most anchors, nearly all of them background. It says
  three background scores a cell, of which the largest counts.

On VGG16: conv3_3, conv4_3 and conv5_3, scaled to lengths of 10, 8 and 5, fc7, and two extra layers; on any other chain of
stages its last four maps. Structure and numbers are the paper's and those of its published network (sfzhang15/SFD), whose layers
have 22,459,110 parameters, as here: the paper prints none. The paper's factor of 4 on the classification is that of SSD's
normalisation: it divides by positives and three times as many negatives, SSD by the positives.

Deviations: the published fc6 is padded by 3, which makes fc7's map 24x24 cells at 640x640 in place of 20x20, two cells off
from the anchors that lie on it; here padded by 1. An anchor that one face matched by the first rule is not given to another by
the second (not said); where two faces would take the same, the better overlap does; N is rounded. Every face has its best
anchor, however small its overlap. Others are SSD's (`flyspeck.models.heads.ssd`).

Numbers: AP on WIDER FACE val easy, medium, hard 93.7, 92.4, 85.2 (paper, several scales). It could not be had, and they were
not reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.assign import BACKGROUND, max_iou_assign, object_block, spare_ignored
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import L2Norm, SSDHead, plain_extra
from flyspeck.models.postprocess import Suppression
from flyspeck.options import Options, Share
from flyspeck.types import FeatureSpec
from flyspeck_lab.comparators.one_configuration import only_base

SIDES = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Of the anchors, px: four strides."""
LENGTHS = (10.0, 8.0, 5.0)
"""To which the first maps' pixels are scaled."""
SUPPRESSION = Suppression(score=0.05, iou=0.3, pre_nms=5000, max_detections=750)


def squares(sides: Sequence[float]) -> AnchorGrid:
    """One square a cell, of one of `sides` (px) on each map."""
    return AnchorGrid([((side, side),) for side in sides])


class MaxInOut(nn.Module):
    """Logits of one anchor a cell, of which there are several for each class and for background: the largest of each counts."""

    def __init__(self, channels: int, *, num_classes: int, positives: int = 1, negatives: int = 1) -> None:
        super().__init__()
        self.num_classes, self.positives, self.negatives = num_classes, positives, negatives
        self.conv = nn.Conv2d(channels, num_classes * positives + negatives, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, K + 1, H, W)`, background last."""
        logits = self.conv(x)
        objects, background = logits.split([self.num_classes * self.positives, self.negatives], 1)
        return torch.cat([objects.unflatten(1, (-1, self.positives)).amax(2), background.amax(1, keepdim=True)], 1)


@dataclass(frozen=True)
class ScaleCompensation:
    """Which anchor learns which face, in two stages."""

    foreground: float = 0.35
    """IoU from which an anchor learns a face in the first."""
    second: float = 0.1
    """IoU above which it may in the second."""

    def __call__(self, anchors: Tensor, objects: Tensor, ignored: Tensor) -> Tensor:
        """`(A,)`: see `models.assign`. After the first stage, an object with fewer than the average N takes its N best."""
        assigned = max_iou_assign(anchors, objects, ignored[:0], foreground=self.foreground, background=self.foreground)
        if len(objects):
            self._compensate(assigned, anchors, objects)
        spare_ignored(assigned, anchors, ignored)
        return assigned

    def _compensate(self, assigned: Tensor, anchors: Tensor, objects: Tensor) -> None:
        counts = torch.bincount(assigned[assigned >= 0], minlength=len(objects))
        wanted = max(1, round(float(counts.sum()) / len(objects)))
        short = torch.nonzero(counts < wanted).squeeze(1)
        free = assigned == BACKGROUND
        best = torch.zeros(len(anchors), device=anchors.device)
        owner = torch.full_like(assigned, BACKGROUND)
        step = object_block(anchors)
        for start in range(0, len(short), step):
            rows = short[start : start + step]
            overlap = box_algebra.iou(objects[rows], anchors)
            # What it has already counts among its N best; what another has does not.
            overlap = torch.where(free | (assigned == rows[:, None]), overlap, torch.zeros_like(overlap))
            chosen = torch.zeros_like(overlap)
            row, anchor = best_of_each_row(overlap, wanted, above=self.second)
            chosen[row, anchor] = overlap[row, anchor]
            value, row = chosen.max(0)
            better = value > best
            best, owner = torch.where(better, value, best), torch.where(better, rows[row], owner)
        taken = free & (best > 0)
        assigned[taken] = owner[taken]


def best_of_each_row(values: Tensor, count: int, *, above: float) -> tuple[Tensor, Tensor]:
    """(row, column) of the `count` largest of each row of `values (N, M)` that are `above`; of equal ones the first."""
    row, column = torch.nonzero(values > above, as_tuple=True)
    order = values[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    row, column = row[order], column[order]
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    return row[rank < count], column[rank < count]


class S3FDNeck(nn.Module):
    """Four maps of the backbone to six: the first three scaled to a length, two extra layers of stride 2 after the last."""

    def __init__(self, features: Sequence[FeatureSpec], *, width: float, normed: bool = True) -> None:
        super().__init__()
        scales = zip(features[:-1], LENGTHS, strict=True)
        self.norms = nn.ModuleList(L2Norm(f.channels, scale=scale) for f, scale in scales if normed)
        last, specs = features[-1], list(features)
        extras = []
        for number, channels in enumerate((512, 256)):
            channels = max(8, round(channels * width))
            extras.append(plain_extra(specs[-1].channels, channels, "S"))
            specs.append(FeatureSpec(channels, last.stride * 2 ** (number + 1)))
        self.extras = nn.ModuleList(extras)
        self.features = tuple(specs)
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Finest first."""
        levels = [norm(m) for norm, m in zip(self.norms, maps, strict=False)]
        levels += maps[len(levels) :]
        for extra in self.extras:
            levels.append(extra(levels[-1]))
        return levels


class S3FDOptions(Options):
    """Options of S3FD."""

    width: float | None = Field(default=None, gt=0, le=16)
    """Scales the extra layers; null takes the backbone's own width, at most 1."""
    foreground: Share = 0.35
    """Overlap (IoU) with a face from which an anchor learns it."""
    second: Share = 0.1
    """Overlap above which an anchor may learn a face that has fewer anchors than the average; from `foreground` on none does."""
    negatives_per_positive: int = Field(default=3, ge=0, le=1000)
    """Background anchors, the hardest of an image, for each that learns a face."""
    backgrounds: int = Field(default=3, ge=1, le=16)
    """Background scores of a cell of the first map, of which the largest counts."""


find_configuration = only_base("S3FD")


def s3fd(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    plain: bool = False,
    width: float | None = None,
    foreground: float = 0.35,
    second: float = 0.1,
    negatives_per_positive: int = 3,
    backgrounds: int = 3,
    suppression: Suppression | None = None,
) -> Detector:
    """S3FD on the last four maps of `backbone`, a chain of stages; `plain`: VGG16's top as published.

    `width` scales the extra layers; None takes the backbone's own (its last map's channels over 1024, at most 1).
    """
    find_configuration(configuration)
    backbone = face_backbone(backbone, "S3FD", plain=plain)
    neck = S3FDNeck(backbone.features, width=extra_width(backbone) if width is None else width)
    first, *others = neck.features
    head = SSDHead(
        neck.features,
        num_classes=len(classes),
        priors=squares(SIDES),
        negatives_per_positive=negatives_per_positive,
        suppression=suppression or SUPPRESSION,
        assign=ScaleCompensation(foreground=foreground, second=second),
        class_logits=[
            MaxInOut(first.channels, num_classes=len(classes), negatives=backgrounds),
            *(MaxInOut(feature.channels, num_classes=len(classes)) for feature in others),
        ],
    )
    return Detector(backbone, neck, head, pixel_norm=pixel_norm, classes=classes)


def face_backbone(backbone: StagedBackbone, what: str, *, plain: bool) -> StagedBackbone:
    """Lets `backbone` give its last four maps, in place. `plain`: pool5 is 2x2 and fc6 not dilated. UserError if it cannot."""
    backbone = need_stages(backbone, what, where="model.name")
    names = [name for name in backbone.stages if name not in backbone.branches]
    if len(names) < 5:
        raise UserError(f"{what} needs a chain of stages", where="model", fix="choose a backbone without branches")
    if plain:
        pool, fc6 = list(backbone.stages["stage4"].children())[:2]
        if not isinstance(pool, nn.MaxPool2d) or not isinstance(fc6, nn.Conv2d):
            raise ValueError("no VGG16: its last stage begins with pool5 and fc6")
        pool.kernel_size, pool.stride, pool.padding = 2, 2, 0
        fc6.dilation, fc6.padding = (1, 1), (1, 1)
        before = backbone.specs["stage3"].stride
        backbone.specs["stage4"] = replace(backbone.specs["stage4"], stride=2 * before)
    backbone.outputs = tuple(names[-4:])
    return backbone


def extra_width(backbone: StagedBackbone) -> float:
    """The backbone's width by its last map's channels, of 1024, at most 1."""
    return min(1.0, backbone.features[-1].channels / 1024)
