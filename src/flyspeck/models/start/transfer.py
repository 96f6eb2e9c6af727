"""Weights of one detector into another that need not be the same: every tensor by what it stands for, and a report of each.

Tensors go by name, with three exceptions. What belongs to a level of the pyramid goes by the level's stride, so that a pyramid
that begins elsewhere is not shifted by one; a level that the source has not takes the layers that levels share anyway, and
those of its own kind from its nearest neighbour, but for its lateral, whose channels are its own map's. Rows of the last
layers go by the name of their class and the shape of their anchor (`rows`). The first convolution is widened to the images'
bands (`models.bands`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.bands import RGB, input_conv, widened
from flyspeck.models.detector import Detector
from flyspeck.models.fake_quantised import RANGE
from flyspeck.models.start.report import KeyFate, StartReport
from flyspeck.models.start.rows import Outputs, taken_rows

_LATERAL = re.compile(r"(neck\.(?:\w+\.)*?(?:inner|input_norms))\.(\d+)(\..+)")
_OF_A_LEVEL = re.compile(r"((?:neck|head)\.(?:\w+\.)*?(?:layer|down|attention|gates|norms|levels))\.(\d+)(\..+)")
_OF_A_BRANCH = re.compile(r"(head\.(?:many|one)\.(?:class_towers|box_towers|class_logits|box_deltas))\.(\d+)(\..+)")
_EXTRA = re.compile(r"(neck\.(?:\w+\.)*?extra_convs)\.(\d+)(\..+)")
_OF_TRAINING = ("num_batches_tracked", RANGE)
"""What a training counts and sees for itself: a source need not have it."""
IMAGES, RECIPE = "of the images", "of the recipe"
"""Why a tensor is new that no source is asked for."""


@dataclass(frozen=True)
class Source:
    """Weights of a detector, under the names that a detector of ours of the same kind would give them."""

    name: str
    """As a person would name it."""
    state: Mapping[str, Tensor]
    outputs: Outputs = field(default_factory=lambda: Outputs(None, {}))
    strides: tuple[float, ...] = ()
    """Of the levels of its pyramid, finest first; empty where nobody knows, and levels then keep their places."""
    maps: int = 0
    """How many of these levels are its backbone's maps."""
    licence: str = ""
    notes: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    """Name here to the name in the file, where they differ."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the file that no detector of ours has a place for, and why."""


def outputs_of(detector: Detector) -> Outputs:
    """What the outputs of `detector` stand for, as its head says."""
    rows = {f"head.{name}": rows for name, rows in detector.head.output_rows().items()}
    return Outputs(tuple(detector.classes), rows)


def source_of(name: str, state: Mapping[str, Tensor], like: Detector, **more: object) -> Source:
    """`state` as the weights of a detector that is built like `like`, whose own tensors (on any device) do not count."""
    maps = len(like.backbone.features)  # type: ignore[arg-type]
    strides = tuple(float(spec.stride) for spec in like.features)
    return Source(name, state, outputs_of(like), strides, maps, **more)  # type: ignore[arg-type]


@torch.no_grad()
def transfer(detector: Detector, source: Source, *, where: object) -> StartReport:
    """Gives `detector` all that fits of `source`, in place, and says of each tensor of both what became of it.

    Mean and deviation of the pixels stay the detector's. Raises UserError, which names `where`, unless the whole backbone fits.
    """
    own = detector.state_dict()
    mine = outputs_of(detector)
    levels = _Levels(detector, source)
    state, widening = _widened(source.state, detector)
    # Fixed fusion factors are a buffer: what the recipe says, not what was learnt.
    settings = {name: RECIPE for name, _ in detector.named_buffers() if name == "neck.fusion"}
    fates: list[KeyFate] = []
    used: set[str] = set()
    for key, tensor in own.items():
        if why := settings.get(key, IMAGES if key.startswith("pixel_norm.") else ""):
            fates.append(KeyFate(key, "new", why=why))
            continue
        name, neighbour = levels.source_key(key)
        there = state.get(name)
        found = None if there is None else _fitted(key, tensor, name, there, mine, source.outputs)
        if found is None or there is None:
            fates.append(KeyFate(key, "new", why=_why_not(tensor, there)))
            continue
        value, words = found
        words = "; ".join(word for word in (neighbour, words, widening if key == levels.first else "") if word)
        used.add(name)
        fates.append(KeyFate(key, "resized" if words else "loaded", source.origin.get(name, name), words))
        tensor.copy_(value)
    _check_backbone(fates, own, source, where)
    fates += _left(source, used, own)
    halves = sum(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in source.state.values())
    notes = (f"{halves} tensors are in half precision: widened to single, as they are",) if halves else ()
    return StartReport(source.name, source.licence, tuple(fates), (*source.notes, *notes))


