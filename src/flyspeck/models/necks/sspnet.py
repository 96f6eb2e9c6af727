"""SSPNet: a feature pyramid whose levels are gated by supervised attention on the sizes they are responsible for.
Hong et al., "SSPNet: Scale Selection Pyramid Network for Tiny Person Detection From UAV Images", 2021, arXiv:2107.01548.
Facts from the authors' code (MingboHong/SSPNet); none of it was copied.

With laterals L_i = inner_i(C_i) of C2..C5:
* context attention (CAM): all L_i, upsampled to the finest, through a 3x3, an ASPP and a 3x3 with batch norm; then one 3x3
  per level, of stride 2 from the second on, and A_i = sigmoid(3x3 -> 1 channel);
* scale enhancement (SEM): L_i <- (1 + A_i) L_i, and at the end P_i = (1 + A_i) layer_i(L_i);
* scale selection (SSM): L_{i-1} <- L_{i-1} + [A_{i-1} * up(A_i)] * up(L_i), top-down;
* P6 subsamples P5.
The attention is supervised: a level's target is 1 on the objects of its sizes, -1 on the others (learnt as background with
weight 3), 0 elsewhere (of which the hardest count, 3 for each positive pixel): binary cross entropy x 0.01, plus Dice.
Weighted negative sampling (WNS) belongs to it: `weighted_negatives` for the RPN's sampler.

Resolved where the text is silent: a level's sizes are 1 to 8 strides, (4, 32) to (32, 256) px, the finest takes everything
smaller and the coarsest everything larger; an image without positives on a level learns from the hardest 5 % of its
pixels; where a matched object overlaps an unmatched one it wins; losses are averaged over images and added over levels;
pixels under ignore regions are no background.

Numbers: 8,992,004 parameters on ResNet's widths (5,647,620 of them CAM); at 640x512 with one class RetinaNet-SSPNet
260.06 GFLOPs, Cascade-SSPNet 186.62, Faster-SSPNet 158.82; with BH-ResNet50 260.27, 186.83, 159.03.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.detector import SupervisedNeck
from flyspeck.models.layers import ConvNorm, NormBuilder
from flyspeck.types import FeatureSpec, Targets

MATCHED, OTHER = 1.0, -1.0
_BLOCK = 1 << 24


class ContextAttention(nn.Module):
    """CAM: the laterals of all levels to one attention map each, as logits."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.gather = nn.Conv2d(levels * channels, channels, 3, 1, 1)
        quarter = channels // 4
        self.aspp = nn.ModuleList(
            [
                nn.Conv2d(channels, quarter, 1),
                nn.Conv2d(channels, quarter, 3, padding=2, dilation=2),
                nn.Conv2d(channels, quarter, 3, padding=5, dilation=5),
                nn.Conv2d(channels, quarter, 1),
            ]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.activation = nn.ReLU()
        self.merge = nn.Sequential(
            nn.Conv2d(4 * quarter, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1 if i == 0 else 2, 1) for i in range(levels))
        self.attention = nn.ModuleList(nn.Conv2d(channels, 1, 3, 1, 1) for _ in range(levels))

    def forward(self, laterals: Sequence[Tensor]) -> list[Tensor]:
        """Laterals `(B, C, H_l, W_l)`, finest first, to attention logits `(B, 1, H_l, W_l)`."""
        size = laterals[0].shape[-2:]
        x = self.gather(torch.cat([m if m.shape[-2:] == size else F.interpolate(m, size=size) for m in laterals], 1))
        pooled = self.aspp[3](self.pool(x)).expand(-1, -1, *size)
        x = self.merge(torch.cat([self.activation(b) for b in (*(conv(x) for conv in self.aspp[:3]), pooled)], 1))
        logits = []
        for down, attention, lateral in zip(self.down, self.attention, laterals, strict=True):
            x = down(x)
            if x.shape[-2:] != lateral.shape[-2:]:  # a dynamic factor acted between two levels
                x = F.interpolate(x, size=lateral.shape[-2:])
            logits.append(attention(x))
        return logits


class SSPNet(SupervisedNeck):
    """Final: the scale selection pyramid on the `features` of a backbone, with `num_extra` subsampled levels on top.

    `norm` goes behind the lateral and the last convolutions (the paper has none); the attention has its own batch norm.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        channels: int = 256,
        num_extra: int = 1,
        norm: NormBuilder | None = None,
        cross_entropy_weight: float = 0.01,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"the four branches of the ASPP need channels that are a multiple of 4, got {channels}")
        self.inner = nn.ModuleList(ConvNorm(f.channels, channels, 1, norm=norm) for f in features)
        self.layer = nn.ModuleList(ConvNorm(channels, channels, 3, norm=norm) for _ in features)
        self.context = ContextAttention(len(features), channels)
        self.num_extra = num_extra
        self.strides = tuple(f.stride for f in features)
        self.weights = (cross_entropy_weight, dice_weight)
        top = features[-1].stride
        self.features = (
            *(FeatureSpec(channels, f.stride) for f in features),
            *(FeatureSpec(channels, top * 2 ** (i + 1)) for i in range(num_extra)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def attend(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Backbone maps to the pyramid and the attention logits `(B, 1, H_l, W_l)` of the levels that have them."""
        laterals = [conv(m) for conv, m in zip(self.inner, maps, strict=True)]
        logits = self.context(laterals)
        attention = [torch.sigmoid(a) for a in logits]
        laterals = [(1 + a) * m for a, m in zip(attention, laterals, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            both = attention[i - 1] * F.interpolate(attention[i], size=size)
            laterals[i - 1] = laterals[i - 1] + both * F.interpolate(laterals[i], size=size)
        levels = [(1 + a) * conv(m) for a, conv, m in zip(attention, self.layer, laterals, strict=True)]
        for _ in range(self.num_extra):
            levels.append(levels[-1][..., ::2, ::2])
        return levels, logits

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first."""
        return self.attend(maps)[0]

    def forward_with_losses(
        self, maps: Sequence[Tensor], targets: Sequence[Targets], padded: tuple[int, int]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """See `SupervisedNeck`: `attention` (cross entropy) and `attention_dice`, already weighted."""
        levels, logits = self.attend(maps)
        painted = [paint_targets(t, padded, self.strides) for t in targets]
        cross_entropy, dice = logits[0].sum() * 0, logits[0].sum() * 0
        for level, level_logits in enumerate(logits):
            for image_logits, (goal, ignored) in zip(level_logits[:, 0], painted, strict=True):
                size = image_logits.shape
                level_goal = _resize(goal[level], size)
                flat = (
                    image_logits.reshape(-1).float(),
                    level_goal.reshape(-1),
                    _resize(ignored, size).reshape(-1) > 0,
                )
                one, two = attention_losses(*flat)
                cross_entropy, dice = cross_entropy + one, dice + two
        weights, images = self.weights, len(targets)
        return levels, {
            "attention": weights[0] * cross_entropy / images,
            "attention_dice": weights[1] * dice / images,
        }


def _resize(painted: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, not antialiased: `(H, W)` to `size`."""
    return F.interpolate(painted[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def level_matches(sizes: Tensor, strides: Sequence[float]) -> Tensor:
    """`(levels, N)` bool: whether a level is responsible for objects of `sizes (N,)` px (square root of the area).

    `strides` are those of the levels, finest first.
    """
    low = torch.tensor([-1.0, *strides[1:]], device=sizes.device)[:, None]
    high = torch.tensor([*(8.0 * stride for stride in strides[:-1]), torch.inf], device=sizes.device)[:, None]
    return (sizes > low) & (sizes < high)


def paint_targets(target: Targets, padded: tuple[int, int], strides: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Images `(levels, H, W)` of `MATCHED`, `OTHER` and 0, and `(H, W)` with 1 under ignore regions.

    Every pixel that an object touches is painted, so that objects of less than a pixel leave a trace.
    """
    height, width = padded
    device = target.boxes.device
    painted, ignored = (
        torch.zeros(len(strides), height, width, device=device),
        torch.zeros(height, width, device=device),
    )
    for x1, y1, x2, y2 in _pixels(target.ignored, padded):
        ignored[y1:y2, x1:x2] = 1
    matches = level_matches(box_algebra.size(target.objects), strides).T.tolist()
    spans = _pixels(target.objects, padded)
    for value in (OTHER, MATCHED):  # matched objects come last, over the others
        for (x1, y1, x2, y2), row in zip(spans, matches, strict=True):
            chosen = [i for i, matched in enumerate(row) if matched == (value == MATCHED)]
            painted[chosen, y1:y2, x1:x2] = value
    return painted, ignored


def _pixels(boxes: Tensor, padded: tuple[int, int]) -> list[list[int]]:
    """Whole pixels that each box touches, as (x1, y1, x2, y2) inside the image."""
    limit = torch.tensor([padded[1], padded[0]] * 2, device=boxes.device)
    outer = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], 1)
    return outer.clamp(min=0).minimum(limit).long().tolist()


def attention_losses(logits: Tensor, goal: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and Dice of one level of one image: `logits (P,)`, `goal (P,)` in [-1, 1], `ignored (P,)` bool."""
    positive, other = goal > 0, goal < 0
    background = ~(positive | other | ignored)
    losses = F.binary_cross_entropy_with_logits(logits, goal.clamp(min=0), reduction="none")
    num_positive = int(positive.sum())
    wanted = 3 * num_positive if num_positive else max(1, int(0.05 * len(goal)))
    hardest = losses[background].topk(min(wanted, int(background.sum()))).values
    selected = num_positive + int(other.sum()) + len(hardest)
    cross_entropy = (losses[positive].sum() + 3 * losses[other].sum() + hardest.sum()) / max(selected, 1)
    if num_positive == 0:
        return cross_entropy, logits.sum() * 0
    p, t = torch.sigmoid(logits[positive]), goal[positive]
    dice = 1 - 2 * ((p * t).sum() + 1) / (p.square().sum() + 1 + t.square().sum() + 1)
    return cross_entropy, dice


def weighted_negatives(anchors: Tensor, logits: Tensor, objects: Tensor) -> Tensor:
    """WNS: weights `(A,)` of the negatives, `exp(0.6 overlap + 0.4 confidence)`: fragments of objects come first.

    The overlap is the largest share of an object `(N, 4)` that an anchor `(A, 4)` covers. For `RPN(negative_weight=…)`.
    """
    covered = torch.zeros(len(anchors), device=anchors.device)
    step = max(1, _BLOCK // max(len(anchors), 1))
    for start in range(0, len(objects), step):
        covered = torch.maximum(covered, box_algebra.iod(objects[start : start + step], anchors).amax(0))
    return torch.exp(0.6 * covered + 0.4 * torch.sigmoid(logits.float()))


def sspnet_anchors(
    features: Sequence[FeatureSpec],
    *,
    scales: Sequence[float] = (1.5, 2.5, 3.7, 8.0),
    ratios: Sequence[float] = (0.4, 0.8, 1.4),
) -> AnchorGrid:
    """Twelve anchors a cell: `scales` x stride at each ratio h/w (the authors' RPN)."""
    return AnchorGrid(
        [[(s * f.stride / r**0.5, s * f.stride * r**0.5) for r in ratios for s in scales] for f in features]
    )
