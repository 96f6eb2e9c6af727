"""R-FCN: regions that vote on score maps. Dai, Li, He, Sun, NeurIPS 2016, arXiv:1605.06409.

All convolutions run once on the image. The last gives k x k groups of score maps, one for each bin of a region (top left, ...,
bottom right) and in it one map for each class and background (sec. 3), and likewise four maps of offsets that all classes share.
A region's bin is read from its own group alone (`PositionSensitivePool`), and the mean of the bins is what the region says.
Nothing has weights after that: 1000 regions cost next to what 100 do. Training learns from the 128 of an image's regions with
the largest loss (online hard example mining).

* `rfcn`: the paper's. The backbone's last stage keeps stride 16, its kernels dilated (`dilate_last_stage`), 1x1 to 1024
  channels, k = 7. The proposal network is on the map before (512 channels, twelve anchors a cell).
* `rfcn_fpn`: on a pyramid, as DPNet's Table V has it ("ResNet-50-FPN"), of which it says no more: one convolution to score maps
  for all levels, regions go to the level of their size as in Faster R-CNN.

Counts by the `mmcv` convention with 1000 proposals: `rfcn:resnet101` with 80 classes at 608x1024 53.617 M, 150.762 G;
`rfcn_fpn:resnet50` with 15 classes at 1024x1024 27.698 M, 219.323 G. None are printed.

Deviations: a bin is the mean of 2 x 2 samples of its exact place (RoIAlign), where the paper averages all cells of a rounded
one: a region of few pixels has bins of less than a cell; box offsets are scaled by (10, 10, 5, 5), the standard. Others are
Faster R-CNN's (`flyspeck.models.heads.faster_rcnn`).

Numbers: COCO test-dev 29.9 AP (paper, ResNet-101). DPNet's table gives 52.58 mAP on DOTA (see `ssd_fpn`). Not reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models import batch_decoding
from flyspeck.models.anchors import AnchorBuilder, AnchorGrid, anchor_shapes, strided_anchors
from flyspeck.models.assign import IGNORED
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.batch_decoding import Size
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead
from flyspeck.models.heads.roi import RoIPool
from flyspeck.models.heads.rpn import RPNOptions, proposal_network
from flyspeck.models.layers import NormBuilder, init_normal
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.models.postprocess import Suppression
from flyspeck.models.roi_align import pyramid_roi_align
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Count, Options, Share
from flyspeck.types import FeatureSpec, Targets
from flyspeck_lab.comparators.one_configuration import only_base


class PositionSensitivePool(nn.Module):
    """Score maps of each bin, and what each region reads in them: RoIAlign of every bin in the maps of its own.

    `features` are those of the maps that are read: all from `first` on.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        first: int,
        bins: int,
        sampling: int,
        canonical: float,
    ) -> None:
        super().__init__()
        self.bins, self.sampling, self.first, self.count = bins, sampling, first, len(features)
        # Its level by the region's size; its samples are taken here, bin by bin.
        self.regions = RoIPool([f.stride for f in features], canonical=canonical)
        self.values = num_classes + 1 + 4
        self.class_maps = nn.Conv2d(features[0].channels, bins * bins * (num_classes + 1), 1)
        self.box_maps = nn.Conv2d(features[0].channels, bins * bins * 4, 1)
        init_normal(self.class_maps)
        init_normal(self.box_maps)

    def score_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps to `(B * k * k, K + 1 + 4, H, W)` float32 of each level: image by image the groups of the bins, row by row."""
        found = []
        for m in maps[self.first : self.first + self.count]:
            classes, boxes = (layer(m).float() for layer in (self.class_maps, self.box_maps))
            groups = [x.unflatten(1, (self.bins * self.bins, -1)) for x in (classes, boxes)]
            found.append(torch.cat(groups, 2).flatten(0, 1))
        return found

    def of_bins(self, placed: Tensor) -> Tensor:
        """Regions `(R, 5)` (image, x1, y1, x2, y2) to their bins `(R * k * k, 5)`, each in the group of maps that is its own."""
        k = self.bins
        row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij"))
        place = torch.stack([column, row], -1).to(placed)  # (k * k, 2)
        low, side = placed[:, None, 1:3], (placed[:, None, 3:5] - placed[:, None, 1:3]) / k
        corner = low + place * side
        group = placed[:, :1] * (k * k) + torch.arange(k * k, device=placed.device)
        return torch.cat([group[..., None], corner, corner + side], -1).flatten(0, 1)

    def forward(self, maps: Sequence[Tensor], regions: Sequence[Tensor], padded: tuple[int, int]) -> Tensor:
        """`regions[i] (P_i, 4)` of image i to `(sum P_i, k * k, K + 1 + 4)`, in the same order."""
        scores = self.score_maps(maps)
        placed, level = self.regions.place(scores, regions, padded)
        return self._read(pyramid_roi_align, scores, placed, level)

    def pool_batch(self, maps: Sequence[Tensor], regions: Tensor, size: Size) -> Tensor:
        """`forward` for a graph: `regions (B, P, 4)` of images of `size` (H, W) to `(B*P, k * k, K + 1 + 4)`."""
        scores = self.score_maps(maps)
        placed, level = self.regions.place_batch(scores, regions, size)
        return self._read(batch_decoding.pyramid_roi_align, scores, placed, level)

    def _read(self, align: Any, scores: list[Tensor], placed: Tensor, level: Tensor) -> Tensor:
        count = self.bins * self.bins
        level = level[:, None].expand(-1, count).flatten()
        return align(scores, self.of_bins(placed), level, 1, self.sampling, True).reshape(-1, count, self.values)

    def blank(self, maps: Sequence[Tensor], count: int) -> Tensor:
        """Runs the score maps for their cost, and gives `(count, k * k, K + 1 + 4)` of no particular values."""
        return self.score_maps(maps)[0].new_empty(count, self.bins * self.bins, self.values)


class Vote(nn.Module):
    """The mean over the bins. Has no weights."""

    class_agnostic = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`(P, k * k, K + 1 + 4)` to class logits `(P, K + 1)`, background last, and deltas `(P, 1, 4)`."""
        mean = pooled.mean(1)
        return mean[:, : self.num_classes + 1], mean[:, None, self.num_classes + 1 :]

    def output_rows(self) -> Mapping[str, OutputRows]:
        """None: what classes stand for is in the score maps."""
        return {}


