"""The head of a detection transformer: proposals of all cells, the best of which become queries of a decoder.

What D-FINE and RT-DETRv2 have in common (`heads.dfine`, `heads.rtdetrv2`); the decoder's modules are the library's
(`detr.library`). Every object is learnt by one query, so that nothing is suppressed in what is detected, and a crowd is not
thinned out. How many objects an image can have is bounded by its queries.

The head computes in float32 whatever the precision of the training is: a coordinate is a share of the image, of which bfloat16
tells 256 apart.
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flyspeck.errors import UserError, nearest
from flyspeck.models.assigners.nwd import AITOD_SIZE
from flyspeck.models.batch_decoding import BatchDetections, Size, level_candidates, suppress_levels
from flyspeck.models.detector import DenseOutputs, Head
from flyspeck.models.detr.library import Kind, Shape, begin_anew, begin_rare, box_head, build_decoder
from flyspeck.models.detr.losses import (
    Closeness,
    Layer,
    LossWeights,
    Matched,
    box_loss,
    fit,
    score_loss,
    to_pixels,
)
from flyspeck.models.detr.matching import MatchCost, least, match, pair_cost
from flyspeck.models.detr.memory import kept_bytes, largest, meta_twin
from flyspeck.models.detr.queries import Noise, Noised, QueryRule, anchor_logits, cells_inside, noised
from flyspeck.models.losses import mean_over_processes
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.types import FeatureSpec, Targets

QUERIES, ANCHOR_SCALE = 300, 2.0
"""Where nobody says, and no training set does."""


@dataclass(frozen=True)
class Answers:
    """What a head says of a batch."""

    proposals: Layer
    """Of the Q queries, before the decoder."""
    layers: tuple[Layer, ...]
    """Of the Q queries, after each layer of the decoder that says anything; the last detects."""
    noised: tuple[Layer, ...]
    """Of the D queries with noise, likewise."""
    alive: Tensor | None
    """(B, Q) bool: which queries are of cells within their image; None: all are."""


class DetrHead(Head):
    """See the head of this module.

    `queries` and `anchor_scale` (cells that the anchor of a cell has a side) None are 300 and 2: a recipe takes them from its
    training set. What follows up to `points` are the decoder's sizes, then denoising, the costs of matching, and the losses;
    `nwd_constant` is NWD's C in px, everywhere.
    """

    kind: Kind

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        queries: int | None = None,
        anchor_scale: float | None = None,
        layers: int = 3,
        heads: int = 8,
        ffn: int | None = None,
        points: int | list[int] = 4,
        noise_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        score_cost: float = 2.0,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
        nwd_cost: float = 2.0,
        score_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        nwd_weight: float = 1.0,
        nwd_constant: float = AITOD_SIZE,
        closeness: Closeness = "nwd",
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        if closeness not in ("iou", "nwd"):
            known = ("iou", "nwd")
            raise UserError(
                f"'{closeness}' is no closeness", where="model.head.closeness", fix=nearest(closeness, known)
            )
        self.num_classes = num_classes
        self.selection = QueryRule(queries or QUERIES)
        self.anchor_scale = ANCHOR_SCALE if anchor_scale is None else anchor_scale
        self.suppression = replace(suppression or Suppression(), method="none", soft=None)
        self.noise = Noise(noise_queries, label_noise, box_noise)
        self.cost = MatchCost(score_cost, l1_cost, giou_cost, nwd_cost, nwd_constant)
        self.weights = LossWeights(score_weight, l1_weight, giou_weight, nwd_weight, nwd_constant, closeness)
        self.strides = [spec.stride for spec in features]
        channels = features[0].channels
        self.shape = Shape(channels, len(features), num_classes, heads, ffn or 4 * channels, layers, points)
        self.level_proj = self.level_layers()
        self.enc_output = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        begin_anew(self.level_proj)
        begin_anew(self.enc_output)
        self.enc_score_head = nn.Linear(channels, num_classes)
        begin_rare(self.enc_score_head)
        self.enc_bbox_head = box_head(self.kind, channels)
        self.decoder = build_decoder(self.kind, self.shape)
        # The last row stands for no query.
        self.denoising_class_embed = nn.Embedding(num_classes + 1, channels, padding_idx=num_classes)
        nn.init.normal_(self.denoising_class_embed.weight[:-1])

    @abstractmethod
    def level_layers(self) -> nn.ModuleList:
        """What each map goes through before the decoder samples it."""

    @abstractmethod
    def decoded(self, output: Any) -> tuple[Layer, ...]:
        """What the library's decoder gave, layer by layer."""

    @abstractmethod
    def own_losses(
        self, layers: Sequence[Layer], matched: Sequence[Matched], size: tuple[int, int], total: Tensor
    ) -> dict[str, Tensor]:
        """Further weighted losses of layers and the queries of each that learn an object; `total` is what sums are divided by."""

    def forward(self, maps: Sequence[Tensor], *, inside: Tensor | None = None, noise: Noised | None = None) -> Answers:
        """What it says of `maps`; `inside (B, A)` are the cells within their images, `noise` further queries."""
        kind = maps[0].device.type
        wide = kind != "meta" and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if wide else contextlib.nullcontext():
            return self._answers([m.float() for m in maps], inside, noise)

    def _answers(self, maps: Sequence[Tensor], inside: Tensor | None, noise: Noised | None) -> Answers:
        levels = [layer(m) for layer, m in zip(self.level_proj, maps, strict=True)]
        sizes = [(m.shape[-2], m.shape[-1]) for m in levels]
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in levels], 1)
        described = self.enc_output(cells)
        scores = self.enc_score_head(described)
        boxes = self.enc_bbox_head(described) + anchor_logits(sizes, self.anchor_scale, cells)
        rank = scores.detach().amax(-1)
        if inside is not None:
            rank = rank.masked_fill(~inside, -torch.inf)
        count: Any = torch.sym_min(self.selection.queries, rank.shape[1])
        best = rank.topk(count, 1).indices
        taken = [m.gather(1, best[..., None].expand(-1, -1, m.shape[-1])) for m in (described, scores, boxes)]
        begin, mask = (taken[0].detach(), taken[2].detach()), None
        if noise is not None:
            embedded = self.denoising_class_embed(noise.labels)
            begin = torch.cat([embedded, begin[0]], 1), torch.cat([noise.boxes, begin[1]], 1)
            mask = noise.mask(taken[0].shape[1])
        output = self.decoder(
            inputs_embeds=begin[0],
            reference_points=begin[1],
            encoder_hidden_states=cells,
            encoder_attention_mask=mask,
            # Only compared with the number of cells; of objects, as a graph's sizes are symbols.
            spatial_shapes=np.array(sizes, dtype=object),
            spatial_shapes_list=sizes,
        )
        first = 0 if noise is None else noise.rows.shape[1]
        layers = self.decoded(output)
        return Answers(
            Layer(taken[1], taken[2].sigmoid()),
            tuple(_rows(layer, slice(first, None)) for layer in layers),
            tuple(_rows(layer, slice(0, first)) for layer in layers) if first else (),
            None if inside is None else inside.gather(1, best),
        )

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` and `box` of proposals and all layers, `noise_classification` and `noise_box`, and the kind's own."""
        noise = noised(targets, padded, self.num_classes, self.noise)
        inside = cells_inside([(m.shape[-2], m.shape[-1]) for m in maps], padded, sizes, maps[0].device)
        said = self(maps, inside=inside, noise=noise)
        total = mean_over_processes(sum(len(t.objects) for t in targets), maps[0].device)
        layers = (said.proposals, *said.layers)
        with torch.no_grad():
            rows = [match(layer.logits, layer.pixels(padded), targets, size=padded, cost=self.cost) for layer in layers]
        found = self._losses(layers, [Matched.of(one, targets) for one in rows], padded, total)
        if noise is not None:
            again = [Matched.of(noise.rows, targets)] * len(said.noised)
            more = self._losses(said.noised, again, padded, total * noise.groups)
        else:  # the same names in every step
            nothing = self.denoising_class_embed.weight.sum() * 0
            more = {name: nothing for name in found}
        return found | {f"noise_{name}": value for name, value in more.items()}

    def _losses(
        self, layers: Sequence[Layer], matched: Sequence[Matched], size: tuple[int, int], total: Tensor
    ) -> dict[str, Tensor]:
        scores, boxes = [], []
        for layer, pairs in zip(layers, matched, strict=True):
            with torch.no_grad():
                own = to_pixels(layer.boxes[pairs.image, pairs.query], size)
                quality = fit(own, pairs.objects, self.weights)
            scores.append(score_loss(layer, pairs, quality))
            boxes.append(box_loss(layer, pairs, size, self.weights))
        found = {
            "classification": self.weights.score * torch.stack(scores).sum() / total,
            "box": torch.stack(boxes).sum() / total,
        }
        return found | self.own_losses(layers, matched, size, total)

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        inside = cells_inside([(m.shape[-2], m.shape[-1]) for m in maps], padded, sizes, maps[0].device)
        said, rule = self(maps, inside=inside), self.suppression
        scores, boxes = self._last(said, padded)
        found = []
        for own, box, size in zip(scores, boxes, sizes, strict=True):
            rows, classes = topk_per_level(own, [len(own)], rule.max_detections, rule.score)
            found.append(suppress(box[rows], own[rows, classes], classes, size, rule))
        return found

    def _last(self, said: Answers, size: Size) -> tuple[Tensor, Tensor]:
        """Scores `(B, Q, K)` and boxes `(B, Q, 4)` xyxy px."""
        scores = said.layers[-1].logits.sigmoid()
        if said.alive is not None:
            scores = scores * said.alive[..., None]
        return scores, to_pixels(said.layers[-1].boxes, size)  # type: ignore[arg-type]

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        scores, boxes = self._last(self(maps), size)

        def boxes_of(row: Tensor) -> Tensor:
            return boxes.gather(1, row[..., None].expand(-1, -1, 4))

        one = level_candidates(scores, self.suppression.max_detections, boxes_of, size)
        return suppress_levels([one], self.num_classes, self.suppression)

    def check_training(self, *, images: int, size: tuple[int, int], free: int) -> None:
        """See `Head.check_training`: queries are the number."""
        cells = sum(math.ceil(size[0] / s) * math.ceil(size[1] / s) for s in self.strides)
        queries = min(self.selection.queries, cells)
        needed = images * self.training_bytes(size, queries)
        if needed <= free:
            return
        fits = largest(lambda count: images * self.training_bytes(size, count) <= free, queries)
        raise UserError(
            f"{queries} queries take about {needed / 1e9:.1f} GB for a batch of {images} images of {size[0]}x{size[1]} px,"
            f" and {free / 1e9:.1f} GB are free",
            where="model.head.queries",
            fix=f"{fits} fit; or lower train.batch_size, model.head.layers or model.channels",
        )

    def training_bytes(self, size: tuple[int, int], queries: int) -> int:
        """Bytes that this head keeps for the gradients of one image of `size` (H, W) px; an upper bound (`detr.memory`)."""
        twin = meta_twin(self).train()
        twin.selection = QueryRule(queries)
        shape = (1, self.shape.channels)
        maps = [torch.empty(*shape, *(math.ceil(side / s) for side in size), device="meta") for s in self.strides]
        count, noise = 2 * self.noise.queries, None
        if count:
            place = torch.zeros(1, count, dtype=torch.int64, device="meta")
            noise = Noised(place, torch.empty(1, count, 4, device="meta"), place, 1)
        return kept_bytes(lambda: twin([m.requires_grad_() for m in maps], noise=noise))

    def dense_outputs(self, raw: Answers) -> DenseOutputs:
        """See `Head.dense_outputs`: class logits of the queries, and centre and sides of their boxes as shares of the image."""
        return DenseOutputs(raw.layers[-1].logits, raw.layers[-1].boxes)

    def dense_pairs(self, own: DenseOutputs, given: DenseOutputs, size: tuple[int, int]) -> Tensor:
        """See `Head.dense_pairs`: by the cost of matching, with the teacher's queries as objects of their best class."""
        found = torch.full(given.logits.shape[:2], -1, device=own.logits.device)
        boxes, objects = (to_pixels(one.boxes.detach().float(), size) for one in (own, given))
        labels = given.logits.argmax(-1)
        for rows, logits, box, goal, label in zip(found, own.logits.detach(), boxes, objects, labels, strict=True):
            query, row = least(pair_cost(logits, box, goal, label, size=size, cost=self.cost))
            rows[row] = query
        return found

    def counted_rules(self) -> list[tuple[object, str]]:
        """See `Head.counted_rules`: queries are a count an image too."""
        return [(self, "suppression"), (self, "selection")]

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        names = ["enc_score_head", *(f"decoder.class_embed.{layer}" for layer in range(self.shape.layers))]
        rows = {name: OutputRows(("classes",)) for name in names}
        return {**rows, "denoising_class_embed": OutputRows(("background",))}

    def extra_multiply_adds(self, maps: Sequence[Tensor], *, proposals: int) -> int:
        """See `Head.extra_multiply_adds`: queries with queries, and the means over sampled points."""
        cells = sum(m.shape[-2] * m.shape[-1] for m in maps)
        queries, shape = min(self.selection.queries, cells), self.shape
        attention = 2 * queries**2 * shape.channels
        sampled = queries * shape.sampled * shape.channels * 5  # four neighbours, and their weight
        return shape.layers * (attention + sampled)


def _rows(layer: Layer, rows: slice) -> Layer:
    """Some of its queries."""
    parts = (layer.logits, layer.boxes, layer.corners, layer.start)
    return Layer(*(None if part is None else part[:, rows] for part in parts))  # type: ignore[arg-type]
