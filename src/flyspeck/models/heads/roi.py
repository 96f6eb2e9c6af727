"""What the R-CNNs do with a region: cut it out of the right level, and classify and refine it.

RoIAlign: He et al., 2017, arXiv:1703.06870. The level of a region: Lin et al., 2017, eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from flyspeck import boxes as box_algebra
from flyspeck.models import batch_decoding
from flyspeck.models.assign import BACKGROUND, IGNORED, max_iou_assign, sample_balanced
from flyspeck.models.batch_decoding import Size
from flyspeck.models.layers import ConvNorm, init_normal
from flyspeck.models.roi_align import pyramid_roi_align
from flyspeck.models.start.rows import OutputRows
from flyspeck.options import Options
from flyspeck.types import Targets


class RoIPoolOptions(Options):
    """Options of the RoIAlign that cuts regions from the pyramid."""

    output: int = Field(default=7, ge=1, le=64)
    """Cells along each side of a pooled region."""
    sampling: int = Field(default=2, ge=1, le=16)
    """Samples along each side of a cell."""
    aligned: bool = True
    """Cells are read half a pixel earlier, which is where they are."""
    canonical: float = Field(default=224.0, gt=0)
    """Size in px (square root of the area) of a region that is cut from stride 16; half of it from stride 8, and so on."""


class RoIPool(nn.Module):
    """RoIAlign on the level that fits each region: `levels` maps, a region of `canonical` px goes to stride 16.

    The scale of a map is its true ratio to the image, in x and y apart, so that maps resized by any factor work.
    """

    def __init__(
        self,
        strides: Sequence[float],
        *,
        output: int = 7,
        sampling: int = 2,
        aligned: bool = True,
        canonical: float = 224.0,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.output, self.sampling, self.aligned, self.canonical = output, sampling, aligned, canonical

    def forward(self, maps: Sequence[Tensor], regions: Sequence[Tensor], padded: tuple[int, int]) -> Tensor:
        """`regions[i] (P_i, 4)` of image i to `(sum P_i, C, output, output)` float32, in the same order."""
        levels = maps[: len(self.strides)]
        placed, level = self.place(levels, regions, padded)
        return pyramid_roi_align(levels, placed, level, self.output, self.sampling, self.aligned)

    def place(
        self, maps: Sequence[Tensor], regions: Sequence[Tensor], padded: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """`regions[i] (P_i, 4)` as (image, x1, y1, x2, y2) `(R, 5)` in cells of the map of each one's level `(R,)`."""
        image = torch.cat([torch.full((len(r), 1), i, device=r.device) for i, r in enumerate(regions)]).float()
        boxes = torch.cat(list(regions)).float()
        level = self.level_of(boxes)
        ratios = [[m.shape[-1] / padded[1], m.shape[-2] / padded[0]] * 2 for m in maps]
        return torch.cat([image, boxes * torch.tensor(ratios, device=boxes.device)[level]], 1), level

    def pool_batch(self, maps: Sequence[Tensor], regions: Tensor, size: Size) -> Tensor:
        """`forward` for a graph: `regions (B, P, 4)` of images of `size` (H, W) to `(B*P, C, output, output)`."""
        own = [m.float() for m in maps[: len(self.strides)]]
        placed, level = self.place_batch(own, regions, size)
        return batch_decoding.pyramid_roi_align(own, placed, level, self.output, self.sampling, self.aligned)

    def place_batch(self, maps: Sequence[Tensor], regions: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """`place` for a graph: of `regions (B, P, 4)`, row by row."""
        batch, count = regions.shape[0], regions.shape[1]
        image = torch.arange(batch, device=regions.device, dtype=torch.float32)[:, None, None].expand(batch, count, 1)
        level = self.level_of(regions)
        ratios = []
        for m in maps:
            x, y = torch.scalar_tensor(m.shape[-1] / size[1]), torch.scalar_tensor(m.shape[-2] / size[0])
            ratios.append(torch.stack([x, y, x, y]))
        ratio = torch.stack(ratios).to(regions.device)[level]
        return torch.cat([image, regions * ratio], -1).reshape(-1, 5), level.reshape(-1)

    def blank(self, maps: Sequence[Tensor], count: int) -> Tensor:
        """`(count, C, output, output)` of no particular values, on the device of `maps`: to run what follows for its cost."""
        return maps[0].new_empty(count, maps[0].shape[1], self.output, self.output)

    def level_of(self, boxes: Tensor) -> Tensor:
        """Level index `(P,)` of each region, by its size: 4 + log2(size / canonical), counted from stride 2^k."""
        finest = math.log2(self.strides[0])
        level = torch.floor(4 + torch.log2(box_algebra.size(boxes) / self.canonical + 1e-6)) - finest
        return level.clamp(0, len(self.strides) - 1).long()


class BoxHead(nn.Module):
    """Two hidden layers on a pooled region, then class logits (background last) and box deltas per class.

    `inputs` are the values of a pooled region. With `convs` it first passes that many 3x3 convolutions on its `channels`, with
    batch norm, and one hidden layer follows instead of two (Wu and He, 2018, arXiv:1803.08494, as torchvision has it).
    """

    def __init__(
        self,
        inputs: int,
        *,
        hidden: int,
        num_classes: int,
        class_agnostic: bool = False,
        convs: int = 0,
        channels: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_agnostic = num_classes, class_agnostic
        self.convs = nn.ModuleList(ConvNorm(channels, channels, 3, norm=nn.BatchNorm2d) for _ in range(convs))
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = None if convs else nn.Linear(hidden, hidden)
        self.class_logits = nn.Linear(hidden, num_classes + 1)
        self.box_deltas = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[index]
        for layer in (self.fc1, *(() if self.fc2 is None else (self.fc2,))):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.class_logits, std=0.01)
        init_normal(self.box_deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`(P, C, S, S)` to logits `(P, K+1)` and deltas `(P, K or 1, 4)`, float32."""
        for conv in self.convs:
            pooled = torch.relu(conv(pooled))
        x = torch.relu(self.fc1(pooled.flatten(1)))
        x = x if self.fc2 is None else torch.relu(self.fc2(x))
        return self.class_logits(x).float(), self.box_deltas(x).float().unflatten(1, (-1, 4))

    def output_rows(self) -> Mapping[str, OutputRows]:
        """For `Head.output_rows` of a head of two stages."""
        boxes = OutputRows(("values",) if self.class_agnostic else ("classes", "values"))
        return {"class_logits": OutputRows(("background",)), "box_deltas": boxes}


def assign_regions(
    proposals: Tensor, target: Targets, *, foreground: float, background: float, low_quality: bool = False
) -> tuple[Tensor, Tensor]:
    """Regions to train on and what each learns: the proposals with the objects added, and `(P,)` as in `assign`.

    Regions between `background` and `foreground` are ignored; regions under an ignore region are never background.
    """
    regions = torch.cat([proposals, target.objects.to(proposals.dtype)])
    assigned = max_iou_assign(
        regions,
        target.objects,
        target.ignored,
        foreground=foreground,
        background=background,
        low_quality=low_quality,
    )
    return regions, assigned


__all__ = ["BACKGROUND", "IGNORED", "BoxHead", "RoIPool", "assign_regions", "sample_balanced"]
