"""Swin-T (Liu et al., arXiv:2103.14030) as a staged backbone, of torchvision's own blocks: a transformer as teacher.

Stages: `stem` cuts patches of 4x4 px (stride 4), `stage1` … `stage4` are torchvision's, each but the first with the
merging of 2x2 cells before its blocks: C2..C5 of 96, 192, 384, 768 channels at strides 4, 8, 16, 32. Between stages maps
are `(B, C, H, W)` as in every backbone. Images of any size are padded to whole patches; windows and mergings pad too.
torchvision's weights load by their name (`weights="IMAGENET1K_V1"`).

What leaves a stage is the residual stream as it goes on to the next; detectors on Swin normalise each map that they take
out of it. That norm belongs to whom takes it: the zoo gives Swin the neck `fpn_ln`. torchvision's last norm is left out.

Without head and last norm: 27,517,818 parameters, 4.490 G multiply-adds at 224x224 (torchvision: 4.491 with the head).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import PatchMerging, ShiftedWindowAttention, SwinTransformerBlock

from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import load_backbone
from flyspeck.options import Options
from flyspeck.types import FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")
PATCH, WINDOW = 4, 7
_DEPTHS = (2, 2, 6, 2)


class PatchEmbedding(nn.Module):
    """Patches of 4x4 px to vectors: one convolution, one norm over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to `(B, C, ceil(H / 4), ceil(W / 4))`; the missing pixels are zeros, right and bottom."""
        x = self.conv(F.pad(x, (0, -x.shape[-1] % PATCH, 0, -x.shape[-2] % PATCH)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WindowAttention(ShiftedWindowAttention):
    """torchvision's; in a graph, whether windows are shifted is decided at each size and not at that of tracing."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        return window_attention(self, x) if torch.compiler.is_exporting() else super().forward(x)


def window_attention(layer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """What `layer` gives for maps `(B, H, W, C)` outside of training, without an `if` on their size.

    torchvision leaves windows where they are along a side that is no longer than one of them.
    """
    batch, channels, side, heads = x.shape[0], x.shape[3], layer.window_size[0], layer.num_heads
    area = side * side
    rows, columns = x.shape[1], x.shape[2]
    x = F.pad(x, (0, 0, 0, -columns % side, 0, -rows % side))
    high, wide = x.shape[1] // side, x.shape[2] // side
    shifted = layer.shift_size[0] > 0
    places = [torch.arange(length * side, device=x.device) for length in (high, wide)]
    lengths = [torch.scalar_tensor(count * side, dtype=torch.int64, device=x.device) for count in (high, wide)]
    steps = [torch.where(length > side, layer.shift_size[0], 0) for length in lengths]

    def windows(m: Tensor) -> Tensor:
        """`(b, H, W, c)` to `(b * windows, area, c)`."""
        m = m.reshape(-1, high, side, wide, side, m.shape[-1])
        return m.transpose(2, 3).reshape(-1, area, m.shape[-1])

    if shifted:
        for axis, (place, step, length) in enumerate(zip(places, steps, lengths, strict=True), 1):
            x = x.index_select(axis, (place + step) % length)
    qkv = layer.qkv(windows(x)).reshape(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0] * (channels // heads) ** -0.5, qkv[1], qkv[2]
    weight = query @ key.transpose(-2, -1) + layer.get_relative_position_bias()
    if shifted:
        # What came round from the other end of the map is no neighbour: its numbers differ, along either axis.
        down, across = (
            (place >= length - side).long() + (place >= length - step).long()
            for place, step, length in zip(places, steps, lengths, strict=True)
        )
        part = windows((3 * down[:, None] + across[None])[None, :, :, None].float())[..., 0]
        apart = (part[:, None] != part[:, :, None]).float() * -100.0
        weight = (weight.reshape(batch, -1, heads, area, area) + apart[None, :, None]).reshape(-1, heads, area, area)
    x = layer.proj((weight.softmax(-1) @ value).transpose(1, 2).reshape(-1, area, channels))
    x = (
        x.reshape(batch, high, wide, side, side, channels)
        .transpose(2, 3)
        .reshape(batch, high * side, wide * side, channels)
    )
    if shifted:
        for axis, (place, step, length) in enumerate(zip(places, steps, lengths, strict=True), 1):
            x = x.index_select(axis, (place - step + length) % length)
    return x[:, :rows, :columns]


class SwinStage(nn.Module):
    """Optional merging of 2x2 cells, then transformer blocks with windows and shifted windows in turn."""

    def __init__(self, merge: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge = nn.Identity() if merge is None else merge
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, H, W)`, or with merging to `(B, 2C, ceil(H / 2), ceil(W / 2))`."""
        return self.blocks(self.merge(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class SwinOptions(Options):
    """Options of Swin."""

    stochastic_depth: float = Field(default=0.2, ge=0, lt=1)
    """Probability with which training skips the last block, rising to it from the first."""


def swin_t(
    *,
    width: float = 1.0,
    weights: str | Path | None = None,
    outputs: Sequence[str] = STAGES,
    stochastic_depth: float = 0.2,
) -> StagedBackbone:
    """Swin-T: C2..C5 of 96, 192, 384, 768 channels at strides 4, 8, 16, 32.

    `width` scales channels and heads (3, 6, 12, 24 at width 1; at least one, of a multiple of four channels). `weights` is
    a torchvision weights name (`IMAGENET1K_V1`) or the path of a local file. `outputs` are the stages whose outputs are
    feature maps. `stochastic_depth` is the probability with which the last block is skipped in training, rising to it
    linearly from the first (torchvision's value for ImageNet).
    """
    heads = max(1, round(3 * width))
    channels = 4 * heads * max(1, round(96 * width / (4 * heads)))
    stages: dict[str, nn.Module] = {"stem": PatchEmbedding(channels)}
    specs = {"stem": FeatureSpec(channels, PATCH)}
    done = 0
    for i, (name, depth) in enumerate(zip(STAGES, _DEPTHS, strict=True)):
        blocks = [
            SwinTransformerBlock(
                channels * 2**i,
                heads * 2**i,
                window_size=[WINDOW, WINDOW],
                shift_size=[(j % 2) * (WINDOW // 2)] * 2,
                attn_layer=WindowAttention,
                stochastic_depth_prob=stochastic_depth * (done + j) / (sum(_DEPTHS) - 1),
            )
            for j in range(depth)
        ]
        done += depth
        stages[name] = SwinStage(PatchMerging(channels * 2 ** (i - 1)) if i else None, blocks)
        specs[name] = FeatureSpec(channels * 2**i, PATCH * 2**i)
    for stage in stages.values():
        _init_projections(stage)
    backbone = StagedBackbone(stages, specs, outputs=tuple(outputs))
    if weights is not None:
        load_backbone(backbone, weights, torchvision_model="swin_t", rename=rename_torchvision)
    return backbone


def _init_projections(stage: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02 and zero biases in every linear layer (the paper's, as torchvision does)."""
    for module in stage.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def rename_torchvision(key: str) -> str | None:
    """torchvision's key to ours: `features.3.0.attn.…` to `stages.stage2.blocks.0.attn.…`; last norm and head to None."""
    if key.startswith(("norm.", "head.")):
        return None
    match = re.fullmatch(r"features\.(\d)\.(.+)", key)
    if match is None:
        return key
    index, rest = int(match[1]), match[2]
    if index == 0:
        part, name = rest.split(".")
        return f"stages.stem.{'conv' if part == '0' else 'norm'}.{name}"
    stage = f"stages.stage{index // 2 + 1}"
    return f"{stage}.blocks.{rest}" if index % 2 else f"{stage}.merge.{rest}"
