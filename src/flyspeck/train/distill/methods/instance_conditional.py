"""Instance-conditional distillation, ICD (Kang, Zhang, Zhang, Sun and Zheng, NeurIPS 2021, arXiv:2110.12724).

A decoder learns, from the teacher's maps alone, where the teacher knows something of an object: the object is the query, all
cells of all levels are keys and values, in M = 8 heads. m_ij, the attention of object i in head j, says which cells count:

    L_instances = 1 / (M N) sum over objects and heads of < m_ij, mean over the head's channels of (V_j(F_S) - V_j(F_T))^2 >
    L_auxiliary = the decoder's own two tasks: is this a real object (N real ones and N made up), and where exactly is it

The gradient of L_auxiliary reaches the decoder alone, that of L_instances the student and its adapters alone. The authors weigh
L_instances 8 for RetinaNet and 3 for Faster R-CNN.

What is chosen here: queries hold the class and a box that is moved by up to half of its sides and scaled by up to 2, so that the
true place has to be looked for (as the differences of centre and log sides); a made-up object is a real one of the image
elsewhere. Cells have sines of their centres and of their level's stride added for the keys. L_instances is in units of the mean
square of the teacher's values, and counts by level, so that levels can be weighed. Of an image with more than 100
objects a hundred are drawn at every step (the authors stop at 300).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, pointwise

HEADS = 8
WIDTH = 16
"""Channels of a head."""
MOST_OBJECTS = 100


class InstanceTerms(PaperTerms):
    """The term `instances` of each level, and one `auxiliary`, named after the finest level that has a weight for it.

    `classes` is the number of classes that objects can be of.
    """

    def __init__(self, pairs: Sequence[LevelPair], *, wanted: Sequence[str], classes: int) -> None:
        super().__init__(pairs, wanted=wanted)
        learnt = [p for p in pairs if self.wants(p.name, "instances", "auxiliary")]
        self.adapters = pointwise(pairs, [p.name for p in learnt if self.wants(p.name, "instances")])
        self.decoder = InstanceDecoder({p.name: p.channels[1] for p in learnt}, classes=classes)
        if not any(self.wants(p.name, "auxiliary") for p in learnt):  # it attends as it was made
            self.decoder.requires_grad_(False)

    def compare(self, levels: Sequence[Level], scene: Scene) -> dict[str, Tensor]:
        """See `PaperTerms.compare`."""
        loss, attended = self._attention(levels, scene)
        found: dict[str, Tensor] = {}
        trained = [level.name for level in levels if self.wants(level.name, "auxiliary")]
        if trained:
            # Without an object in the batch nothing is asked: the loss is 0, with a gradient of 0.
            found[f"auxiliary {trained[0]}"] = loss + sum(p.sum() for p in self.decoder.parameters()) * 0
        for level in levels:
            if not self.wants(level.name, "instances"):
                continue
            own = self.decoder.values(level.name, level.adapted(self.adapters[level.name]), frozen=True)
            with torch.no_grad():
                theirs = self.decoder.values(level.name, level.teacher, frozen=True)
            distance = (own - theirs).square().mean(-1) / theirs.square().mean().clamp(min=1e-12)  # (B, heads, cells)
            found[f"instances {level.name}"] = (attended[level.name] * distance).sum() / HEADS
        return found

    def _attention(self, levels: Sequence[Level], scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's loss, and by level the mean attention of all objects of the batch, `(B, heads, cells)`."""
        reading = self.decoder.read(levels)
        loss, count = reading.keys.new_zeros(()), 0
        attention = torch.zeros(reading.keys.shape[:3], device=reading.keys.device)
        for i, targets in enumerate(scene.targets):
            there = targets.to(attention.device)
            asked = questions(there.objects, there.object_labels, scene.padded)
            number = len(asked.offsets)
            if number == 0:
                continue
            real, offsets, seen = self.decoder.answer(asked, scene.padded, reading, i)
            loss = loss + F.binary_cross_entropy_with_logits(real, asked.real, reduction="sum") / 2
            loss = loss + F.smooth_l1_loss(offsets[:number], asked.offsets, reduction="none").mean(1).sum()
            attention[i] = seen[:number].detach().sum(0)
            count += number
        attention /= max(count, 1)
        return loss / max(count, 1), {name: attention[:, :, span] for name, span in reading.spans.items()}


@dataclass(frozen=True)
class Questions:
    """Objects that the decoder is asked about: the real ones first, then as many that are made up."""

    boxes: Tensor
    """`(2 N, 4)` as they are asked: not quite where they are."""
    labels: Tensor
    """`(2 N,)`"""
    real: Tensor
    """`(2 N,)`: 1 or 0."""
    offsets: Tensor
    """`(N, 4)`: how the real ones differ, in sides of the asked box, and in logarithms of its sides."""


@dataclass(frozen=True)
class Reading:
    """What the decoder looks at: the cells of all levels of a batch."""

    keys: Tensor
    """`(B, heads, cells, channels of a head)`"""
    values: Tensor
    """As the keys."""
    shown: Tensor
    """`(B, cells)` bool: no padding."""
    spans: dict[str, slice]
    """Which cells are those of a level, by its name."""


