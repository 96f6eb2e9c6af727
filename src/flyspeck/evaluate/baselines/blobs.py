"""A detector without a network: blobs that stand out from their surroundings, ranked by a rule that a training set gives.

Places are the local maxima of a top-hat, or of a difference of Gaussians, at the sizes that objects have (`places.places`),
bright and dark ones alike. Of every class a rule, linear in what describes a place and in its squares and products
(`rule.fit_rule`), says how likely an object of that class is there; its box has the sides usual at its size in that class.
Everything is fitted on images of the training set alone, and the filter is chosen by AP50 on those of them that the rules were
not fitted on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from flyspeck import boxes as box_algebra
from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.evaluate.ap import average_precision, mean_of_known, prepare
from flyspeck.evaluate.baselines.filters import KINDS, Kind
from flyspeck.evaluate.baselines.places import BANDS, Places, places
from flyspeck.evaluate.baselines.rule import FORMS, Form, Rule, fit_rule
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin

MOST = 500
"""Boxes kept of an image and class at most."""
LARGEST = 64.0
"""Pixels: the largest blob that is looked for."""
MOST_CLASSES = 12
"""Classes that get a rule of their own: the most frequent ones."""
LEAST_FOUND = 5
"""Places at objects of a class in the images that are fitted to: with fewer it has no rule, and no box."""
_PIXELS, _IMAGES = 2.5e6, 40
_OVERLAP, _HIT, _NEAR = 0.3, 0.5, 0.3
_STEP, _MOST_SIZES = 2**0.5, 7
_PART = 320
"""Pixels: the side of what is taken of a larger image to fit to, so that there are more of them."""
_PROTOCOL = APProtocol("choice", "", (Bin("all", 0.0, INFINITE),), (0.5,), (MOST,))


@dataclass(frozen=True)
class BlobSettings:
    """Where is looked."""

    kind: Kind
    sizes: tuple[float, ...]
    """Pixels: the square root of an object's area."""
    bands: int = 1
    """Of the images, whose levels describe a place."""
    most: int = MOST
    """Boxes kept of an image and class: three times as many as the training set has objects in one, 30 to `MOST`."""
    form: Form = "contrast"
    """Of the rules."""
    extent: bool = False
    """Boxes are as large as the blob stands out; else they have the sides usual at its size in the class."""

    @property
    def words(self) -> str:
        """The settings in one line."""
        sizes = ", ".join(f"{size:.3g}" for size in self.sizes)
        box = "as far as it stands out" if self.extent else "the sides usual at that size in the class"
        return f"local maxima of a {self.kind} at {sizes} px; boxes: {box}; scores: by {_BY[self.form]}"


_BY: dict[Form, str] = {
    "contrast": "how bright or dark they stand out",
    "numbers": "a rule on contrast, level, roughness and size",
    "products": "a rule on contrast, level, roughness, size and their products",
}


@dataclass(frozen=True)
class ClassRule:
    """What is known of one class."""

    label: int
    sides: np.ndarray
    """(S, 2) width and height of its boxes at each of the sizes."""
    rule: Rule

    def boxes(self, found: Places, settings: BlobSettings) -> np.ndarray:
        """`(N, 4)` xyxy, about each place."""
        if settings.extent:
            return found.extent
        half = self.sides[np.searchsorted(np.asarray(settings.sizes), found.size)] / 2
        return np.concatenate([found.middle - half, found.middle + half], 1)


@dataclass(frozen=True)
class BlobDetector:
    """A fitted detector of blobs; `detect` runs it."""

    settings: BlobSettings
    rules: tuple[ClassRule, ...]
    chosen_on: int
    """Images of the training set."""
    ap50: float
    """Mean over classes, on the half of those images that the rules were not fitted on when the filter was chosen."""

    def detect(self, annotations: Annotations) -> DetectionTable:
        """Boxes of every image of a table, whose pixels are read; errors as for `read_image`."""
        found = []
        for row in range(len(annotations)):
            pixels = read_image(annotations.path(row))
            seen = places(pixels, self.settings.kind, self.settings.sizes, self.settings.bands)
            found += _detected(row, seen, self.rules, self.settings, (pixels.shape[0], pixels.shape[1]))
        return joined(found)


def joined(tables: Sequence[DetectionTable]) -> DetectionTable:
    """Tables one after the other."""
    if not tables:
        return DetectionTable.empty()
    return DetectionTable.from_columns(
        image_index=np.concatenate([table.image_index for table in tables]),
        boxes=np.concatenate([table.boxes for table in tables]),
        scores=np.concatenate([table.scores for table in tables]),
        labels=np.concatenate([table.labels for table in tables]),
    )


