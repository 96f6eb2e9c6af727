"""RT-DETRv2: a detection transformer whose queries are the best proposals. Lv et al., 2024, arXiv:2407.17140; RT-DETR, Zhao et
al., CVPR 2024, arXiv:2304.08069.

Each layer of the decoder moves the boxes of its queries by offsets before a sigmoid; its deformable attention samples points that
are told relative to the box. Losses and matching are those of all hosts of `models.detr`; modules are those of the library
transformers, which has its weights from the authors.

Deviations: what all hosts of `models.detr` share (proposals from the map's own cells and at the rim, NWD in cost and loss, ignore
regions, a bound on denoising).

Numbers: COCO AP 48.1 with a ResNet-18, published. They cannot be reproduced here, as COCO and the published files cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.detr.encoder import HybridEncoder
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.detr.losses import Layer, Matched
from flyspeck.models.detr.options import DetrOptions
from flyspeck.models.layers import ConvNorm, NormBuilder
from flyspeck.models.postprocess import Suppression
from flyspeck.types import FeatureSpec


class RTDetrV2Head(DetrHead):
    """See the head of this module; `norm` is of the convolution that each map goes through, the rest as of `DetrHead`."""

    kind = "rtdetrv2"

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        norm: NormBuilder | None = nn.BatchNorm2d,
        **more: Any,
    ) -> None:
        self._norm = norm
        super().__init__(features, num_classes=num_classes, **more)

    def level_layers(self) -> nn.ModuleList:
        """See `DetrHead.level_layers`: a 1x1 convolution and a norm."""
        channels = self.shape.channels
        return nn.ModuleList(ConvNorm(channels, channels, 1, norm=self._norm) for _ in range(self.shape.levels))

    def decoded(self, output: Any) -> tuple[Layer, ...]:
        """See `DetrHead.decoded`."""
        logits, boxes = output.intermediate_logits, output.intermediate_reference_points
        return tuple(Layer(logits[:, i], boxes[:, i]) for i in range(logits.shape[1]))

    def own_losses(
        self, layers: Sequence[Layer], matched: Sequence[Matched], size: tuple[int, int], total: Tensor
    ) -> dict[str, Tensor]:
        """See `DetrHead.own_losses`: none."""
        return {}


def rtdetrv2(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    channels: int = 256,
    norm: NormBuilder | None = nn.BatchNorm2d,
    neck: nn.Module | None = None,
    num_extra: int = 0,
    encoder_layers: int = 1,
    expansion: float = 1.0,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """RT-DETRv2 on `backbone`; the neck is a `HybridEncoder`, or `neck`. `head` goes to `RTDetrV2Head`."""
    neck = neck or HybridEncoder(
        backbone.features,
        kind="rtdetrv2",
        channels=channels,
        num_extra=num_extra,
        heads=head.get("heads", 8),
        ffn=head.get("ffn"),
        encoder_layers=encoder_layers,
        expansion=expansion,
        norm=norm,
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        RTDetrV2Head(features, num_classes=len(classes), norm=norm, suppression=suppression, **head),
        pixel_norm=pixel_norm,
        classes=classes,
    )


class RTDetrV2Options(DetrOptions):
    """Options of RT-DETRv2."""
