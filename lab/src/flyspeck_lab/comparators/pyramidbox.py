"""PyramidBox: a face detector that learns what surrounds a face. Tang et al., ECCV 2018, arXiv:1803.07737.

On S3FD's six maps and anchors (`s3fd`):

* Low-level pyramid (`LowLevelPyramid`, sec. 3.1): the way down begins in the middle, at fc7, whose receptive field is about
  half of a training image; what is above says little about small faces. Levels are joined by products, not by sums.
* Context-sensitive prediction (`ContextPrediction`, sec. 3.2): a residual block, wide rather than deep, and SSH's branches of
  one, two and three 3x3 convolutions, before the predictors of each map.
* Max-in-out (sec. 3.2): three background scores of the first map's cells, three face scores of all others, of which the largest
  counts (`s3fd.MaxInOut`).
* Pyramid anchors (sec. 3.3): an anchor that overlaps a face when it is shrunk by 2 (4) about its centre is that of the face's
  head (body). So the maps above a face's own learn it once more, and must see what is around it. Only the predictors of faces
  run in use.

Structure and numbers are the paper's and those of its authors' code (PaddlePaddle/models, Apache-2.0), from which come the
widths of the prediction blocks, their norms, and the L2 norms behind them.

Deviations: predictors of heads and bodies regress the face, from the shrunk anchor (the code enlarges the face instead, has no
bodies, and predicts heads on the first map too); the three losses weigh the same; maps are resized bilinearly, where the code
takes a fixed transposed convolution and cuts what is over. Data-anchor-sampling (sec. 3.4), which resizes a training image until
one of its faces has another's size, is not here. Others are S3FD's.

Numbers: AP on WIDER FACE val easy, medium, hard 96.1, 95.0, 88.9 (paper, several scales). It could not be had, and they were
not reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.batch_decoding import BatchDetections, Size
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.heads.ssd import L2Norm, SSDHead
from flyspeck.models.postprocess import RawDetections, Suppression
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Options, Share
from flyspeck.types import FeatureSpec, Targets
from flyspeck_lab.comparators.one_configuration import only_base
from flyspeck_lab.comparators.rfb_net import conv_norm
from flyspeck_lab.comparators.s3fd import LENGTHS, SIDES, MaxInOut, S3FDNeck, extra_width, face_backbone, squares

SUPPRESSION = Suppression(score=0.01, iou=0.3, pre_nms=5000, max_detections=750)
SHRINK = 2.0
"""From a body to a head, and from a head to a face."""


class LowLevelPyramid(nn.Module):
    """Joins each of `features` but the last with what is above it: the product of both after 1x1 convolutions and ReLU."""

    def __init__(self, features: Sequence[FeatureSpec]) -> None:
        super().__init__()
        pairs = list(zip(features[1:], features[:-1], strict=True))
        self.above = nn.ModuleList(nn.Conv2d(above.channels, own.channels, 1) for above, own in pairs)
        self.own = nn.ModuleList(nn.Conv2d(own.channels, own.channels, 1) for _, own in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Finest first, channels as they were."""
        levels = list(maps)
        for i in range(len(levels) - 2, -1, -1):
            above = F.interpolate(self.above[i](levels[i + 1]).relu(), size=levels[i].shape[-2:], mode="bilinear")
            levels[i] = above * self.own[i](levels[i]).relu()
        return levels


class ContextPrediction(nn.Module):
    """What stands before the predictors of a map: a residual block of four times `channels`, then three branches, `2 channels`
    in all.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.straight = conv_norm(inputs, 4 * channels, relu=False)
        self.way = nn.Sequential(
            conv_norm(inputs, channels), conv_norm(channels, channels, 3), conv_norm(channels, 4 * channels, relu=False)
        )
        self.once = nn.Conv2d(4 * channels, channels, 3, 1, 1)
        self.first = nn.Conv2d(4 * channels, half, 3, 1, 1)
        self.twice, self.second, self.thrice = (nn.Conv2d(half, half, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, 2 channels, H, W)`."""
        x = (self.straight(x) + self.way(x)).relu()
        first = self.first(x).relu()
        return torch.cat([self.once(x), self.twice(first), self.thrice(self.second(first).relu())], 1).relu()