def fit_blobs(
    train: Annotations, *, seed: int = 0, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic
) -> BlobDetector:
    """Fit a detector of blobs to at most 40 images, or 2.5 megapixels, of the training set; to fewer, where looking at them took
    so many `seconds`.

    Of larger images, windows of 320 px about an object are taken. Raises UserError for a table without objects.
    """
    objects = ~train.ignore & ~train.crowd & (train.labels >= 0)
    real = objects & (box_algebra.size(train.boxes) >= 1)
    if not real.any():
        raise UserError("the training set has no objects", where=train.source, fix="give annotations with objects")
    samples = list(_samples(train, np.flatnonzero(real), seed))
    sizes = sizes_of(np.minimum(box_algebra.size(train.boxes[real]), LARGEST))
    most = int(np.clip(3 * np.bincount(train.image_index[real]).max(), 30, MOST))
    bands = min(BANDS, max(one.pixels.shape[2] for one in samples))
    sides = _usual_sides(train, real, sizes)
    begun, seen = clock(), []
    for sample in samples:
        seen.append([places(sample.pixels, kind, sizes, bands) for kind in KINDS])
        if clock() - begun > seconds and len(seen) >= _FEWEST:
            break
    samples = samples[: len(seen)]
    own = {kind: [one[number] for one in seen] for number, kind in enumerate(KINDS)}

    def tried(settings: BlobSettings) -> tuple[float, BlobSettings]:
        """To every second image the rules are fitted, on the others they are tried; of one image alone nothing is known."""
        rules = _rules(samples[::2], own[settings.kind][::2], sides, settings) if len(samples) > 1 else ()
        return _ap(rules, samples[1::2], own[settings.kind][1::2], settings, train.classes), settings

    every = [
        tried(BlobSettings(kind, sizes, bands, most, form, extent))
        for kind, form, extent in product(KINDS, FORMS[:-1], (False, True))
    ]
    ahead = sorted(every, key=lambda one: -one[0])[:2]
    # Products of all numbers take longer, and learn a few images by heart: of the best two alone, and where they are far ahead.
    dear = max((tried(replace(settings, form=FORMS[-1])) for _, settings in ahead), key=lambda one: one[0])
    value, chosen = dear if dear[0] > _FAR_AHEAD * ahead[0][0] else ahead[0]
    return BlobDetector(chosen, _rules(samples, own[chosen.kind], sides, chosen), len(samples), value)


_FEWEST, _FAR_AHEAD = 6, 1.5


def sizes_of(sizes: np.ndarray) -> tuple[float, ...]:
    """Half octaves that cover the middle 94 % of the objects' sizes; of more than three octaves seven sizes."""
    low, high = np.quantile(sizes, (0.03, 0.97))
    count = min(_MOST_SIZES, int(np.ceil(np.log(high / low) / np.log(_STEP) - 1e-9)) + 1)
    return tuple(dict.fromkeys(float(size) for size in np.geomspace(low, high, count).round(2)))


