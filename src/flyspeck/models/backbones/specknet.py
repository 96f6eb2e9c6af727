"""The body of `speck`: small, bottom-heavy, made to be trained from nothing on objects of 2 to 32 px. flyspeck's own.

Most of its work lies at strides 4 and 8, where things of a few pixels still are things (Ning et al., arXiv:2303.11267, which is
about larger bodies): stem (stride 2), `stage1` (4), `stage2` (8), `stage3` (16). There is no stride of 32: nothing that it is for
is as large as a cell there. The stem has one more block at stride 2, so that its map can begin a pyramid (`model.levels: 1-4`).

Blocks are `rep` (3x3 convolutions that train with branches and run as one) or `separable` (models.reparameterised), with
widths of about equal cost. Sizes n, s, m belong to a `speck` of about 0.35, 0.8 and 2.5 G multiply-adds at 320x256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.reparameterised import Blocks, light_block
from flyspeck.models.weights import load_backbone
from flyspeck.options import Options
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3")
Size = Literal["n", "s", "m"]


@dataclass(frozen=True)
class _Shape:
    """Channels and further blocks at strides 2, 4, 8 and 16."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


_SHAPES: dict[Blocks, dict[Size, _Shape]] = {
    "rep": {
        "n": _Shape((8, 32, 48, 64), (1, 2, 3, 1)),
        "s": _Shape((16, 40, 64, 96), (1, 3, 4, 1)),
        "m": _Shape((24, 64, 112, 160), (1, 4, 4, 2)),
    },
    "separable": {
        "n": _Shape((16, 64, 112, 160), (1, 4, 4, 2)),
        "s": _Shape((24, 80, 160, 192), (1, 6, 7, 2)),
        "m": _Shape((32, 144, 272, 320), (1, 7, 8, 2)),
    },
}


class SpeckNetOptions(Options):
    """What its layers are."""

    blocks: Blocks = "rep"
    """`rep`: 3x3 convolutions with branches in training, which become one; `separable`: depthwise and pointwise ones."""


def specknet(
    size: Size,
    *,
    width: float = 1.0,
    weights: str | Path | None = None,
    outputs: Sequence[str] = STAGES,
    blocks: Blocks = "rep",
) -> StagedBackbone:
    """SpeckNet of a size: maps at strides 4, 8 and 16, and with `outputs` from `stem` on at stride 2.

    `width` multiplies the channels. `weights` is the path of a file of flyspeck's own.
    """
    if blocks not in _SHAPES:
        raise UserError(f"no blocks '{blocks}'", where="model.backbone.blocks", fix="write rep or separable")
    shape = _SHAPES[blocks][size]
    channels = [max(4, round(c * width)) for c in shape.channels]
    stages: dict[str, nn.Module] = {}
    specs: dict[str, FeatureSpec] = {}
    incoming = 3
    for i, (name, outgoing, depth) in enumerate(zip(("stem", *STAGES), channels, shape.depths, strict=True)):
        # Three bands have nothing to separate: the first convolution is a whole one.
        first = light_block("rep" if i == 0 else blocks, incoming, outgoing, stride=2)
        stages[name] = nn.Sequential(first, *(light_block(blocks, outgoing, outgoing) for _ in range(depth)))
        specs[name] = FeatureSpec(outgoing, 2 ** (i + 1))
        incoming = outgoing
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, weights)
    return backbone


specknet_n, specknet_s, specknet_m = (partial(specknet, size) for size in ("n", "s", "m"))