class PyramidBoxNeck(nn.Module):
    """Four maps of the backbone to the predictors' six."""

    def __init__(self, features: Sequence[FeatureSpec], *, width: float, context_width: int) -> None:
        super().__init__()
        self.sources = S3FDNeck(features, width=width, normed=False)
        self.pyramid = LowLevelPyramid(features)
        self.context = nn.ModuleList(ContextPrediction(f.channels, context_width) for f in self.sources.features)
        self.norms = nn.ModuleList(L2Norm(2 * context_width, scale=scale) for scale in LENGTHS)
        self.features = tuple(FeatureSpec(2 * context_width, f.stride) for f in self.sources.features)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Finest first."""
        sources = self.sources(maps)
        levels = [*self.pyramid(sources[: len(maps)]), *sources[len(maps) :]]
        levels = [block(level) for block, level in zip(self.context, levels, strict=True)]
        return [norm(level) for norm, level in zip(self.norms, levels, strict=False)] + levels[len(self.norms) :]


class PyramidBoxHead(Head):
    """Predictors of faces on all maps, and for training those of what is around them on the maps above."""

    def __init__(self, face: SSDHead, around: Sequence[SSDHead]) -> None:
        super().__init__()
        self.num_classes, self.face, self.around = face.num_classes, face, nn.ModuleList(around)

    @property
    def suppression(self) -> Suppression:  # type: ignore[override]
        """That of the faces."""
        return self.face.suppression

    @suppression.setter
    def suppression(self, value: Suppression) -> None:
        self.face.suppression = value

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` and `box` of the faces, `classification_1` and `box_1` of heads, `…_2` of bodies."""
        found = self.face.losses(maps, targets, padded, sizes)
        for number, head in enumerate(self.around, 1):
            assert isinstance(head, SSDHead)
            own = head.losses(maps[number:], targets, padded, sizes)
            found |= {f"{name}_{number}": loss for name, loss in own.items()}
        return found

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        return self.face.detect(maps, padded, sizes)

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        return self.face.decode_batch(maps, size)

    def run_layers(self, maps: Sequence[Tensor], *, proposals: int) -> None:
        """See `Head.run_layers`: those of the faces alone."""
        self.face(maps)

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        parts = [("face", self.face), *((f"around.{i}", head) for i, head in enumerate(self.around))]
        return {f"{name}.{key}": rows for name, part in parts for key, rows in part.output_rows().items()}  # type: ignore[operator]


class PyramidBoxOptions(Options):
    """Options of PyramidBox."""

    width: float | None = Field(default=None, gt=0, le=16)
    """Scales the extra layers; null takes the backbone's own width, at most 1."""
    context_width: int | None = Field(default=None, ge=4, le=4096)
    """Channels of the prediction blocks' branches; null takes 256 at the backbone's own width."""
    around: int = Field(default=2, ge=0, le=4)
    """What is learnt around a face: 1 heads, 2 bodies too, further ones twice as large each."""
    foreground: Share = 0.35
    """Overlap (IoU) with a face from which an anchor learns it."""
    negatives_per_positive: int = Field(default=3, ge=0, le=1000)
    """Background anchors, the hardest of an image, for each that learns a face."""
    scores: int = Field(default=3, ge=1, le=16)
    """Background scores of a cell of the first map, and face scores of the others, of which the largest counts."""


find_configuration = only_base("PyramidBox")


def pyramidbox(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str = "base",
    plain: bool = False,
    width: float | None = None,
    context_width: int | None = None,
    around: int = 2,
    foreground: float = 0.35,
    negatives_per_positive: int = 3,
    scores: int = 3,
    suppression: Suppression | None = None,
) -> Detector:
    """PyramidBox on the last four maps of `backbone`, a chain of stages; `plain`: VGG16's top as published.

    `width` scales the extra layers and, where `context_width` is None, the prediction blocks; None takes the backbone's own
    (its last map's channels over 1024, at most 1).
    """
    find_configuration(configuration)
    backbone = face_backbone(backbone, "PyramidBox", plain=plain)
    width = extra_width(backbone) if width is None else width
    context_width = context_width or max(4, round(256 * width) // 4 * 4)
    neck = PyramidBoxNeck(backbone.features, width=width, context_width=context_width)

    def predictors(number: int) -> SSDHead:
        # Of what is around, the classes are said once: max-in-out is for the faces.
        logits = [
            MaxInOut(
                feature.channels,
                num_classes=len(classes),
                positives=scores if i and not number else 1,
                negatives=1 if i or number else scores,
            )
            for i, feature in enumerate(neck.features[number:])
        ]
        return SSDHead(
            neck.features[number:],
            num_classes=len(classes),
            priors=squares([side / SHRINK**number for side in SIDES[number:]]),
            foreground=foreground,
            negatives_per_positive=negatives_per_positive,
            suppression=suppression or SUPPRESSION,
            class_logits=logits,
        )

    head = PyramidBoxHead(predictors(0), [predictors(number + 1) for number in range(around)])
    return Detector(backbone, neck, head, pixel_norm=pixel_norm, classes=classes)
