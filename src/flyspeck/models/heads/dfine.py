"""D-FINE: sides of boxes as distributions that every layer refines. Peng et al., ICLR 2025, arXiv:2410.13842.

The decoder's first layer moves a proposal; from there each side of the box is a distribution over unequal steps around it, to
which every layer adds its own logits (fine-grained distribution refinement). Besides the losses of all detection transformers
(`models.detr`) the distributions learn the object's side (FGL), and those of earlier layers learn the last layer's (DDF: global
optimal localisation self-distillation). Modules are those of the library transformers, which has its weights from the authors.

Deviations: what all hosts of `models.detr` share (proposals from the map's own cells and at the rim, NWD in cost and loss, ignore
regions, a bound on denoising); each layer is matched by itself, where the authors train boxes on the union of all layers'
matches; a box's first move begins at zero, as in the authors' code and not the library's.

Numbers: COCO AP 54.0 of D-FINE-L, published. They cannot be reproduced here, as COCO and the published files cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.detr.encoder import HybridEncoder
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.detr.losses import Layer, Matched
from flyspeck.models.detr.options import DetrOptions
from flyspeck.models.layers import NormBuilder
from flyspeck.models.postprocess import Suppression
from flyspeck.options import Positive, Weight
from flyspeck.types import FeatureSpec

_SOFTNESS = 5.0
"""Temperature at which distributions of two layers are compared, as published."""


class DFineHead(DetrHead):
    """See the head of this module; what is not named here goes to `DetrHead`."""

    kind = "dfine"

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        distribution_weight: float = 0.15,
        teaching_weight: float = 1.5,
        **more: Any,
    ) -> None:
        super().__init__(features, num_classes=num_classes, **more)
        self.distribution_weight, self.teaching_weight = distribution_weight, teaching_weight

    def level_layers(self) -> nn.ModuleList:
        """See `DetrHead.level_layers`: nothing, as encoder and decoder have the same channels."""
        return nn.ModuleList(nn.Identity() for _ in range(self.shape.levels))

    def decoded(self, output: Any) -> tuple[Layer, ...]:
        """See `DetrHead.decoded`. While it trains, the first move of the box is a layer by itself, without distributions."""
        logits, boxes = output.intermediate_logits, output.intermediate_reference_points
        corners, start = output.intermediate_predicted_corners, output.initial_reference_points
        ahead = logits.shape[1] - corners.shape[1]
        plain = tuple(Layer(logits[:, i], boxes[:, i]) for i in range(ahead))
        return plain + tuple(
            Layer(logits[:, ahead + i], boxes[:, ahead + i], corners[:, i], start[:, i])
            for i in range(corners.shape[1])
        )

    def own_losses(
        self, layers: Sequence[Layer], matched: Sequence[Matched], size: tuple[int, int], total: Tensor
    ) -> dict[str, Tensor]:
        """`distribution` (FGL) and `teaching` (DDF)."""
        last, sides, taught = layers[-1], [], []
        for layer, pairs in zip(layers, matched, strict=True):
            if layer.corners is None or layer.start is None:
                continue
            with torch.no_grad():
                overlap = box_algebra.paired_iou(layer.pixels(size)[pairs.image, pairs.query], pairs.objects).clamp(
                    0, 1
                )
            sides.append(self._side_loss(layer.corners, layer.start, pairs, overlap, size) / total)
            if layer is not last and last.corners is not None:
                taught.append(_teaching_loss(layer.corners, last, pairs, overlap))
        nothing = last.logits.sum() * 0
        return {
            "distribution": self.distribution_weight * torch.stack([nothing, *sides]).sum(),
            "teaching": self.teaching_weight * torch.stack([nothing, *taught]).sum(),
        }

    def _side_loss(
        self, corners: Tensor, start: Tensor, pairs: Matched, overlap: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Cross entropy of each side's distribution with the two steps around the object's side, by the box's IoU. A sum."""
        from transformers.loss.loss_d_fine import bbox2distance

        decoder, scale = self.decoder, start.new_tensor([size[1], size[0]]).repeat(2)
        said = corners[pairs.image, pairs.query].unflatten(-1, (4, -1)).flatten(0, 1)
        with torch.no_grad():
            step, right, left = bbox2distance(
                start[pairs.image, pairs.query],
                pairs.objects / scale,
                decoder.max_num_bins,
                decoder.reg_scale,
                decoder.up,
            )
        low = step.long()
        loss = (
            F.cross_entropy(said, low, reduction="none") * left
            + F.cross_entropy(said, low + 1, reduction="none") * right
        )
        return (loss * overlap.repeat_interleave(4)).sum()


def _teaching_loss(corners: Tensor, last: Layer, pairs: Matched, overlap: Tensor) -> Tensor:
    """KL of the last layer's distributions and a layer's, of queries with an object and of others, each by how sure they are.

    The two means are weighed by the roots of their counts an image, as published.
    """
    assert last.corners is not None
    teacher, student = (c.unflatten(-1, (4, -1)) / _SOFTNESS for c in (last.corners.detach(), corners))
    apart = F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="none", log_target=True).sum(-1)
    sure = last.logits.detach().sigmoid().amax(-1)
    learns = torch.zeros_like(sure, dtype=torch.bool)
    learns[pairs.image, pairs.query] = True
    sure = sure.index_put((pairs.image, pairs.query), overlap.to(sure.dtype))
    weighed = _SOFTNESS**2 * sure * apart.mean(-1)
    counts = [(one.sum() / len(sure)).sqrt() for one in (learns, ~learns)]
    means = [(weighed * one).sum() / one.sum().clamp(min=1) for one in (learns, ~learns)]
    return (means[0] * counts[0] + means[1] * counts[1]) / (counts[0] + counts[1]).clamp(min=1e-6)


class DFineOptions(DetrOptions):
    """Options of D-FINE."""

    depth: Positive = 1.0
    """Blocks in a row within the encoder's pyramid: three times this."""
    distribution_weight: Weight = 0.15
    """Of the loss by which the distribution of a side learns the object's side."""
    teaching_weight: Weight = 1.5
    """Of the loss by which earlier layers learn the last one's distributions."""


def dfine(
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
    depth: float = 1.0,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """D-FINE on `backbone`; the neck is a `HybridEncoder`, or `neck`. `head` goes to `DFineHead`."""
    neck = neck or HybridEncoder(
        backbone.features,
        kind="dfine",
        channels=channels,
        num_extra=num_extra,
        heads=head.get("heads", 8),
        ffn=head.get("ffn"),
        encoder_layers=encoder_layers,
        expansion=expansion,
        depth=depth,
        norm=norm,
    )
    features: Sequence[FeatureSpec] = neck.features  # type: ignore[assignment]
    return Detector(
        backbone,
        neck,
        DFineHead(features, num_classes=len(classes), suppression=suppression, **head),
        pixel_norm=pixel_norm,
        classes=classes,
    )
