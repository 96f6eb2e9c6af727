"""The modules of the library `transformers` (extra `detr`; Apache-2.0) that D-FINE and RT-DETRv2 are made of, in any size.

Nothing of it is imported before a detector is built. Its modules are used as they are; what they begin with is not. The library
draws weights for its own purpose, which is loading published ones: batch norms of RT-DETRv2 begin at about 0, for instance, so
that a training from nothing would see no image. Here linear layers and convolutions begin as PyTorch's do, the sampling points
of deformable attention, gates and the quality estimator as the library says, and what gives boxes begins by giving the proposal
back.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

from torch import nn

from flyspeck.errors import UserError, install
from flyspeck.models.layers import NormBuilder, places

Kind = Literal["dfine", "rtdetrv2"]
_MODULES: dict[str, tuple[str, str]] = {
    "dfine": ("transformers.models.d_fine", "DFine"),
    "rtdetrv2": ("transformers.models.rt_detr_v2", "RTDetrV2"),
}
_AS_THE_LIBRARY_SAYS = ("MultiscaleDeformableAttention", "Gate", "LQE")
PRIOR = 0.01
"""The score that every class begins with."""


@dataclass(frozen=True)
class Shape:
    """By what the modules are built."""

    channels: int
    """Of encoder and decoder."""
    levels: int
    """Maps that the decoder samples."""
    classes: int = 1
    heads: int = 8
    """Of every attention."""
    ffn: int = 1024
    """Channels within the linear layers behind every attention."""
    layers: int = 3
    """Of the decoder."""
    points: int | Sequence[int] = 4
    """That a query samples of each level, by head; several numbers: of each level its own, finest first."""
    encoder_layers: int = 1
    expansion: float = 1.0
    """Channels within the encoder's blocks, as a share."""
    depth: float = 1.0
    """Of D-FINE's encoder: blocks in a row, three times this."""

    @property
    def sampled(self) -> int:
        """Points that a query samples of all levels, by head."""
        return self.points * self.levels if isinstance(self.points, int) else sum(self.points)

    def __post_init__(self) -> None:
        if not isinstance(self.points, int) and len(self.points) != self.levels:
            raise UserError(
                f"{len(self.points)} numbers of points for {self.levels} levels",
                where="model.head.points",
                fix="give one number, or one for each level",
            )
        if self.channels % 4 or self.channels % self.heads:
            raise UserError(
                f"{self.channels} channels do not divide by 4 and by {self.heads} heads of attention",
                where="model.channels",
                fix="choose a multiple of 8 with 8 heads, or other model.head.heads",
            )


@cache
def _library(kind: Kind, part: str) -> Any:
    package, _ = _MODULES[kind]
    try:
        return importlib.import_module(f"{package}.{part}_{package.rpartition('.')[2]}")
    except ImportError as error:
        missing = error.name or "transformers"
        raise UserError(
            f"{kind} is made of modules of the library transformers; this needs the package '{missing.partition('.')[0]}'",
            where="model.name",
            fix=install("detr"),
        ) from None


def part(kind: Kind, name: str) -> Any:
    """The library's class for `kind` whose name ends with `name`: `Decoder` is `DFineDecoder`."""
    return getattr(_library(kind, "modeling"), _MODULES[kind][1] + name)


def configuration(kind: Kind, shape: Shape) -> Any:
    """The library's configuration of encoder and decoder; what it says of backbones, matching and losses is not used."""
    levels, last = shape.levels, shape.levels - 1
    if kind == "rtdetrv2" and not isinstance(shape.points, int):
        raise UserError(
            "RT-DETRv2 samples as many points of each level", where="model.head.points", fix="give one number"
        )
    own: dict[str, Any] = {"depth_mult": float(shape.depth)} if kind == "dfine" else {"decoder_n_levels": levels}
    return getattr(_library(kind, "configuration"), f"{_MODULES[kind][1]}Config")(
        num_labels=shape.classes,
        encoder_hidden_dim=shape.channels,
        encoder_in_channels=[shape.channels] * levels,
        feat_strides=[8 * 2**level for level in range(levels)],
        encode_proj_layers=[last],
        encoder_layers=shape.encoder_layers,
        encoder_ffn_dim=shape.ffn,
        encoder_attention_heads=shape.heads,
        hidden_expansion=shape.expansion,
        d_model=shape.channels,
        decoder_in_channels=[shape.channels] * levels,
        num_feature_levels=levels,
        decoder_ffn_dim=shape.ffn,
        decoder_attention_heads=shape.heads,
        decoder_layers=shape.layers,
        decoder_n_points=shape.points if isinstance(shape.points, int) else list(shape.points),
        attn_implementation="sdpa",
        **own,
    )


def build_encoder(kind: Kind, shape: Shape, *, norm: NormBuilder | None) -> nn.Module:
    """The hybrid encoder: attention within the coarsest map, then a pyramid down and one up again.

    Its norm layers are `norm`'s; with None raises UserError, as its blocks have no biases.
    """
    if norm is None:
        raise UserError(f"the encoder of {kind} needs norm layers", where="model.norm", fix="write bn or gn")
    encoder = part(kind, "HybridEncoder")(configuration(kind, shape))
    if norm is not nn.BatchNorm2d:
        for parent, name, child in list(places(encoder)):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, norm(child.num_features))
    begin_anew(encoder)
    return encoder


def build_decoder(kind: Kind, shape: Shape) -> Any:
    """The decoder, with what gives a score and a box of each of its layers."""
    config = configuration(kind, shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*power of 2.*")  # a wish of a CUDA kernel that is not used here
        decoder = part(kind, "Decoder")(config)
    width = shape.channels
    decoder.class_embed = nn.ModuleList(nn.Linear(width, shape.classes) for _ in range(shape.layers))
    decoder.bbox_embed = nn.ModuleList(_box_layers(kind, config) for _ in range(shape.layers))
    begin_anew(decoder)
    for layer in decoder.modules():
        if type(layer).__name__.removeprefix(_MODULES[kind][1]) in _AS_THE_LIBRARY_SAYS:
            decoder._init_weights(layer)
    for layer in decoder.class_embed:
        begin_rare(cast(nn.Linear, layer))
    for layers in (*decoder.bbox_embed, *([decoder.pre_bbox_head] if kind == "dfine" else [])):
        begin_at_zero(cast(Any, layers).layers[-1])
    return decoder


def _box_layers(kind: Kind, config: Any) -> nn.Module:
    width = config.d_model
    if kind == "dfine":
        return part(kind, "MLP")(width, width, 4 * (config.max_num_bins + 1), 3)
    return part(kind, "MLPPredictionHead")(width, width, 4, num_layers=3)


def box_head(kind: Kind, channels: int) -> Any:
    """What gives the offset of a proposal from its anchor, 0 at first."""
    layers = part(kind, "MLPPredictionHead")(channels, channels, 4, num_layers=3)
    begin_at_zero(layers.layers[-1])
    return layers


def begin_anew(root: nn.Module) -> None:
    """Convolutions, linear and norm layers below `root` as PyTorch draws them."""
    for layer in root.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()


def begin_rare(layer: nn.Linear) -> None:
    """A layer of scores says `PRIOR` for every class."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))


def begin_at_zero(layer: nn.Linear) -> None:
    """A layer says 0 whatever it sees."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
