"""The down-sampling factor predictor, DFP (DPNet, sec. III-C, Fig. 7): which factor an image needs, from the map before
the resize; and its losses (Eq. 5-7).

Four basic blocks of two 3x3 convolutions with batch norm and ReLU ("simplifies ResNet"), each of stride 2, then the mean
over the map, and two linear layers: a logit for every factor, and the statistic branch. The text gives no widths; 128, 128,
256, 256 on a ResNet-50's C2 reproduce its parameter count within 0.1 %.

Deviations: C2 is average-pooled by 4 first (0.6 instead of 9 GFLOPs at 796x1124); hosts with a thinner C2 get thinner blocks;
the shortcut of a block that keeps its width is an average pool; statistics are learnt as logarithms, since counts and sizes
span decades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.types import Targets

WIDTHS = (128, 128, 256, 256)
"""Channels of the four blocks on a map of `FULL_CHANNELS`."""
FULL_CHANNELS = 256
STATISTICS = ("count", "mean", "max", "min")
"""What the statistic branch predicts: ln(1 + number of objects), and ln(1 + size) of their sizes sqrt(wh) in pixels."""
BETA = 1 / 9
"""Of the smooth L1 loss (Eq. 6)."""


def scaled_widths(channels: int) -> tuple[int, ...]:
    """The blocks' channels on a map of `channels`: in proportion, but at least a quarter of `WIDTHS`."""
    scale = min(1.0, max(0.25, channels / FULL_CHANNELS))
    return tuple(max(1, round(width * scale)) for width in WIDTHS)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU around a shortcut; halves the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        if inputs == outputs:
            self.shortcut: nn.Module = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', ceil(H/2), ceil(W/2))`."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FactorPredictor(nn.Module):
    """The DFP: a map `(B, C, H, W)` to a logit for every factor and the predicted statistics."""

    def __init__(self, channels: int, num_factors: int, *, widths: Sequence[int] | None = None, pool: int = 4) -> None:
        super().__init__()
        widths = tuple(widths) if widths is not None else scaled_widths(channels)
        if len(widths) == 0 or min(widths) < 1 or pool < 1:
            raise UserError(
                f"a predictor of widths {list(widths)} on a map pooled by {pool}", where="dynamic.predictor"
            )
        self.pool = pool
        sides = (channels, *widths)
        self.blocks = nn.Sequential(*(BasicBlock(a, b) for a, b in zip(sides, widths, strict=False)))
        self.factors = nn.Linear(widths[-1], num_factors)
        self.statistics = nn.Linear(widths[-1], len(STATISTICS))

    def pooled(self, x: Tensor) -> Tensor:
        """The map that the blocks see, `(B, C, ceil(H/pool), ceil(W/pool))`: what is worth keeping of a frozen detector."""
        return F.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False) if self.pool > 1 else x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, m)`, whose sigmoids are Eq. 3, and statistics `(B, 4)`, from the map before the resize."""
        return self.from_pooled(self.pooled(x))

    def from_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, where the map has been pooled already."""
        features = self.blocks(x).mean((2, 3))
        return self.factors(features), self.statistics(features)

    def probabilities(self, x: Tensor) -> Tensor:
        """Eq. 3 alone, `(B, m)`, from the map before the resize: what a choice needs, without the statistics."""
        return self.factors(self.blocks(self.pooled(x)).mean((2, 3))).sigmoid()


def object_statistics(target: Targets) -> Tensor:
    """`(4,)` what the statistic branch learns of an image (`STATISTICS`); zeros without objects."""
    sizes = box_algebra.size(target.objects)
    if len(sizes) == 0:
        return torch.zeros(len(STATISTICS))
    count = torch.as_tensor(float(len(sizes)))
    return torch.stack([count, sizes.mean().cpu(), sizes.max().cpu(), sizes.min().cpu()]).float().log1p()


def predictor_losses(
    logits: Tensor, statistics: Tensor, labels: Tensor, wanted: Tensor, *, weight: float = 1.0
) -> dict[str, Tensor]:
    """L_P = L_sta + `weight` (lambda) L_df, Eq. 7, as its two terms, means over the batch.

    `factor` is Eq. 5 (cross-entropy of every factor's label `(B, m)` in {0, 1}, summed over factors), `statistic` Eq. 6
    (smooth L1 of the `(B, 4)` statistics, summed).
    """
    factor = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
    statistic = F.smooth_l1_loss(statistics, wanted, beta=BETA, reduction="none").sum(1).mean()
    return {"factor": weight * factor, "statistic": statistic}


Rule = Literal["cheapest", "argmax"]


@dataclass(frozen=True)
class Decision:
    """From probabilities to a factor.

    `argmax` is Eq. 4. `cheapest` is what the text aims at, "the smallest df that still allows strong detection": the smallest
    factor whose probability of being good enough is at least `threshold`, and the largest where none is. The higher the
    threshold, the larger the factors and the cost: 0 takes the smallest everywhere, above 1 the largest.
    """

    rule: Rule = "cheapest"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.rule not in ("cheapest", "argmax"):
            raise UserError(f"no rule '{self.rule}'", where="rule", fix="cheapest or argmax")

    def choose(self, probabilities: np.ndarray) -> np.ndarray:
        """`(N,)` places among the factors (largest first) from `(N, m)` probabilities."""
        if self.rule == "argmax":
            return probabilities.argmax(1)
        good = probabilities >= self.threshold
        last = probabilities.shape[1] - 1 - good[:, ::-1].argmax(1)
        return np.where(good.any(1), last, 0)
