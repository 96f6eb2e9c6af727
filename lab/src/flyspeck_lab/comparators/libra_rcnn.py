"""Libra R-CNN: balance between samples, levels and losses. Pang, Chen, Shi, Feng, Ouyang, Lin, CVPR 2019, arXiv:1904.02701.

Three changes to Faster R-CNN, each a part of its own:

* `IoUBalancedSampler` (sec. 3.1): negatives come from three bins of equal width of IoU with the objects, as many from each, since
  hard ones (IoU above 0) are few among thousands; positives come as evenly as possible from the objects.
* `BalancedPyramid` (sec. 3.2): all levels are brought to the size of the middle one, averaged, refined by non-local
  attention (Wang et al., 2018, embedded Gaussian), brought back and added to each level.
* `balanced_l1` (sec. 3.3, eq. 9): close to L1, but well-placed boxes (errors below 1) get a larger gradient.

Numbers are those of the paper and of its implementation in mmdetection: levels meet at the third (stride 16, where P2 is the
first), alpha 0.5, gamma 1.5.

Deviations: bins are over [0, `foreground`) as the paper has them, where the implementation's begin at -1; the RPN samples 256
anchors as in our Faster R-CNN, where theirs takes at most five negatives a positive; the attention is bounded, since it grows
with the fourth power of the image's side: above 4096 cells keys and values are averaged by 2 x 2; its last convolution
starts at zero, so that training begins with the plain pyramid. Counting conventions leave the attention's products out.
Tiny objects: a proposal one pixel beside a 2 px object has IoU 0.33 and is a "hard negative" of the top bin.

Numbers: the fusion-factor paper (arXiv:2011.02298, Tables 3 and 4) gives AP50_tiny 44.68 and MR50_tiny 89.22 on TinyPerson, worse
than the Faster R-CNN it is built on (47.35, 87.57).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.models.assign import BACKGROUND
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, SupervisedNeck
from flyspeck.models.heads.faster_rcnn import TwoStageOptions, faster_rcnn
from flyspeck.models.layers import NormBuilder
from flyspeck.models.necks.fpn import FPN, FusionMode
from flyspeck.options import Share
from flyspeck.types import FeatureSpec, Targets

MAX_KEYS = 4096
"""Cells that each cell of the refined map attends to at most."""
_HALVINGS = 8
"""That a graph makes at most: enough for a map of 16384 x 16384 cells."""


@dataclass(frozen=True)
class IoUBalancedSampler:
    """Regions to train on: positives even over the objects, negatives even over bins of IoU."""

    bins: int = 3
    foreground: float = 0.5
    """IoU at which the last bin ends."""

    def __call__(
        self, regions: Tensor, target: Targets, assigned: Tensor, *, count: int, positive_share: float
    ) -> Tensor:
        """Rows of at most `count` of `regions (P, 4)`, at most `positive_share` of them positive; see `sample_balanced`."""
        positive = sample_per_object(assigned, int(count * positive_share))
        negative = torch.nonzero(assigned == BACKGROUND).squeeze(1)
        wanted = min(len(negative), count - len(positive))
        if wanted < len(negative) and len(target.objects):
            overlap = box_algebra.iou(regions[negative], target.objects.to(regions.dtype)).amax(1)
            negative = negative[self.even_over_bins(overlap, wanted)]
        else:
            negative = negative[torch.randperm(len(negative), device=negative.device)[:wanted]]
        return torch.cat([positive, negative])

    def even_over_bins(self, overlap: Tensor, count: int) -> Tensor:
        """`count` indices into `overlap (M,)`, count <= M: as many from each bin as it has, the rest from anywhere."""
        order = torch.randperm(len(overlap), device=overlap.device)
        place = (overlap[order] / self.foreground * self.bins).long().clamp(0, self.bins - 1)
        picked = torch.zeros(len(order), dtype=torch.bool, device=overlap.device)
        for number in range(self.bins):
            mine = torch.nonzero(place == number).squeeze(1)
            picked[mine[: count // self.bins]] = True
        rest = torch.nonzero(~picked).squeeze(1)
        picked[rest[: count - int(picked.sum())]] = True
        return order[picked]


def sample_per_object(assigned: Tensor, count: int) -> Tensor:
    """At most `count` positive rows of `assigned (P,)`, as evenly over the objects as these allow, else at random."""
    positive = torch.nonzero(assigned >= 0).squeeze(1)
    positive = positive[torch.randperm(len(positive), device=positive.device)]
    if len(positive) <= count:
        return positive
    # The first row of every object, then the second of every object, and so on.
    grouped, order = assigned[positive].sort(stable=True)
    first = torch.searchsorted(grouped, grouped)
    turn = torch.arange(len(grouped), device=grouped.device) - first
    # Within the last turn that fits only partly, objects are drawn at random, not in the order of the annotations.
    draw = torch.rand(len(turn), device=turn.device)
    return positive[order[(turn + draw).argsort()[:count]]]


def balanced_l1(
    prediction: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Tensor:
    """Sum of the balanced L1 loss (eq. 9): its gradient is alpha ln(b |x| / beta + 1) up to |x| = beta, gamma above.

    `b = exp(gamma / alpha) - 1` makes it continuous there.
    """
    b = math.exp(gamma / alpha) - 1
    error = (prediction - target).abs()
    inner = alpha / b * (b * error + beta) * torch.log(b * error / beta + 1) - alpha * error
    outer = gamma * error + gamma * beta / b - alpha * beta
    return torch.where(error < beta, inner, outer).sum()


class NonLocal(nn.Module):
    """`x + W y`, where y is the mean of all cells weighed by softmax of embedded dot products (Wang et al., arXiv:1711.07971)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.out = nn.Conv2d(channels, channels, 1)
        for conv in (self.query, self.key, self.value):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        if torch.compiler.is_exporting():  # of a mean, a 1x1 convolution gives the mean of what it gives
            return x + self.out(attend(self.query(x), self.key(x), self.value(x), MAX_KEYS))
        far = halved(x, MAX_KEYS)
        return x + self.out(attention(self.query(x), self.key(far), self.value(far)))


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The mean of `value (B, C, h, w)` for every cell of `query (B, C, H, W)`, weighed by softmax of its products with `key`."""
    q, k, v = (m.flatten(2).transpose(1, 2)[:, None] for m in (query, key, value))
    # Without the 1 / sqrt(C) of transformers: the embedded Gaussian has none.
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0].transpose(1, 2).reshape(query.shape)


def halved(x: Tensor, cells: int) -> Tensor:
    """A map `(B, C, H, W)` averaged by 2 x 2, as often as it takes until it has at most `cells` cells."""
    while x.shape[-2] * x.shape[-1] > cells:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return x


@torch.library.custom_op("flyspeck_lab::attend_halved", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, cells: int) -> Tensor:
    """`attention` to keys and values `halved` to at most `cells` cells, as one operator of a graph; all are `(B, C, H, W)`."""
    return attention(query, halved(key, cells), halved(value, cells)).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cells: int) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def attend_onnx(op: Any) -> Callable[..., Any]:
    """`attend` in ONNX: how often to halve is arithmetic on the size, and the average is a product on either side."""

    def number(value: int) -> Any:
        return op.Constant(value_int=value)

    def ceil_div(side: Any, by: Any) -> Any:
        return op.Div(op.Sub(op.Add(side, by), number(1)), by)

    def averages(side: Any, again: Sequence[Any], block: Any) -> Any:
        """`(side', side)`: the weights by which the cells along one axis go into the halved ones."""
        cell = op.Range(number(0), side, number(1))
        weight = op.Expand(op.Constant(value_float=1.0), op.Shape(cell))
        for times, one in enumerate(again):
            length = ceil_div(side, number(2**times))
            # A last cell without a partner goes on alone.
            last = op.Equal(op.Div(cell, number(2**times)), op.Sub(length, number(1)))
            alone = op.And(last, op.Equal(op.Mod(length, number(2)), number(1)))
            half = op.Sub(op.Constant(value_float=1.0), op.Mul(op.Constant(value_float=0.5), op.Cast(one, to=1)))
            weight = op.Mul(weight, op.Where(alone, op.Constant(value_float=1.0), half))
        target = op.Range(number(0), ceil_div(side, block), number(1))
        member = op.Equal(
            op.Div(op.Unsqueeze(cell, op.Constant(value_ints=[0])), block),
            op.Unsqueeze(target, op.Constant(value_ints=[1])),
        )
        return op.Mul(op.Cast(member, to=1), op.Unsqueeze(weight, op.Constant(value_ints=[0])))

    def built(query: Any, key: Any, value: Any, cells: int) -> Any:
        height, width = (
            op.Squeeze(op.Shape(query, start=axis, end=axis + 1), op.Constant(value_ints=[0])) for axis in (2, 3)
        )
        again, block = [], number(1)  # 1 where the map is halved once more, else 0
        for times in range(_HALVINGS):
            rows, columns = (ceil_div(side, number(2**times)) for side in (height, width))
            again.append(op.Min(number(1), op.Div(op.Sub(op.Mul(rows, columns), number(1)), number(cells))))
            block = op.Mul(block, op.Add(number(1), again[-1]))
        down, across = averages(height, again, block), averages(width, again, block)
        across = op.Transpose(across, perm=[1, 0])
        flat = op.Constant(value_ints=[0, 0, -1])
        key, value = (op.Reshape(op.MatMul(op.MatMul(down, m), across), flat) for m in (key, value))
        products = op.MatMul(op.Transpose(op.Reshape(query, flat), perm=[0, 2, 1]), key)
        seen = op.MatMul(value, op.Transpose(op.Softmax(products, axis=-1), perm=[0, 2, 1]))
        return op.Reshape(seen, op.Shape(query))

    return built


class BalancedPyramid(SupervisedNeck):
    """A pyramid (`neck`) whose levels all get the refined mean of all of them; levels and channels stay as they are.

    It has no loss of its own; those of a `neck` that is supervised are passed on.
    """

    def __init__(self, neck: nn.Module, *, refine: int = 2) -> None:
        super().__init__()
        self.neck = neck
        self.features: tuple[FeatureSpec, ...] = tuple(neck.features)  # type: ignore[arg-type]
        self.refine = min(refine, len(self.features) - 1)
        self.attention = NonLocal(self.features[0].channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid maps, finest first."""
        return self._balance(self.neck(maps))

    def forward_with_losses(
        self, maps: Sequence[Tensor], targets: Sequence[Targets], padded: tuple[int, int]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """See `SupervisedNeck.forward_with_losses`."""
        if not isinstance(self.neck, SupervisedNeck):
            return self(maps), {}
        levels, losses = self.neck.forward_with_losses(maps, targets, padded)
        return self._balance(levels), losses

    def _balance(self, levels: list[Tensor]) -> list[Tensor]:
        middle = self.refine
        size = levels[middle].shape[-2:]
        mean = torch.stack([_resized(level, size, middle - i) for i, level in enumerate(levels)]).mean(0)
        refined = self.attention(mean)
        return [level + _resized(refined, level.shape[-2:], i - middle) for i, level in enumerate(levels)]


def _resized(x: Tensor, size: Sequence[Any], steps: int) -> Tensor:
    """`(B, C, H, W)` to `size` (H, W), `steps` levels up the pyramid: by maxima where it shrinks, nearest where it grows."""
    if steps < 0:
        return F.interpolate(x, size=tuple(size), mode="nearest")
    if steps == 0:
        return x
    if torch.compiler.is_exporting():
        return max_over_bins(max_over_bins(x, 2, size[0]), 3, size[1])
    return F.adaptive_max_pool2d(x, tuple(size))


def max_over_bins(x: Tensor, dim: int, bins: Any) -> Tensor:
    """`F.adaptive_max_pool2d` along one axis of `(B, C, H, W)`, for a graph whose sizes are symbols."""
    side = x.shape[dim]
    place = torch.arange(bins, device=x.device)
    first = torch.div(place * side, bins, rounding_mode="floor")
    last = torch.div((place + 1) * side + bins - 1, bins, rounding_mode="floor") - 1
    within = torch.arange(
        side // bins + 2, device=x.device
    )  # no bin is longer; what is too long reads its last cell again
    index = (first[:, None] + within).minimum(last[:, None])
    shape = [*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]]
    return x.index_select(dim, index.flatten()).reshape(shape).amax(dim + 1)


class LibraRCNNOptions(TwoStageOptions):
    """Options of Libra R-CNN: Faster R-CNN's, but for the box loss, which is balanced."""

    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a region learns it; below, it learns background."""


def libra_rcnn(
    backbone: StagedBackbone,
    *,
    channels: int = 256,
    norm: NormBuilder | None = None,
    neck: nn.Module | None = None,
    fusion: Sequence[float] | FusionMode | None = None,
    num_extra: int = 1,
    **options: Any,
) -> Detector:
    """Libra R-CNN on `backbone`: `faster_rcnn` with its `options`, balanced in its samples, its levels and its box loss.

    The neck is `neck`, or an FPN, inside a `BalancedPyramid`.
    """
    inner = neck or FPN(backbone.features, channels=channels, num_extra=num_extra, norm=norm, fusion=fusion)
    sampler = IoUBalancedSampler(foreground=options.get("foreground", 0.5))
    return faster_rcnn(
        backbone,
        channels=channels,
        norm=norm,
        neck=BalancedPyramid(inner),
        num_extra=num_extra,
        **{"sampler": sampler, "box_loss": balanced_l1, **options},
    )
