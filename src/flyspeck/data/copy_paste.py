"""Copy-paste of tiny objects: more of them, on more backgrounds (Kisantal et al., Augmentation for small object detection, 2019).

Differences from the paper: no masks are needed, since a box of a few pixels is copied with a soft border; objects come
from other images too; a place is refused by its overlap with every box that is there, ignore regions included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.transforms import Another, join_targets, no_other, same_kind
from flyspeck.types import Sample, Targets


@dataclass(frozen=True)
class PasteSources:
    """Images to copy from, and how likely each is: see `paste_sources`."""

    rows: np.ndarray
    """(S,) row numbers in the annotation table."""
    probabilities: np.ndarray
    """(S,) float64, sum 1."""
    class_weights: np.ndarray
    """(K,) float64: how likely an object of each class is to be taken from an image, relative to the others."""


def paste_sources(annotations: Annotations, *, max_size: float = 32.0, rare_power: float = 0.0) -> PasteSources | None:
    """Where objects of at most `max_size` px are, so that no draw is wasted on images without any.

    `rare_power` p: an object of class c counts n_c^-p times, n_c being the number of such objects of its class. 0 copies
    objects as often as they occur, 1 every class equally often. None if there is no such object.
    """
    learnt = ~(annotations.ignore | annotations.crowd) & (annotations.labels >= 0)
    small = learnt & (box_algebra.size(annotations.boxes) <= max_size)
    labels = annotations.labels[small]
    if len(labels) == 0:
        return None
    counts = np.bincount(labels, minlength=len(annotations.classes))
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -rare_power, 0.0)
    mass = np.bincount(annotations.image_index[small], weights=weights[labels], minlength=len(annotations))
    rows = np.flatnonzero(mass)
    return PasteSources(rows, mass[rows] / mass[rows].sum(), weights)


@dataclass(frozen=True)
class CopyPaste:
    """With `probability`, pastes 1 to `max_objects` copies of objects of at most `max_size` px (root of the area).

    They come from this image or, half the time and where it has none to give, from another; with `sources` all come from
    images drawn from it, which is how rare classes are favoured. A copy takes `border` px around its box along, fading
    out; an object whose surroundings show a neighbour (more than `max_overlap` of it) is not copied, since a piece of the
    neighbour would come along without a box. A place is taken if neither the copy nor any box there is covered by more than
    `max_overlap` of its own area; ten places are tried. Half of the copies are mirrored.
    """

    probability: float = 0.5
    max_objects: int = 8
    max_size: float = 32.0
    max_overlap: float = 0.1
    border: int = 2
    sources: PasteSources | None = field(default=None, repr=False)

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another = no_other) -> Sample:
        """A new sample."""
        if rng.random() >= self.probability:
            return sample
        giver = self._giver(sample, rng, another)
        candidates = self._candidates(giver)
        if len(candidates) == 0:
            return sample
        chances = self._chances(giver, candidates)
        pixels = sample.pixels.clone()
        taken = sample.targets.boxes.numpy()
        pasted, labels = [], []
        for _ in range(int(rng.integers(1, self.max_objects + 1))):
            row = int(rng.choice(candidates, p=chances))
            patch, box = cut_out(giver, row, self.border)
            if rng.random() < 0.5:
                patch, box = patch.flip(2), np.array([patch.shape[2] - box[2], box[1], patch.shape[2] - box[0], box[3]])
            place = self._find_place(tuple(pixels.shape[1:]), tuple(patch.shape[1:]), box, taken, rng)
            if place is None:
                continue
            blend(pixels, patch, box, place, self.border)
            there = (box + np.tile(place[::-1], 2)).astype(np.float32)
            taken = np.concatenate([taken, there[None]])
            pasted.append(there)
            labels.append(int(giver.targets.labels[row]))
        if not pasted:
            return sample
        new = Targets(
            boxes=torch.from_numpy(np.stack(pasted)),
            labels=torch.tensor(labels, dtype=torch.int64),
            ignore=torch.zeros(len(labels), dtype=torch.bool),
        )
        return replace(sample, pixels=pixels, targets=join_targets([sample.targets, new]))

    def _giver(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        if self.sources is not None:
            return same_kind(sample, another(rng, int(rng.choice(self.sources.rows, p=self.sources.probabilities))))
        own = rng.random() < 0.5 and len(self._candidates(sample)) > 0
        return sample if own else same_kind(sample, another(rng))

    def _candidates(self, giver: Sample) -> np.ndarray:
        """Rows of the giver's objects that are small enough and stand free."""
        boxes, ignore = giver.targets.boxes.numpy(), giver.targets.ignore.numpy()
        rows = np.flatnonzero(~ignore & (box_algebra.size(boxes) <= self.max_size))
        if len(rows) == 0:
            return rows
        around = boxes[rows] + np.array([-1, -1, 1, 1], np.float32) * self.border
        shown = box_algebra.iod(boxes, around).T  # (candidates, boxes): share of each box that the patch shows
        shown[np.arange(len(rows)), rows] = 0
        return rows[(shown <= self.max_overlap).all(1)]

    def _chances(self, giver: Sample, candidates: np.ndarray) -> np.ndarray | None:
        if self.sources is None:
            return None
        weights = self.sources.class_weights[giver.targets.labels.numpy()[candidates]]
        return weights / weights.sum() if weights.sum() > 0 else None

    def _find_place(
        self,
        image: tuple[int, ...],
        patch: tuple[int, ...],
        box: np.ndarray,
        taken: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[int, int] | None:
        """Top left corner (y, x) for a patch of `patch` (H, W) whose object is `box` in it, or None."""
        free = (image[0] - patch[0], image[1] - patch[1])
        if min(free) < 0:
            return None
        corners = rng.integers((0, 0), (free[0] + 1, free[1] + 1), size=(10, 2))
        boxes = box + corners[:, [1, 0, 1, 0]]
        shared = box_algebra.intersection(boxes, taken)
        smaller = np.minimum(box_algebra.area(boxes)[:, None], box_algebra.area(taken)[None])
        good = np.flatnonzero((shared <= self.max_overlap * smaller).all(1))
        return (int(corners[good[0], 0]), int(corners[good[0], 1])) if len(good) else None


def cut_out(giver: Sample, row: int, border: int) -> tuple[torch.Tensor, np.ndarray]:
    """The pixels `(C, h, w)` of box `row` with up to `border` px around, and the box (4,) float64 in their frame."""
    _, height, width = giver.pixels.shape
    box = giver.targets.boxes[row].numpy().astype(np.float64)
    low = np.maximum(np.floor(box[:2]).astype(int) - border, 0)
    high = np.minimum(np.ceil(box[2:]).astype(int) + border, [width, height])
    return giver.pixels[:, low[1] : high[1], low[0] : high[0]], box - np.tile(low, 2)


def blend(pixels: torch.Tensor, patch: torch.Tensor, box: np.ndarray, place: tuple[int, int], border: int) -> None:
    """Lays `patch` onto `pixels` (written in place) at `place` (y, x): opaque on the box, fading linearly around it."""
    rows, columns = (
        np.clip(1 - _distance(np.arange(side), *box[axes]) / (border + 1), 0, 1)
        for side, axes in ((patch.shape[1], [1, 3]), (patch.shape[2], [0, 2]))
    )
    weight = torch.from_numpy(np.outer(rows, columns).astype(np.float32))
    y, x = place
    under = pixels[:, y : y + patch.shape[1], x : x + patch.shape[2]]
    mixed = under + weight * (patch.to(torch.float32) - under)
    under.copy_(mixed.round_() if pixels.dtype == torch.uint8 else mixed)


def _distance(cells: np.ndarray, low: float, high: float) -> np.ndarray:
    """How many whole pixels each pixel of a row lies outside those that the span [low, high) touches; 0 inside."""
    return np.maximum(np.maximum(np.floor(low) - cells, cells - np.ceil(high) + 1), 0)