def all_regions(regions: Tensor, target: Targets, assigned: Tensor, *, count: int, positive_share: float) -> Tensor:
    """Every row that learns something: the hardest are chosen by their loss."""
    return torch.nonzero(assigned != IGNORED).squeeze(1)


class RFCNNeck(nn.Module):
    """The last two maps of the backbone, both of one stride: 3x3 to the proposal network's, 1x1 to that of the score maps."""

    def __init__(self, features: Sequence[FeatureSpec], *, proposal_channels: int, channels: int) -> None:
        super().__init__()
        before, last = features
        self.propose = nn.Conv2d(before.channels, proposal_channels, 3, 1, 1)
        self.score = nn.Conv2d(last.channels, channels, 1)
        init_normal(self.propose)
        nn.init.kaiming_normal_(self.score.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        self.features = (FeatureSpec(proposal_channels, before.stride), FeatureSpec(channels, last.stride))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Two maps to two."""
        return [self.propose(maps[0]).relu(), self.score(maps[1]).relu()]


class RFCNOptions(Options):
    """Options of R-FCN."""

    proposals: Count = 300
    """Regions an image that vote."""
    train_proposals: Count = 300
    """Regions an image among which the hardest are found."""
    hardest: Count = 128
    """Regions an image that are learnt from: those with the largest loss."""
    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a region learns it; below, it learns background."""
    box_beta: float = Field(default=1.0, gt=0)
    """Where the smooth L1 loss of the box turns from a parabola into a line."""
    bins: int = Field(default=7, ge=1, le=32)
    """Bins along each side of a region, k."""
    sampling: int = Field(default=2, ge=1, le=16)
    """Samples along each side of a bin."""
    rpn: RPNOptions = RPNOptions()
    """The region proposal network."""


class RFCNPlainOptions(RFCNOptions):
    """Options of R-FCN without a pyramid."""

    rpn: RPNOptions = RPNOptions(depth=0)
    """The region proposal network; the 3x3 convolution before it is the neck's."""
    width: float | None = Field(default=None, gt=0, le=16)
    """Scales the two layers after the backbone; null takes the backbone's own width, at most 1."""


class RFCNPyramidOptions(RFCNOptions):
    """Options of R-FCN on a pyramid."""

    canonical: float = Field(default=224.0, gt=0)
    """Size in px (square root of the area) of a region that is read from stride 16; half of it from stride 8, and so on."""


def voting_head(
    features: Sequence[FeatureSpec],
    *,
    read: slice,
    num_classes: int,
    anchors: AnchorBuilder,
    norm: NormBuilder | None = None,
    suppression: Suppression | None = None,
    proposals: int = 300,
    train_proposals: int = 300,
    hardest: int = 128,
    foreground: float = 0.5,
    box_beta: float = 1.0,
    bins: int = 7,
    sampling: int = 2,
    canonical: float = 224.0,
    rpn: Mapping[str, Any] | None = None,
    assigner: AssignerBuilder | None = None,
) -> FasterRCNNHead:
    """R-FCN's head: Faster R-CNN's with regions that vote. Proposals from all of `features` that are not only read, regions are
    `read` from those of the slice.
    """
    proposing = features if read.start == 0 else features[: read.start]
    return FasterRCNNHead(
        rpn=proposal_network(
            proposing,
            anchors=anchors,
            norm=norm,
            proposals=proposals,
            train_proposals=train_proposals,
            options={"assigner": assigner, **(rpn or {})},
        ),
        pool=PositionSensitivePool(  # type: ignore[arg-type]
            features[read], num_classes=num_classes, first=read.start, bins=bins, sampling=sampling, canonical=canonical
        ),
        box_head=Vote(num_classes),  # type: ignore[arg-type]
        sampler=all_regions,
        hardest=hardest,
        foreground=foreground,
        box_beta=box_beta,
        suppression=suppression,
    )


def twelve_anchors(features: Sequence[FeatureSpec]) -> AnchorGrid:
    """Of 4, 8, 16 and 32 strides at three ratios: 64 to 512 px on stride 16."""
    sides = (4.0, 8.0, 16.0, 32.0)
    return AnchorGrid(
        [[shape for level in anchor_shapes([side * f.stride for side in sides]) for shape in level] for f in features]
    )


def dilate_last_stage(backbone: StagedBackbone, *, what: str) -> StagedBackbone:
    """Lets the last stage of a chain keep the stride of the one before, the kernels after it dilated by it, in place.

    Trained weights mean what they did: every second of its cells is what the stage gave before. The backbone then gives the
    last two maps. Raises UserError for a backbone with branches, and for a last stage whose stride is not that of padded
    convolutions.
    """
    names = [name for name in backbone.stages if name not in backbone.branches]
    if len(names) < 4:
        raise UserError(f"{what} needs a chain of stages", where="model", fix="choose a backbone without branches")
    last, before = names[-1], names[-2]
    modules = list(backbone.stages[last].modules())
    convs = [module for module in modules if isinstance(module, nn.Conv2d)]
    strides = {max(conv.stride) for conv in convs} - {1}
    own = backbone.specs[last].stride / backbone.specs[before].stride
    padded = all(
        conv.padding == tuple((k // 2) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
        for conv in convs
    )
    if strides != {own} or not padded or any(isinstance(m, nn.MaxPool2d | nn.AvgPool2d) for m in modules):
        raise UserError(
            f"{what} cannot dilate the last stage of this backbone", where="model", fix="choose a ResNet or MobileNetV1"
        )
    factor = 1
    for conv in convs:
        if max(conv.stride) > 1:
            factor, conv.stride = max(conv.stride), (1, 1)
        elif max(conv.kernel_size) > 1:
            conv.dilation = tuple(d * factor for d in conv.dilation)  # type: ignore[assignment]
            conv.padding = tuple((k // 2) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    backbone.specs[last] = replace(backbone.specs[last], stride=backbone.specs[before].stride)
    backbone.outputs = (before, last)
    return backbone


find_configuration = only_base("R-FCN", fix="rfcn_fpn takes a neck")


def rfcn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    width: float | None = None,
    anchors: AnchorBuilder | None = None,
    rpn: Mapping[str, Any] | None = None,
    **head: Any,
) -> Detector:
    """R-FCN as the paper has it on the last two maps of `backbone`, a chain of stages that ends in convolutions.

    `width` scales the two layers after the backbone; None takes the backbone's own (its last map's channels over 2048, at
    most 1). `head` are keyword arguments of `voting_head`.
    """
    find_configuration(configuration)
    backbone = dilate_last_stage(need_stages(backbone, "R-FCN", where="model.name"), what="R-FCN")
    if width is None:
        width = min(1.0, backbone.features[-1].channels / 2048)
    proposing, scoring = (max(8, round(c * width)) for c in (512, 1024))
    neck = RFCNNeck(backbone.features, proposal_channels=proposing, channels=scoring)
    voting = voting_head(
        neck.features,
        read=slice(1, 2),
        num_classes=len(classes),
        anchors=anchors or twelve_anchors,
        rpn={"depth": 0, **(rpn or {})},
        **head,
    )
    return Detector(backbone, neck, voting, pixel_norm=pixel_norm, classes=classes)


def rfcn_fpn(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    norm: NormBuilder | None = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    anchors: AnchorBuilder | None = None,
    canonical: float = 224.0,
    **head: Any,
) -> Detector:
    """R-FCN on a pyramid: an FPN with a subsampled extra level, or `neck`; regions are read from all levels but the extra ones.

    `head` are keyword arguments of `voting_head`.
    """
    neck = neck or FPN(backbone.features, channels=channels, num_extra=num_extra, norm=norm, fusion=fusion)
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    voting = voting_head(
        features,
        read=slice(0, len(features) - num_extra),
        num_classes=len(classes),
        anchors=anchors or strided_anchors,
        norm=norm,
        canonical=canonical,
        **head,
    )
    return Detector(backbone, neck, voting, pixel_norm=pixel_norm, classes=classes)
