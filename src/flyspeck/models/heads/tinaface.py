"""TinaFace: a face detector of generic parts. Zhu et al., 2020, arXiv:2011.13183 (code: Media-Smart/vedadet).

RetinaNet on six levels of strides 4-128 (P2-P7, extra levels convolved from C5), three anchors a cell: 2^(4/3) x stride,
so from 10 px on, in three octave steps, 1.3 times as high as wide. Changed against RetinaNet:

* an inception block after the pyramid, shared by the levels: 3x3 convolutions once, twice and thrice in a row (half, a
  quarter and a quarter of the channels), side by side;
* the box loss is 1 - DIoU of the decoded box, times 2;
* a third output predicts the IoU of the box (cross entropy against the true one, of positives); a detection's score is
  p^(2 a) iou^(2 - 2 a) with a = 0.4;
* anchors learn from an IoU of 0.35 on, below that they are background: nothing is ignored between;
* batch norm in pyramid, block and head (BN), or group norm everywhere and deformable convolutions in stages 3 and 4
  (`tinaface_gn_dcn`); the pyramid enlarges its maps bilinearly.

Deviations: norms of the towers, and batch norms of the inception block, are private to a level (the authors' are shared);
there is a ReLU between P6 and P7 (the authors have none); faces always take their best anchors (theirs need an IoU of
0.35); suppression is plain NMS at an IoU of 0.45 (theirs also votes among the boxes); faces lower than 9 px stay (theirs
are dropped at WIDER FACE's scale); images are normalised by mean and deviation (theirs by the mean alone).

Numbers, paper / here (640x512, `mmcv` convention; Ning, 2023, Table 9): see `zoo.LISTED` and docs/papers/tinaface.md. AP on
WIDER FACE val, single scale: 95.77, 95.43, 92.23 (easy, medium, hard; BN) and 96.27, 95.67, 93.06 (GN and DCN): WIDER FACE
could not be had, and they were not reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorBuilder, AnchorGrid, strided_anchors
from flyspeck.models.assigners.base import AssigningPart, Priors
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.assigners.dense import dense_targets
from flyspeck.models.assigners.max_iou import MaxIoU
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size, decode_anchored, flatten_level
from flyspeck.models.deformable import make_deformable, replace_batch_norms
from flyspeck.models.detector import DenseOutputs, Detector, Head, PixelNorm
from flyspeck.models.layers import ConvNorm, ConvTower, NormBuilder, flatten_levels, group_norm, init_normal, per_level
from flyspeck.models.losses import diou_loss, focal_loss
from flyspeck.models.necks.fpn import FPN
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Depth, Share, Thresholds, Weight
from flyspeck.types import FeatureSpec, Targets

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Scale of the offsets: the authors' deviations of 0.1, 0.1, 0.2, 0.2."""


