"""RetinaNet: dense anchors and the focal loss. Lin et al., 2017, arXiv:1708.02002.

"Adaptive" here means what the tiny-object papers mean: the pyramid starts at C2 (strides 4-64) and anchors at 8 px.

Deviations, all by argument: pyramid levels and anchors are derived from the neck's strides; the box loss is normalised
by 4 x positives, as the fusion-factor authors' code does (`box_weight` undoes it); norm layers, where wanted, are private
to a pyramid level; objects always get their best anchor (`low_quality`), and anchors under ignore regions learn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.anchors import AnchorBuilder, AnchorGrid, strided_anchors
from flyspeck.models.assigners.base import AssigningPart, Priors
from flyspeck.models.assigners.build import AssignerBuilder
from flyspeck.models.assigners.dense import dense_targets
from flyspeck.models.assigners.max_iou import MaxIoU
from flyspeck.models.assigners.nwd import AITOD_SIZE, nwd_loss
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size, decode_anchored, flatten_level
from flyspeck.models.detector import DenseOutputs, Detector, Head, PixelNorm
from flyspeck.models.layers import ConvTower, NeckNorm, NormBuilder, flatten_levels, init_normal, norm_of_neck
from flyspeck.models.losses import focal_loss, giou_loss, smooth_l1
from flyspeck.models.necks.fpn import FPN, Extra, FusionMode
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Depth, Positive, Share, Thresholds, Weight
from flyspeck.types import FeatureSpec, Targets

Objective = Callable[[Tensor, Tensor, Tensor, Sequence[Targets]], dict[str, Tensor]]


class RetinaNetHead(Head):
    """Two towers on every level: class scores and box offsets for `anchors.num_per_cell` anchors a cell.

    `assigner` is given the thresholds and decides which anchor learns which object (default: `MaxIoU`). `box_loss` is
    `smooth_l1` on the offsets, or `giou` or `nwd` on the decoded boxes, `nwd` with `nwd_constant` in px. `objective` takes
    the place of assigner and losses (FreeAnchor): class logits `(B, A, K)`, offsets `(B, A, 4)`, anchors and targets to
    named losses.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        anchors: AnchorGrid,
        depth: int = 4,
        norm: NormBuilder | None = None,
        foreground: float = 0.5,
        background: float = 0.4,
        low_quality: bool = True,
        box_loss: str = "smooth_l1",
        box_weight: float = 1.0,
        assigner: AssignerBuilder | None = None,
        nwd_constant: float = AITOD_SIZE,
        objective: Objective | None = None,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = anchors
        self.assigner = (assigner or MaxIoU)(foreground=foreground, background=background, low_quality=low_quality)
        self.box_loss, self.box_weight, self.nwd_constant = box_loss, box_weight, nwd_constant
        self.objective = objective
        self.suppression = suppression or Suppression()
        channels, per_cell = features[0].channels, anchors.num_per_cell
        self.class_tower = ConvTower(channels, depth, levels=len(features), norm=norm)
        self.box_tower = ConvTower(channels, depth, levels=len(features), norm=norm)
        self.class_logits = nn.Conv2d(channels, per_cell * num_classes, 3, 1, 1)
        self.box_deltas = nn.Conv2d(channels, per_cell * 4, 3, 1, 1)
        init_normal(self.class_logits)
        init_normal(self.box_deltas)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid maps to class logits `(B, A*K, H_l, W_l)` and box deltas `(B, A*4, H_l, W_l)` per level."""
        logits = [self.class_logits(self.class_tower(m, i)) for i, m in enumerate(maps)]
        deltas = [self.box_deltas(self.box_tower(m, i)) for i, m in enumerate(maps)]
        return logits, deltas

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` (focal) and `box`, both over the number of positive anchors of the batch; or the objective's own."""
        logits, deltas = self(maps)
        flat_logits, flat_deltas = flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4)
        priors = self.priors([m.shape[-2:] for m in logits], padded, flat_logits.device)
        anchors = priors.boxes
        if self.objective is not None:
            return self.objective(flat_logits, flat_deltas, anchors, targets)
        found = dense_targets(priors, targets, self.assigner, self.num_classes)
        classification = (focal_loss(flat_logits, found.wanted) * found.counted[..., None]).sum() / found.positives
        box = self._box_loss(flat_deltas[found.image, found.row], anchors[found.row], found.objects) / found.positives
        return {"classification": classification, "box": box * self.box_weight}

    def priors(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Priors:
        """The anchors of all levels, for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        return Priors.on_levels(self.anchors(map_sizes, padded, device), counts)

    def assigning_part(self) -> AssigningPart:
        """The head itself, unless its objective matches anchors by itself."""
        if self.objective is not None:
            raise UserError(
                f"{type(self.objective).__name__} matches anchors by itself",
                where="assigner",
                fix="retinanet takes an assigner",
            )
        return self

    def assign_image(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], target: Targets) -> Tensor:
        """See `AssigningPart`."""
        priors = self.priors(map_sizes, padded, target.boxes.device)
        return self.assigner(priors, target.objects, target.ignored)

    def _box_loss(self, deltas: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return giou_loss(box_algebra.decode(deltas, anchors), objects)
        if self.box_loss == "nwd":
            return nwd_loss(box_algebra.decode(deltas, anchors), objects, constant=self.nwd_constant)
        return smooth_l1(deltas, box_algebra.encode(objects, anchors), beta=0.11) / 4

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, deltas = self(maps)
        map_sizes = [m.shape[-2:] for m in logits]
        counts = [h * w * self.anchors.num_per_cell for h, w in map_sizes]
        scores, flat_deltas = flatten_levels(logits, self.num_classes).sigmoid(), flatten_levels(deltas, 4)
        anchors = self.anchors(map_sizes, padded, scores.device)
        found = []
        for image_scores, image_deltas, size in zip(scores, flat_deltas, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, counts, self.suppression.pre_nms, self.suppression.score)
            boxes = box_algebra.decode(image_deltas[rows], anchors[rows])
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, self.suppression))
        return found

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        logits, deltas = self(maps)
        scores = [flatten_level(m, self.num_classes).sigmoid() for m in logits]
        anchors = self.anchors.levels_of(logits, size)
        return decode_anchored(scores, deltas, anchors, weights=(1, 1, 1, 1), size=size, rule=self.suppression)

    def dense_outputs(self, raw: tuple[list[Tensor], list[Tensor]]) -> DenseOutputs:
        """See `Head.dense_outputs`: class logits and offsets of every anchor."""
        logits, deltas = raw
        return DenseOutputs(flatten_levels(logits, self.num_classes), flatten_levels(deltas, 4))

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        shapes = self.anchors.shapes[0]
        return {
            "class_logits": OutputRows(("anchors", "classes"), shapes),
            "box_deltas": OutputRows(("anchors", "values"), shapes),
        }

    def dense_grid(self) -> Sequence[Sequence[tuple[float, float]]]:
        """The anchors of each level."""
        return self.anchors.shapes


class RetinaNetOptions(Thresholds):
    """Options of RetinaNet."""

    depth: Depth = 4
    """Convolutions of each tower: 2 on a laptop."""
    foreground: Share = 0.5
    """Overlap (IoU) with an object from which an anchor learns it."""
    background: Share = 0.4
    """Overlap (IoU) below which an anchor is background; between the two it learns nothing."""
    low_quality: bool = True
    """An object that no anchor overlaps enough takes the one that overlaps most."""
    box_loss: Literal["smooth_l1", "giou", "nwd"] = "smooth_l1"
    """`smooth_l1` on the offsets, or of the decoded boxes the generalised IoU or the normalised Wasserstein distance."""
    box_weight: Weight = 1.0
    """Weight of the box loss against the class loss."""
    nwd_constant: Positive = AITOD_SIZE
    """C in px of `nwd`: about the mean size of the objects."""
    extra: Extra = "conv_c5"
    """How its own pyramid makes the levels above the backbone's last: a 3x3 convolution of stride 2 on C5 (`conv_c5`) or on P5
    (`conv_p5`), or every second cell of P5 (`pool`: the fusion-factor paper, section 3)."""
    neck_norm: NeckNorm = None
    """Norm layers of its own pyramid where they are not those of `model.norm`."""


def retinanet(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    depth: int = 4,
    norm: NormBuilder | None = None,
    neck_norm: NeckNorm = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    extra: Extra = "conv_c5",
    anchors: AnchorBuilder | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """RetinaNet on `backbone`; with maps from C2 and one extra level it is the adaptive one.

    The neck is an FPN, or `neck`. `channels` and `depth` are those of neck and towers: 64 and 2 make a laptop model, 256
    and 4 the paper's. `anchors` makes the anchors from the neck's features (default: 2 x stride in three octave steps).
    `head` goes to `RetinaNetHead`.

    `extra` is how the FPN makes levels above the backbone's last map. `conv_c5`, as mmdetection's RetinaNet and
    TOV_mmdetection's adaptive one, has 36.120 M trainable parameters and 177.520 GFLOPs at 640x512 (one class; printed by
    Gong et al., DPNet, Table IV). `pool`, as the fusion-factor paper says in section 3 ("P6 is generated by directly
    downsampling the P5") and its code does, has 31.401 M and 177.143.

    Raises:
        UserError: For an `extra` other than the default beside a `neck`, which makes its levels itself.
    """
    if neck is not None and extra != "conv_c5":
        raise UserError(
            f"{type(neck).__name__} makes the levels above the backbone's last itself, not by '{extra}'",
            where="extra",
            fix="leave it out, or leave out the neck",
        )
    neck = neck or FPN(
        backbone.features,
        channels=channels,
        num_extra=num_extra,
        extra=extra,
        norm=norm_of_neck(norm, neck_norm),
        fusion=fusion,
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        RetinaNetHead(
            features,
            num_classes=len(classes),
            anchors=(anchors or partial(strided_anchors, octaves=3))(features),
            depth=depth,
            norm=norm,
            suppression=suppression,
            **head,
        ),
        pixel_norm=pixel_norm,
        classes=classes,
    )