def questions(objects: Tensor, labels: Tensor, padded: tuple[int, int]) -> Questions:
    """The questions of one image with `objects (N, 4)` px; drawn anew at every call."""
    wide = ((objects[:, 2:] - objects[:, :2]) > 0).all(1)
    objects, labels = objects[wide], labels[wide]
    if len(objects) > MOST_OBJECTS:
        some = torch.randperm(len(objects), device=objects.device)[:MOST_OBJECTS]
        objects, labels = objects[some], labels[some]
    sides, centers = objects[:, 2:] - objects[:, :2], (objects[:, 2:] + objects[:, :2]) / 2
    asked_sides = sides * 2 ** (2 * torch.rand_like(sides) - 1)
    asked_centers = centers + (torch.rand_like(sides) - 0.5) * sides
    offsets = torch.cat([(centers - asked_centers) / asked_sides, (sides / asked_sides).log()], 1)
    elsewhere = torch.rand_like(centers) * centers.new_tensor([padded[1], padded[0]])
    where = torch.cat([asked_centers, elsewhere])
    half = asked_sides.repeat(2, 1) / 2
    real = torch.cat([torch.ones(len(objects)), torch.zeros(len(objects))]).to(objects.device)
    return Questions(torch.cat([where - half, where + half], 1), labels.repeat(2), real, offsets)


class InstanceDecoder(nn.Module):
    """One layer of attention from objects to the cells of all levels; `channels` are the teacher's by level name."""

    def __init__(self, channels: dict[str, int], *, classes: int) -> None:
        super().__init__()
        width = HEADS * WIDTH
        self.classes = classes
        self.query = nn.Sequential(nn.Linear(classes + 6 * 2 * 4, width), nn.ReLU(), nn.Linear(width, width))
        self.place = nn.Linear(6 * 2 * 3, width)
        self.key_of = nn.ModuleDict({name: nn.Linear(count, width) for name, count in channels.items()})
        self.value_of = nn.ModuleDict({name: nn.Linear(count, width) for name, count in channels.items()})
        self.norm = nn.LayerNorm(width)
        self.answers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))

    def values(self, name: str, maps: Tensor, *, frozen: bool = False) -> Tensor:
        """`(B, C, H, W)` to `(B, heads, cells, channels of a head)`; `frozen` weights get no gradient."""
        layer = self.value_of[name]
        weight, bias = layer.weight, layer.bias
        if frozen:
            weight, bias = weight.detach(), bias.detach()  # type: ignore[operator]
        return _by_head(F.linear(_cells(maps), weight, bias))  # type: ignore[arg-type]

    def read(self, levels: Sequence[Level]) -> Reading:
        """Keys and values of the teacher's maps; every cell of every level, side by side."""
        keys, values, shown, spans = [], [], [], {}
        start = 0
        for level in levels:
            teacher = level.teacher.detach()
            height, width = level.size
            key = self.key_of[level.name](_cells(teacher)) + self.place(_places(height, width, teacher.device))
            keys.append(_by_head(key))
            values.append(self.values(level.name, teacher))
            shown.append(level.valid.flatten(1) > 0)
            spans[level.name] = slice(start, start + height * width)
            start += height * width
        return Reading(torch.cat(keys, 2), torch.cat(values, 2), torch.cat(shown, 1), spans)

    def answer(
        self, asked: Questions, padded: tuple[int, int], reading: Reading, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(Q,)` of being real, offsets `(Q, 4)`, and the attention `(Q, heads, cells)`, of one image's questions."""
        query = self.query(_described(asked, padded, self.classes))
        heads = query.unflatten(1, (HEADS, WIDTH))
        scores = torch.einsum("qhd,hkd->qhk", heads, reading.keys[image]) / WIDTH**0.5
        attention = scores.masked_fill(~reading.shown[image], -torch.inf).softmax(-1)
        read = torch.einsum("qhk,hkd->qhd", attention, reading.values[image]).flatten(1)
        found = self.answers(self.norm(query + read))
        return found[:, 0], found[:, 1:], attention


def _cells(maps: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, cells, C)`."""
    return maps.flatten(2).transpose(1, 2)


def _by_head(cells: Tensor) -> Tensor:
    """`(B, cells, heads * channels)` to `(B, heads, cells, channels)`."""
    return cells.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


def _sines(values: Tensor) -> Tensor:
    """`(N, D)` numbers of about 0 to 1 to `(N, 12 D)`: sines and cosines of six octaves."""
    angles = values[..., None] * (2.0 ** torch.arange(6, device=values.device) * math.pi)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Sines of the centres and of the fineness of the cells of a map, `(cells, 36)`."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)
    fineness = torch.full_like(grid[:, :1], math.log2(max(height, width)) / 12)
    return _sines(torch.cat([grid, fineness], 1))


def _described(asked: Questions, padded: tuple[int, int], classes: int) -> Tensor:
    """Class and place of the questions, `(Q, K + 48)`: centre as a share of the batch, sides by their logarithms."""
    sides, centers = asked.boxes[:, 2:] - asked.boxes[:, :2], (asked.boxes[:, 2:] + asked.boxes[:, :2]) / 2
    whole = centers.new_tensor([padded[1], padded[0]])
    numbers = torch.cat([(centers / whole).flip(1), sides.clamp(min=1e-2).log2() / 12], 1)
    return torch.cat([F.one_hot(asked.labels, classes).to(numbers.dtype), _sines(numbers)], 1)