class Inception(nn.Module):
    """3x3 convolutions once, twice and thrice in a row, side by side: receptive fields of 3, 5 and 7 cells."""

    def __init__(self, channels: int, *, norm: NormBuilder | None) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"an inception block divides its channels by 4, got {channels}")
        half, quarter = channels // 2, channels // 4
        self.once = ConvNorm(channels, half, 3, norm=norm)
        self.first = ConvNorm(channels, quarter, 3, norm=norm)
        self.twice = ConvNorm(quarter, quarter, 3, norm=norm)
        self.second = ConvNorm(quarter, quarter, 3, norm=norm)
        self.thrice = ConvNorm(quarter, quarter, 3, norm=norm)
        self.activation = nn.ReLU(inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """`(B, C, H, W)` of pyramid level `level` to the same shape."""
        first = self.activation(self.first(x, level))
        second = self.activation(self.second(first, level))
        return F.relu(torch.cat([self.once(x, level), self.twice(first, level), self.thrice(second, level)], 1))


class InceptionFPN(nn.Module):
    """A feature pyramid with one inception block, shared by its levels, behind it."""

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        channels: int = 256,
        num_extra: int = 2,
        norm: NormBuilder | None = None,
    ) -> None:
        super().__init__()
        self.fpn = FPN(
            features, channels=channels, num_extra=num_extra, extra="conv_c5", norm=norm, upsample="bilinear"
        )
        self.features = self.fpn.features
        self.inception = Inception(channels, norm=per_level(norm, len(self.features)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first."""
        return [self.inception(m, level) for level, m in enumerate(self.fpn(maps))]


class TinaFaceHead(Head):
    """Two towers on every level: class scores; box offsets and the expected IoU, for each anchor of a cell."""

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        anchors: AnchorGrid,
        depth: int = 4,
        norm: NormBuilder | None = None,
        foreground: float = 0.35,
        background: float = 0.35,
        assigner: AssignerBuilder | None = None,
        box_weight: float = 2.0,
        alpha: float = 0.4,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchors = num_classes, anchors
        self.assigner = (assigner or MaxIoU)(foreground=foreground, background=background)
        self.box_weight, self.alpha = box_weight, alpha
        self.suppression = suppression or Suppression(score=0.01, iou=0.45, pre_nms=5000)
        channels, per_cell = features[0].channels, anchors.num_per_cell
        self.class_tower = ConvTower(channels, depth, levels=len(features), norm=norm)
        self.box_tower = ConvTower(channels, depth, levels=len(features), norm=norm)
        self.class_logits = nn.Conv2d(channels, per_cell * num_classes, 3, 1, 1)
        self.box_deltas = nn.Conv2d(channels, per_cell * 4, 3, 1, 1)
        self.overlap_logits = nn.Conv2d(channels, per_cell, 3, 1, 1)
        for conv in (self.class_logits, self.box_deltas, self.overlap_logits):
            init_normal(conv)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class logits `(B, A*K, H_l, W_l)`, box deltas `(B, A*4, …)` and IoU logits `(B, A, …)` per level."""
        logits, deltas, overlaps = [], [], []
        for i, m in enumerate(maps):
            logits.append(self.class_logits(self.class_tower(m, i)))
            x = self.box_tower(m, i)
            deltas.append(self.box_deltas(x))
            overlaps.append(self.overlap_logits(x))
        return logits, deltas, overlaps

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """The anchors of all levels, for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        return Priors.on_levels(self.anchors(map_sizes, padded, device), counts)

    def assigning_part(self) -> AssigningPart:
        """The head itself."""
        return self

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """See `AssigningPart`."""
        priors = self.priors(map_sizes, padded, target.boxes.device)
        return self.assigner(priors, target.objects, target.ignored)

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` (focal), `box` (DIoU) and `overlap` (cross entropy), over the positive anchors of the batch."""
        logits, deltas, overlaps = self(maps)
        flat_logits, flat_deltas = flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4)
        flat_overlaps = flatten_levels(overlaps, 1)[..., 0]
        priors = self.priors([m.shape[-2:] for m in logits], padded, flat_logits.device)
        found = dense_targets(priors, targets, self.assigner, self.num_classes)
        classification = (focal_loss(flat_logits, found.wanted) * found.counted[..., None]).sum()
        decoded = box_algebra.decode(flat_deltas[found.image, found.row], priors.boxes[found.row], weights=BOX_WEIGHTS)
        true_overlap = box_algebra.paired_iou(decoded.detach(), found.objects)
        overlap = F.binary_cross_entropy_with_logits(
            flat_overlaps[found.image, found.row], true_overlap, reduction="sum"
        )
        return {
            "classification": classification / found.positives,
            "box": self.box_weight * diou_loss(decoded, found.objects) / found.positives,
            "overlap": overlap / found.positives,
        }

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, deltas, overlaps = self(maps)
        map_sizes = [m.shape[-2:] for m in logits]
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        scores = self._scores(flatten_levels(logits, self.num_classes), flatten_levels(overlaps, 1))
        flat_deltas = flatten_levels(deltas, 4)
        anchors = self.anchors(map_sizes, padded, scores.device)
        found = []
        for image_scores, image_deltas, size in zip(scores, flat_deltas, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, counts, self.suppression.pre_nms, self.suppression.score)
            boxes = box_algebra.decode(image_deltas[rows], anchors[rows], weights=BOX_WEIGHTS)
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, self.suppression))
        return found

    def _scores(self, logits: Tensor, overlaps: Tensor) -> Tensor:
        """Of class logits `(B, A, K)` and IoU logits `(B, A, 1)`."""
        return logits.sigmoid() ** (2 * self.alpha) * overlaps.sigmoid() ** (2 - 2 * self.alpha)

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        logits, deltas, overlaps = self(maps)
        scores = [
            self._scores(flatten_level(m, self.num_classes), flatten_level(overlap, 1))
            for m, overlap in zip(logits, overlaps, strict=True)
        ]
        anchors = self.anchors.levels_of(logits, size)
        return decode_anchored(scores, deltas, anchors, weights=BOX_WEIGHTS, size=size, rule=self.suppression)

    def dense_outputs(self, raw: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> DenseOutputs:
        """See `Head.dense_outputs`: class logits and offsets of every anchor, and the expected IoU as its quality."""
        logits, deltas, overlaps = raw
        return DenseOutputs(
            flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4), flatten_levels(overlaps, 1)
        )

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        shapes = self.anchors.shapes[0]
        return {
            "class_logits": OutputRows(("anchors", "classes"), shapes),
            "box_deltas": OutputRows(("anchors", "values"), shapes),
            "overlap_logits": OutputRows(("anchors",), shapes),
        }

    def dense_grid(self) -> Sequence[Sequence[tuple[float, float]]]:
        """The anchors of each level."""
        return self.anchors.shapes