@dataclass(frozen=True)
class _Sample:
    """An image to fit to, or a part of one."""

    pixels: np.ndarray
    boxes: np.ndarray
    """(M, 4) of objects."""
    labels: np.ndarray
    """(M,)"""
    ignored: np.ndarray
    """(I, 4)"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


def _samples(train: Annotations, real: np.ndarray, seed: int) -> Iterator[_Sample]:
    """Images of the training set that have objects, spread at random; windows of the large ones."""
    rng = np.random.default_rng(seed)
    left = _PIXELS
    for row in rng.permutation(np.unique(train.image_index[real]))[:_IMAGES].tolist():
        pixels = read_image(train.path(row))
        rows = train.of_image(row)
        counted = np.isin(np.arange(rows.start, rows.stop), real)
        boxes, labels = train.boxes[rows], train.labels[rows]
        corner = np.zeros(2, np.int64)
        if max(pixels.shape[:2]) > _PART:
            centre = box_algebra.center(boxes[counted])[rng.integers(counted.sum())].astype(np.int64)
            most = np.maximum(np.array([pixels.shape[1], pixels.shape[0]]) - _PART, 0)
            corner = np.clip(centre - _PART // 2, 0, most)
            pixels = pixels[corner[1] : corner[1] + _PART, corner[0] : corner[0] + _PART]
        boxes = boxes - np.tile(corner, 2)
        clipped = box_algebra.clip(boxes, *pixels.shape[:2])
        whole = box_algebra.area(clipped) >= 0.5 * box_algebra.area(boxes)
        seen = box_algebra.area(clipped) > 0
        taken = counted & whole
        yield _Sample(pixels, boxes[taken], labels[taken], clipped[seen & ~taken])
        left -= pixels.shape[0] * pixels.shape[1]
        if left <= 0:
            break


def _usual_sides(train: Annotations, real: np.ndarray, sizes: tuple[float, ...]) -> dict[int, np.ndarray]:
    """(S, 2) usual width and height at each size, of the most frequent classes."""
    labels, boxes = train.labels[real], train.boxes[real]
    found = {}
    for label in np.argsort(-np.bincount(labels), kind="stable")[:MOST_CLASSES].tolist():
        own = boxes[labels == label]
        if not len(own):
            continue
        size = np.maximum(box_algebra.size(own), 1e-6)
        form = (own[:, 2:] - own[:, :2]) / size[:, None]
        middle = np.median(form, axis=0)
        sides = np.zeros((len(sizes), 2))
        for row, at in enumerate(sizes):
            near = np.abs(np.log2(size / at)) <= 0.5
            # A few objects say little of their size's form: the whole class counts like ten of them.
            weight = near.sum() / (near.sum() + 10)
            sides[row] = at * (weight * np.median(form[near], axis=0) + (1 - weight) * middle if near.any() else middle)
        found[label] = sides
    return found


def _rules(
    samples: Sequence[_Sample], seen: Sequence[Places], sides: dict[int, np.ndarray], settings: BlobSettings
) -> tuple[ClassRule, ...]:
    """Of every class that has enough places at its objects."""
    found = []
    features = np.concatenate([one.features for one in seen])
    for label, own in sides.items():
        shape = ClassRule(label, own, None)  # type: ignore[arg-type]
        fit = [_fit(shape.boxes(p, settings), s, label) for p, s in zip(seen, samples, strict=True)]
        positive, counts = (np.concatenate([one[k] for one in fit]) for k in (0, 1))
        if positive.sum() >= LEAST_FOUND:
            found.append(ClassRule(label, own, fit_rule(features[counts], positive[counts], settings.form)))
    return tuple(found)


def _fit(boxes: np.ndarray, sample: _Sample, label: int) -> tuple[np.ndarray, np.ndarray]:
    """`(N,)` bool each: boxes that are objects of the class, and those that are to be learnt from: not the nearly right ones."""
    own = sample.boxes[sample.labels == label]
    best = box_algebra.iou(boxes, own).max(1, initial=0) if len(own) else np.zeros(len(boxes))
    hidden = box_algebra.iou(boxes, sample.ignored).max(1, initial=0) if len(sample.ignored) else np.zeros(len(boxes))
    positive = best >= _HIT
    return positive, positive | ((best < _NEAR) & (hidden < _NEAR))


def _detected(
    row: int, seen: Places, rules: Sequence[ClassRule], settings: BlobSettings, size: tuple[int, int]
) -> list[DetectionTable]:
    """Boxes of one image, class by class."""
    found = []
    for one in rules:
        boxes, scores = box_algebra.clip(one.boxes(seen, settings), *size), one.rule(seen.features)
        order = np.argsort(-scores, kind="stable")
        order = order[box_algebra.area(boxes[order]) > 0][: 4 * settings.most]
        kept = order[_suppressed(boxes[order])[: settings.most]]
        found.append(
            DetectionTable.from_columns(
                image_index=np.full(len(kept), row),
                boxes=boxes[kept],
                scores=scores[kept],
                labels=np.full(len(kept), one.label),
            )
        )
    return found


def _ap(
    rules: Sequence[ClassRule],
    samples: Sequence[_Sample],
    seen: Sequence[Places],
    settings: BlobSettings,
    classes: Sequence[str],
) -> float:
    """Mean AP50 of the classes that have objects in the samples; 0 without samples."""
    if not samples:
        return 0.0
    found = [
        table
        for row, (own, sample) in enumerate(zip(seen, samples, strict=True))
        for table in _detected(row, own, rules, settings, sample.shape)
    ]
    arrays = average_precision(prepare(_truth(samples, classes), joined(found), _PROTOCOL), _PROTOCOL)
    return mean_of_known(arrays.average[0, :, 0])


def _truth(samples: Sequence[_Sample], classes: Sequence[str]) -> Annotations:
    """The samples' boxes as a table."""
    boxes = [np.concatenate([one.boxes, one.ignored]) for one in samples]
    labels = np.concatenate([np.r_[one.labels, np.full(len(one.ignored), -1)] for one in samples]).astype(np.int64)
    every = np.concatenate(boxes)
    return Annotations(
        image_ids=np.arange(len(samples)),
        file_names=tuple(str(k) for k in range(len(samples))),
        sizes=np.array([one.shape for one in samples]),
        image_index=np.repeat(np.arange(len(samples)), [len(b) for b in boxes]),
        boxes=every,
        labels=labels,
        area=box_algebra.area(every),
        ignore=labels < 0,
        crowd=labels < 0,
        box_ids=np.arange(1, len(every) + 1),
        classes=tuple(classes),
        category_ids=tuple(range(1, len(classes) + 1)),
    )


def _suppressed(boxes: np.ndarray) -> np.ndarray:
    """Rows of boxes, best first, that no better one overlaps."""
    alive, kept = np.ones(len(boxes), bool), []
    for row in range(len(boxes)):
        if alive[row]:
            kept.append(row)
            alive &= box_algebra.iou(boxes[row][None], boxes)[0] <= _OVERLAP
    return np.array(kept, np.int64)