def _fitted(
    key: str, own: Tensor, name: str, there: Tensor, mine: Outputs, theirs: Outputs
) -> tuple[Tensor, str] | None:
    """What of `there` the tensor `key` takes, and in which way it is not simply that."""
    layer, before = key.rpartition(".")[0], name.rpartition(".")[0]
    if layer in mine.rows:
        if before in theirs.rows:
            rows = mine.rows[layer], theirs.rows[before]
            return taken_rows(own, there, *rows, classes=(mine.classes, theirs.classes))
        if theirs.classes is not None and theirs.classes != mine.classes:
            return None
    if key == "head.scales" and own.ndim == 1 and own.shape != there.shape:  # FCOS: a number a level
        return there[torch.arange(len(own)).clamp(max=len(there) - 1)], "the nearest level's"
    return (there, "") if own.shape == there.shape else None


def _why_not(own: Tensor, there: Tensor | None) -> str:
    if there is None:
        return "the source has no such tensor"
    if own.shape == there.shape:
        return "the source's classes are others, or not named"
    return (
        f"the source has {tuple(there.shape)} for {tuple(own.shape)}"
        if own.ndim == 1
        else "the source's has another shape"
    )


class _Levels:
    """Which place of the source's pyramid each place of the detector's goes with."""

    def __init__(self, detector: Detector, source: Source) -> None:
        mine = [float(spec.stride) for spec in detector.features]
        theirs = list(source.strides) or mine
        self.same = mine == theirs
        self.maps = len(detector.backbone.features), source.maps or len(detector.backbone.features)  # type: ignore[arg-type]
        self.nearest = [min(range(len(theirs)), key=lambda j: abs(math.log2(theirs[j] / s))) for s in mine]
        self.exact = [theirs[j] == s for j, s in zip(self.nearest, mine, strict=True)]
        self.strides = mine, theirs
        try:
            self.first = f"backbone.{input_conv(detector.backbone)[0]}.weight"
        except UserError:
            self.first = ""

    def source_key(self, key: str) -> tuple[str, str]:
        """The source's name for the tensor `key`, and what to say where it is a neighbour's."""
        if self.same and self.maps[0] == self.maps[1]:
            return key, ""
        for pattern, offset in ((_LATERAL, (0, 0)), (_EXTRA, self.maps), (_OF_A_LEVEL, (0, 0)), (_OF_A_BRANCH, (0, 0))):
            if (match := pattern.fullmatch(key)) is None:
                continue
            place = int(match[2]) + offset[0]
            if place >= len(self.nearest):
                return key, ""
            there = self.nearest[place] - offset[1]
            exact = self.exact[place] and there >= 0
            if pattern in (_LATERAL, _EXTRA) and not exact:
                return f"{match[1]}.(stride {self.strides[0][place]:g}){match[3]}", ""
            words = (
                "" if exact else f"stride {self.strides[1][self.nearest[place]]:g}'s, the nearest level of the source"
            )
            return f"{match[1]}.{there}{match[3]}", words
        return key, ""


def _widened(state: Mapping[str, Tensor], detector: Detector) -> tuple[Mapping[str, Tensor], str]:
    """With the first convolution of a source of one or three bands widened to this detector's, by the rule of `models.bands`."""
    bands = detector.pixel_norm.channels
    if bands == RGB:
        return state, ""
    name = f"backbone.{input_conv(detector.backbone)[0]}.weight"
    if name not in state or state[name].ndim != 4 or state[name].shape[1] != RGB:
        return state, ""
    return {**state, name: widened(state[name], bands)}, f"{RGB} bands of the source widened to {bands}"


def _check_backbone(fates: Sequence[KeyFate], own: Mapping[str, Tensor], source: Source, where: object) -> None:
    for one in fates:
        if one.fate != "new" or not one.key.startswith("backbone.") or one.key.endswith(_OF_TRAINING):
            continue
        there = source.state.get(one.key)
        if there is None:
            what = f"'{one.key}' is not in it"
        else:
            what = f"'{one.key}' has shape {tuple(there.shape)}, needs {tuple(own[one.key].shape)}"
        raise UserError(
            f"weights of another backbone or width: {what}",
            where=where,
            fix="give model.start a run of the same backbone (model.name) and model.width",
        )


def _left(source: Source, used: set[str], own: Mapping[str, Tensor]) -> list[KeyFate]:
    """The tensors of the source that went nowhere."""
    left = []
    for name in source.state:
        if name in used:
            continue
        if name.startswith("pixel_norm.") or name == "neck.fusion":
            why = "the model has its own"
        else:
            why = "has another shape here" if name in own else "the model has no place for it"
        left.append(KeyFate(source.origin.get(name, name), "skipped", source.origin.get(name, name), why))
    return left + [KeyFate(name, "skipped", name, why) for name, why in source.unused.items()]