def tinaface_anchors(features: Sequence[FeatureSpec]) -> AnchorGrid:
    """2^(4/3), 2^(5/3) and 4 x stride, 1.3 times as high as wide: 10.1, 12.7 and 16 px at stride 4."""
    return strided_anchors(features, base_scale=2 ** (4 / 3), ratios=(1.3,), octaves=3)


class TinaFaceOptions(Thresholds):
    """Options of TinaFace, with batch norms or with group norms and deformable convolutions."""

    depth: Depth = 4
    """Convolutions of each tower: 2 on a laptop."""
    foreground: Share = 0.35
    """Overlap (IoU) with an object from which an anchor learns it."""
    background: Share = 0.35
    """Overlap (IoU) below which an anchor is background."""
    box_weight: Weight = 2.0
    """Weight of the box loss against the class loss."""
    alpha: Share = 0.4
    """How much the class counts in a score; the expected IoU has the rest."""


def tinaface(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    depth: int = 4,
    norm: NormBuilder | None = nn.BatchNorm2d,
    neck: nn.Module | None = None,
    num_extra: int = 2,
    anchors: AnchorBuilder | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """TinaFace on `backbone`, the variant with batch norms (`norm` None leaves them out, as a recipe's `norm: none` does).

    The neck is an FPN with an inception block, or `neck`. `head` goes to `TinaFaceHead`.
    """
    neck = neck or InceptionFPN(backbone.features, channels=channels, num_extra=num_extra, norm=norm)
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        TinaFaceHead(
            features,
            num_classes=len(classes),
            anchors=(anchors or tinaface_anchors)(features),
            depth=depth,
            norm=norm,
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )


def tinaface_gn_dcn(backbone: StagedBackbone, *, norm: NormBuilder | None = group_norm, **options: Any) -> Detector:
    """TinaFace with group norms in the place of all batch norms and deformable 3x3 convolutions in stages 3 and 4.

    `backbone` is changed in place and has to be built of bottlenecks (a ResNet); group norms keep nothing of a pretrained
    batch norm. `options` are those of `tinaface`.
    """
    make_deformable(backbone)
    replace_batch_norms(backbone, group_norm)
    return tinaface(backbone, norm=norm or group_norm, **options)
