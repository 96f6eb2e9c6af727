"""How the outputs of a head's last layers are arranged, so that rows can be kept by class name and by anchor shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Factor = Literal["anchors", "classes", "background", "values"]
"""`classes` counts K rows; `background` K + 1, the background last; `anchors` as many as a cell has; `values` the rest."""
Shapes = Sequence[tuple[float, float]]
"""(width, height) of the anchors of a cell."""


@dataclass(frozen=True)
class OutputRows:
    """What the rows of a last layer stand for: their number is the product of `factors`, the first of which is outermost."""

    factors: tuple[Factor, ...]
    anchors: Shapes = ()
    """Of a cell, where `anchors` is a factor: of the finest level, if levels share the layer."""


@dataclass(frozen=True)
class Outputs:
    """What a head's outputs stand for."""

    classes: tuple[str, ...] | None
    """None where nobody knows."""
    rows: Mapping[str, OutputRows]
    """Parameter name within the detector, without `.weight` and `.bias`; empty where the head does not say."""


def matched_classes(wanted: Sequence[str], there: Sequence[str] | None) -> list[int]:
    """The place in `there` of each class of `wanted` by its name, -1 without one. Case, `_`, `-` and blanks are alike."""
    if there is None:
        return [-1] * len(wanted)
    places = {_plain(name): place for place, name in reversed(list(enumerate(there)))}
    return [places.get(_plain(name), -1) for name in wanted]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def matched_anchors(wanted: Shapes, there: Shapes) -> list[int]:
    """The place in `there` of the shape most like each of `wanted`, both relative to the mean size of their own cell.

    So anchors that were fitted to other objects keep their places: the small one's rows come from the small one.
    """
    mine, theirs = _relative(wanted), _relative(there)
    return [min(range(len(theirs)), key=lambda i: math.dist(shape, theirs[i])) for shape in mine]


def _relative(shapes: Shapes) -> list[tuple[float, float]]:
    logs = [(math.log(w), math.log(h)) for w, h in shapes]
    mean = sum(w + h for w, h in logs) / (2 * len(logs)) if logs else 0.0
    return [(round(w - mean, 3), round(h - mean, 3)) for w, h in logs]


Names = Sequence[str] | None
"""Of classes; None where nobody knows them."""


def taken_rows(
    own: Tensor, other: Tensor, here: OutputRows, there: OutputRows, *, classes: tuple[Names, Names]
) -> tuple[Tensor, str] | None:
    """`own` with the rows of `other` that mean the same, and what was taken; None where the two have nothing in common.

    Both are the weight or the bias of a last layer: `here` and `there` say what their rows stand for; `classes` of both.
    """
    wanted = classes[0] or ()
    sizes = _sizes(own.shape[0], here, classes[0]), _sizes(other.shape[0], there, classes[1])
    if own.shape[1:] != other.shape[1:] or here.factors != there.factors or sizes[0] is None or sizes[1] is None:
        return None
    places, words = [], []
    for factor, count, before in zip(here.factors, sizes[0], sizes[1], strict=True):
        if factor == "anchors":
            found = matched_anchors(here.anchors, there.anchors)
            if found != list(range(before)):
                words.append(f"{count} anchors a cell from {before} by their shape")
        elif factor == "values":
            found = list(range(count)) if count == before else []
        else:
            found = matched_classes(wanted, classes[1])
            words += _class_words(wanted, found, before - (factor == "background"))
            if max(found, default=-1) < 0:
                return None  # a background alone would call everything background
            found += [before - 1] if factor == "background" else []
        if not found:
            return None
        places.append(found)
    return _picked(own, other, (sizes[0], sizes[1]), places), "; ".join(words)


def _class_words(classes: Sequence[str], found: Sequence[int], before: int) -> list[str]:
    if list(found) == list(range(before)):
        return []
    kept = [name for name, place in zip(classes, found, strict=True) if place >= 0]
    return [f"rows of {len(kept)} of {len(classes)} classes by name: {', '.join(kept[:6])}{', …' * (len(kept) > 6)}"]


def _picked(own: Tensor, other: Tensor, sizes: tuple[list[int], list[int]], places: Sequence[Sequence[int]]) -> Tensor:
    mine, theirs = (tensor.reshape(*size, *tensor.shape[1:]) for tensor, size in zip((own, other), sizes, strict=True))
    result = mine.clone()
    targets = [torch.tensor([i for i, place in enumerate(p) if place >= 0]) for p in places]
    sources = [torch.tensor([place for place in p if place >= 0]) for p in places]
    result[torch.meshgrid(*targets, indexing="ij")] = theirs[torch.meshgrid(*sources, indexing="ij")].to(own.dtype)
    return result.reshape(own.shape)


def _sizes(count: int, rows: OutputRows, classes: Sequence[str] | None) -> list[int] | None:
    """The length of each factor of `count` rows; None where they do not make it."""
    known = {"anchors": len(rows.anchors)}
    if classes is not None:
        known |= {"classes": len(classes), "background": len(classes) + 1}
    if any(factor not in known for factor in rows.factors if factor != "values"):
        return None
    product = math.prod(known[factor] for factor in rows.factors if factor != "values")
    if product == 0 or count % product or ("values" not in rows.factors and count != product):
        return None
    return [count // product if factor == "values" else known[factor] for factor in rows.factors]
